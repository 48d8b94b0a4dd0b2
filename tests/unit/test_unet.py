import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ddpm.config import Config
from ddpm.data.image_set import ImageSpec
from ddpm.models.build import build_network, fit_to_images, flops_per_image
from ddpm.models.layers import timestep_embedding
from ddpm.models.networks import NETWORKS, NULL_LABEL
from ddpm.models.networks.unet import NearestUpsample, ResidualBlock, SelfAttention, UNet
from ddpm.utils.errors import DdpmError

SPEC = ImageSpec(28, 1, 10)
SHAPES = {
    "the default": ({}, 28),
    "pixels as they are": ({"patch_size": 1, "channel_multipliers": [1, 2, 4]}, 28),
    "levels 28, 14, 7, 4": ({"patch_size": 1, "channel_multipliers": [1, 1, 2, 2]}, 28),
    "levels down to 1 pixel": ({"patch_size": 4, "channel_multipliers": [1, 1, 2, 2, 2]}, 28),
    "patches of 4": ({"patch_size": 4, "channel_multipliers": [1, 2]}, 28),
    "shift, no attention": ({"time_conditioning": "shift", "attention": False}, 28),
    "one level": ({"channel_multipliers": [2]}, 28),
    "32 pixels": ({"patch_size": 2, "channel_multipliers": [1, 2, 2]}, 32),
    "several groups": ({"base_channels": 12, "norm_groups": 4}, 28),
    "transposed convolutions": ({"patch_size": 1, "channel_multipliers": [1, 2, 2, 2], "upsampling": "transposed"}, 28),
    "three attention heads that do not divide": ({"base_channels": 52, "channel_multipliers": [1, 2]}, 28),
    "dropout": ({"dropout": 0.5}, 28),
}


@pytest.fixture
def build(configure: Callable[..., Config]) -> Callable[..., UNet]:
    """A small network with some settings changed, for grey images of ten classes unless others are given."""
    small = {"base_channels": 16, "blocks_per_level": 1, "mid_blocks": 1}

    def make(spec: ImageSpec = SPEC, **changes: object) -> UNet:
        torch.manual_seed(0)
        model = configure({f"model.{key}": value for key, value in (small | changes).items()}).model
        network = build_network(model, spec)
        assert isinstance(network, UNet)
        return network

    return make


def randomize_zeros(network: UNet) -> UNet:
    """Give random weights to the layers that start at zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.normal_(std=0.1)
    return network


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("changes", "size"), SHAPES.values(), ids=SHAPES.keys())
def test_prediction_is_shaped_like_the_image_and_a_fresh_network_predicts_zero(
    build: Callable[..., UNet], changes: dict[str, object], size: int, channels: int
):
    network = build(ImageSpec(size, channels, 10), **changes)
    x_t = torch.randn(2, channels, size, size)
    prediction = network(x_t, torch.tensor([0, 999]))
    assert prediction.shape == x_t.shape
    assert not prediction.any()


def test_the_default_network_has_its_published_size_and_initial_weights(configure: Callable[..., Config]):
    torch.manual_seed(0)
    weights = [weight.detach() for weight in build_network(configure({"model.clusters": 1}).model, SPEC).parameters()]
    assert sum(weight.numel() for weight in weights) == 593_764
    # Another order of construction, or another initialization, would change every published number.
    assert sum(weight.double().square().sum().item() for weight in weights) == pytest.approx(1982.3171338334, rel=1e-9)


def test_xavier_initialization_leaves_no_branch_at_zero(build: Callable[..., UNet]):
    network = build(initialization="xavier")
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            fan_in, fan_out = (module.weight[0].numel(), module.weight[:, 0].numel())
            bound = math.sqrt(6 / (fan_in + fan_out))
            assert 0.7 * bound < module.weight.abs().max() <= bound * (1 + 1e-6), name
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("changes", [{}, {"time_conditioning": "shift", "attention": False}], ids=["film", "shift"])
def test_prediction_depends_on_time_and_on_every_pixel(build: Callable[..., UNet], changes: dict[str, object]):
    network = randomize_zeros(build(**changes)).eval()
    x_t = torch.randn(1, 1, 28, 28, requires_grad=True)
    at_0, at_500 = (network(x_t, torch.tensor([t])) for t in (0, 500))
    assert (at_0 - at_500).abs().max() > 1e-3
    at_0[0, 0, 14, 14].backward()
    assert x_t.grad is not None
    assert (x_t.grad != 0).all()


def test_images_of_a_batch_do_not_influence_each_other(build: Callable[..., UNet]):
    network = randomize_zeros(build()).eval()
    x_t, t = torch.randn(3, 1, 28, 28), torch.tensor([5, 500, 900])
    together = network(x_t, t)
    for i in range(3):
        torch.testing.assert_close(network(x_t[i : i + 1], t[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conditioning", ["film", "shift"])
@pytest.mark.parametrize("attention", [True, False])
def test_every_parameter_learns(build: Callable[..., UNet], conditioning: str, attention: bool):
    network = build(time_conditioning=conditioning, attention=attention, channel_multipliers=[1, 2])
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    # Zero layers hide what lies before them: the last convolution moves first, then the branches' ends, then the rest.
    for _ in range(3):
        optimizer.zero_grad()
        loss = (network(torch.randn(4, 1, 28, 28), torch.tensor([1, 100, 500, 900])) - torch.randn(4, 1, 28, 28)) ** 2
        loss.sum().backward()
        optimizer.step()
    still = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert still == []


def test_film_scales_and_shifts_what_the_second_norm_gives():
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, 4, 2, "film", 0.0)
    with torch.no_grad():
        block.time.weight.zero_()
        block.time.bias.copy_(torch.cat([torch.full((8,), -1.0), torch.full((8,), 0.5)]))
        block.conv2.weight.normal_()
    x = torch.randn(2, 8, 6, 6)
    # A scale of −1 leaves nothing of the image in the branch: only the shift passes.
    branch = block(x, torch.randn(2, 4)) - x
    torch.testing.assert_close(branch[0], branch[1], rtol=1e-4, atol=1e-4)
    silu = 0.5 / (1 + math.exp(-0.5))
    expected = block.conv2.weight.sum((1, 2, 3)) * silu
    torch.testing.assert_close(branch[0, :, 3, 3], expected, rtol=1e-4, atol=1e-4)


def test_shift_adds_to_what_the_first_convolution_gives():
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, 4, 2, "shift", 0.0)
    torch.nn.init.normal_(block.conv2.weight)
    x, time = torch.randn(2, 8, 6, 6), torch.randn(2, 4)
    silu = torch.nn.functional.silu
    h = block.conv1(silu(block.norm1(x))) + (time @ block.time.weight.T + block.time.bias)[:, :, None, None]
    torch.testing.assert_close(block(x, time), x + block.conv2(silu(block.norm2(h))), rtol=1e-5, atol=1e-5)


def test_patches_enter_and_leave_the_network_as_channels(build: Callable[..., UNet]):
    network, met = build(patch_size=2), []
    network.conv_in.register_forward_hook(lambda _, given, __: met.append(given[0]))
    network.conv_out.register_forward_hook(lambda *_: met[0])  # the folded image comes out as it went in
    x_t = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(network(x_t, torch.tensor([3, 700])), x_t, rtol=0, atol=0)
    patches = x_t.reshape(2, 14, 2, 14, 2).permute(0, 2, 4, 1, 3).reshape(2, 4, 14, 14)
    assert torch.equal(met[0], patches)


def test_attention_is_the_textbook_formula():
    torch.manual_seed(0)
    attention = SelfAttention(64, 8)
    with torch.no_grad():
        attention.out.weight.copy_(torch.eye(64)[:, :, None, None])
        x = torch.randn(2, 64, 3, 5)
        q, k, v = attention.qkv(attention.norm(x)).flatten(2).chunk(3, 1)
        heads = []
        for part in range(2):
            rows = slice(32 * part, 32 * part + 32)
            scores = torch.softmax(q[:, rows].transpose(1, 2) @ k[:, rows] / math.sqrt(32), -1)
            heads.append(v[:, rows] @ scores.transpose(1, 2))
        expected = x + torch.cat(heads, 1).view(2, 64, 3, 5)
        torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


def test_timestep_embedding_agrees_with_plain_numpy():
    t = np.array([0, 1, 17, 999])
    angles = t[:, None] / 10_000 ** (np.arange(16) / 15)
    found = timestep_embedding(torch.from_numpy(t), 32)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=2e-4)


def test_timestep_embedding_tells_all_times_apart():
    embedding = timestep_embedding(torch.arange(1000), 32)
    assert torch.pdist(embedding).min() > 0.05


def test_dropout_acts_in_training_only(build: Callable[..., UNet]):
    network = randomize_zeros(build(dropout=0.5))
    x_t, t = torch.randn(1, 1, 28, 28), torch.tensor([3])
    assert not torch.equal(network.train()(x_t, t), network(x_t, t))
    assert torch.equal(network.eval()(x_t, t), network(x_t, t))


def test_flops_of_a_single_convolutional_path_are_counted_by_hand(configure: Callable[..., Config]):
    changes = {"base_channels": 8, "channel_multipliers": [1], "blocks_per_level": 1, "mid_blocks": 1, "patch_size": 1}
    model = configure({f"model.{key}": value for key, value in changes.items()}, {"model.attention": False}).model
    pixels, c, time = 28 * 28, 8, 32
    convolutions = 1 * c + (c * c * 2) + (c * c * 2) + (2 * c * c + c * c) + c * 1  # in, down, mid, up, out
    shortcut = 2 * c * c
    linear = c * time + time * time + 3 * (time * 2 * c)
    assert flops_per_image(model, SPEC) == 2 * (pixels * (9 * convolutions + shortcut) + linear)


def test_prediction_depends_on_the_label_and_no_labels_are_null_labels(build: Callable[..., UNet]):
    network = randomize_zeros(build(ImageSpec(28, 1, 3)))
    x_t, t = torch.randn(4, 1, 28, 28), torch.full((4,), 500)
    found = network(x_t[:1].expand(4, -1, -1, -1), t, torch.tensor([0, 1, 2, NULL_LABEL]))
    assert len(found.detach().flatten(1).round(decimals=4).unique(dim=0)) == 4
    assert torch.equal(network(x_t, t), network(x_t, t, torch.full((4,), NULL_LABEL)))


def test_an_unconditional_network_has_no_weights_for_labels(build: Callable[..., UNet]):
    for network in (build(classes=0, clusters=1), build(ImageSpec(28, 1, 0), clusters=1)):
        assert not any("label" in name for name, _ in network.named_parameters())
    assert any("label" in name for name, _ in build().named_parameters())


def test_settings_and_images_that_do_not_fit_are_refused(build: Callable[..., UNet]):
    with pytest.raises(DdpmError, match=r"model\.patch_size=4 does not divide .* 30 pixels: lower it, or .* 28 or 32 "):
        build(ImageSpec(30, 1, 0), patch_size=4, channel_multipliers=[1, 2])
    with pytest.raises(DdpmError, match=r"model\.norm_groups=16 leaves each value alone in its group"):
        build(ImageSpec(4, 1, 0), patch_size=2, channel_multipliers=[1, 1, 1], norm_groups=16)


@pytest.mark.parametrize(
    ("size", "patch_size", "multipliers"),
    [
        (28, 2, (1, 2)),
        (32, 2, (1, 2)),
        (64, 4, (1, 2)),
        (8, 1, (1, 2)),
        (7, 1, (1,)),
        (16, 1, (1, 2)),
        (128, 4, (1, 2, 4)),
        (512, 4, (1, 2, 4, 4, 4)),
    ],
)
def test_resolutions_are_chosen_by_the_size(
    configure: Callable[..., Config], size: int, patch_size: int, multipliers: tuple[int, ...]
):
    auto = {"model.patch_size": "auto", "model.channel_multipliers": "auto"}
    found = fit_to_images(configure(auto).model, ImageSpec(size, 3, 0))
    assert (found.patch_size, found.channel_multipliers) == (patch_size, multipliers)
    chosen = {"model.patch_size": patch_size, "model.channel_multipliers": list(multipliers)}
    given = configure(chosen, {"model.clusters": 200}).model
    assert found == given == fit_to_images(given, ImageSpec(size, 3, 0))


def test_a_size_that_cannot_be_halved_is_refused_with_the_nearest_that_can(configure: Callable[..., Config]):
    model = configure().model
    for size, nearest in ((30, "28 or 32"), (66, "64 or 80"), (100, "96 or 112"), (27, "24 or 28"), (9, "8 or 10")):
        with pytest.raises(DdpmError, match=rf"^images of {size} × {size} pixels .*: bring them to {nearest} pix"):
            fit_to_images(model, ImageSpec(size, 1, 10))
        for fitting in map(int, nearest.split(" or ")):
            assert build_network(model, ImageSpec(fitting, 1, 0))
    aligned = configure({"model.patch_size": 2, "model.channel_multipliers": [1, 2]}).model
    x_t = torch.randn(1, 1, 30, 30)
    assert build_network(aligned, ImageSpec(30, 1, 0))(x_t, torch.tensor([3])).shape == x_t.shape


def test_clusters_are_as_many_as_the_images_can_fill(configure: Callable[..., Config]):
    model = configure({"model.clusters": "auto"}).model
    for classes, fewest, clusters in ((10, 4879, 200), (10, 1250, 52), (10, 23, 1), (0, 54_000, 200), (0, 1200, 12)):
        assert fit_to_images(model, ImageSpec(28, 1, classes), fewest).clusters == clusters
    assert fit_to_images(model.model_copy(update={"clusters": 50}), ImageSpec(28, 1, 10), 200).clusters == 50


def test_an_unknown_network_is_refused_with_those_there_are(configure: Callable[..., Config]):
    assert list(NETWORKS) == ["unet", "dit"]
    with pytest.raises(DdpmError, match=r"^unknown network transformer: choose one of unet, dit\.$"):
        build_network(configure().model.model_copy(update={"network": "transformer"}), SPEC)


def test_nearest_upsampling_repeats_every_pixel_and_has_its_gradient():
    torch.manual_seed(0)
    layer = NearestUpsample(4)
    ours, theirs = (
        torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1), requires_grad=True) for _ in "ab"
    )
    found = layer(ours, torch.Size([6, 10]))
    expected = layer.conv(torch.nn.functional.interpolate(theirs, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(found, expected)
    for result in (found, expected):
        result.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
