from collections.abc import Callable

import numpy as np
import pytest
import torch

from ddpm.config import Config
from ddpm.data.image_set import ImageSpec
from ddpm.models.build import build_network, flops_per_image
from ddpm.models.networks import NULL_LABEL
from ddpm.models.networks.dit import DiT, position_embedding
from ddpm.utils.errors import DdpmError


@pytest.fixture
def build(configure: Callable[..., Config]) -> Callable[..., DiT]:
    """A small transformer for images of ten classes, with some settings changed; none of its weights is zero."""

    def make(spec: ImageSpec, **changes: object) -> DiT:
        small = {"network": "dit", "clusters": 1, "base_channels": 64, "patch_size": 4}
        model = configure({f"model.{key}": value for key, value in (small | changes).items()}).model
        torch.manual_seed(0)
        network = build_network(model, spec)
        assert isinstance(network, DiT)
        return network

    return make


def randomized(network: DiT) -> DiT:
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.normal_(std=0.1)
    return network.eval()


@pytest.mark.parametrize(("size", "channels", "patch"), [(28, 1, 4), (28, 1, 2), (32, 3, 4), (12, 3, 1)])
def test_a_prediction_is_shaped_like_the_image_and_zero_at_first(
    build: Callable[..., DiT], size: int, channels: int, patch: int
):
    network = build(ImageSpec(size, channels, 10), patch_size=patch)
    x_t, t, labels = torch.randn(3, channels, size, size), torch.tensor([0, 5, 99]), torch.tensor([0, 9, NULL_LABEL])
    assert not network(x_t, t, labels).any()
    found = randomized(network)(x_t, t, labels)
    assert found.shape == x_t.shape
    assert found.std() > 0.01


def test_only_the_patch_need_divide_the_image(build: Callable[..., DiT]):
    network = build(ImageSpec(30, 1, 10), patch_size="auto")
    assert network.positions.shape[0] == 15**2
    with pytest.raises(DdpmError, match="bring them to 26 or 28 pixels"):
        build(ImageSpec(27, 1, 10), patch_size="auto")


def test_time_label_and_every_pixel_matter(build: Callable[..., DiT]):
    network = randomized(build(ImageSpec(12, 1, 10)))
    x_t, t, labels = torch.randn(1, 1, 12, 12), torch.tensor([40]), torch.tensor([3])
    found = network(x_t, t, labels)
    assert not torch.allclose(network(x_t, t + 30, labels), found)
    assert not torch.allclose(network(x_t, t, labels + 1), found)
    assert torch.equal(network(x_t, t), network(x_t, t, torch.tensor([NULL_LABEL])))
    changed = x_t.clone()
    changed[..., 0, 0] += 1
    # Attention brings it to the patch that is farthest away.
    assert not torch.allclose(network(changed, t, labels)[..., -1, -1], found[..., -1, -1])


def test_patches_are_told_apart_by_their_place(build: Callable[..., DiT]):
    network = randomized(build(ImageSpec(8, 1, 10)))
    x_t, t = torch.randn(1, 1, 8, 8), torch.tensor([40])
    moved = network(x_t.roll(4, -1), t).roll(-4, -1)
    assert not torch.allclose(moved, network(x_t, t), atol=1e-3)
    network.positions.zero_()
    torch.testing.assert_close(network(x_t.roll(4, -1), t).roll(-4, -1), network(x_t, t), rtol=1e-4, atol=1e-5)


def test_position_embedding_is_of_row_and_column():
    found = position_embedding(3, 16).numpy()
    frequencies = 10_000.0 ** (-np.arange(4) / 3)
    for place in range(9):
        angles = [number * frequencies for number in divmod(place, 3)]
        expected = np.concatenate([np.r_[np.sin(each), np.cos(each)] for each in angles])
        np.testing.assert_allclose(found[place], expected, atol=1e-6)


def test_each_block_starts_as_the_identity(build: Callable[..., DiT]):
    block = build(ImageSpec(8, 1, 10)).blocks[0]
    x = torch.randn(2, 4, 64)
    assert torch.equal(block(x, torch.randn(2, 64)), x)


def test_its_operations_are_counted_and_its_settings_checked(
    build: Callable[..., DiT], configure: Callable[..., Config]
):
    spec = ImageSpec(28, 1, 10)
    model = configure({"model.network": "dit", "model.base_channels": 64, "model.patch_size": 4}).model
    # Tokens × (QKV, output and perceptron: 12 width² multiply-adds) × blocks, and what is small beside it.
    assert flops_per_image(model, spec) == pytest.approx(2 * 49 * 12 * 64**2 * model.mid_blocks, rel=0.25)
    with pytest.raises(DdpmError, match=r"model\.base_channels=48: the network dit needs a multiple of 32"):
        build(spec, base_channels=48)
    with pytest.raises(DdpmError, match=r"model\.patch_size=4 does not divide the images' 30 pixels"):
        build(ImageSpec(30, 1, 10), channel_multipliers=[1, 2])
