"""The preset `baseline` is the predecessor's network, built here again in plain torch from its description."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from ruamel.yaml import YAML
from torch import Tensor, nn

from ddpm.config import ModelConfig, parse_config
from ddpm.data.image_set import ImageSpec
from ddpm.models.build import build_network, flops_per_image
from ddpm.models.networks.unet import UNet
from presets.__main__ import FOLDER, merge

BASE = 128
TIME = 4 * BASE


class Block(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with the time added between, around a shortcut."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = nn.Sequential(norm(channels_in), nn.SiLU(), nn.Conv2d(channels_in, channels_out, 3, padding=1))
        self.shift = nn.Linear(TIME, channels_out)
        self.second = nn.Sequential(norm(channels_out), nn.SiLU(), nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.first(x) + self.shift(F.silu(time))[:, :, None, None]
        return self.second(h) + self.shortcut(x)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(groups for groups in range(1, 17) if channels % groups == 0), channels)


class Predecessor(nn.Module):
    """The network of the course project, for images of so many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        one, two, four = BASE, 2 * BASE, 4 * BASE
        self.time = nn.Sequential(nn.Linear(TIME, 4 * TIME), nn.SiLU(), nn.Linear(4 * TIME, TIME))
        self.conv_in = nn.Conv2d(channels, one, 3, padding=1)
        self.down = nn.ModuleList(
            nn.ModuleList([Block(a, b), Block(b, b)]) for a, b in ((one, one), (one, two), (two, four))
        )
        self.shrink = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for width in (one, two))
        self.mid = nn.ModuleList([Block(four, four), Block(four, four)])
        self.up = nn.ModuleList(
            nn.ModuleList([Block(2 * a, b), Block(b, b)]) for a, b in ((four, two), (two, one), (one, one))
        )
        self.grow = nn.ModuleList(nn.ConvTranspose2d(width, width, 2, stride=2) for width in (two, one))
        self.out = nn.Sequential(norm(one), nn.SiLU(), nn.Conv2d(one, channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        frequencies = torch.exp(-torch.arange(TIME // 2) * (math.log(10_000) / (TIME // 2 - 1)))
        angles = t[:, None] * frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        h, skips = self.conv_in(x), []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                h = block(h, time)
            skips.append(h)
            h = self.shrink[level](h) if level < 2 else h
        for block in self.mid:
            h = block(h, time)
        for level, blocks in enumerate(self.up):
            skip = skips.pop()
            if h.shape[2:] != skip.shape[2:]:
                h = F.interpolate(h, skip.shape[2:], mode="bilinear", align_corners=False)
            h = torch.cat([h, skip], 1)
            for block in blocks:
                h = block(h, time)
            h = self.grow[level](h) if level < 2 else h
        return self.out(h)

    def modules_like(self, ours: UNet) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Each part of this network with the part of ``ours`` that does the same."""
        yield self.time, ours.time_mlp
        yield self.conv_in, ours.conv_in
        yield self.down, ours.down
        yield self.shrink, ours.downsample
        yield self.mid, nn.ModuleList([*ours.mid_in, *ours.mid])
        # Ours counts the levels of both sides from the full resolution down.
        yield self.up, nn.ModuleList(reversed(list(ours.up)))
        yield self.grow, nn.ModuleList(reversed(list(ours.upsample)))
        yield self.out, nn.ModuleList([ours.norm_out, ours.conv_out])


@pytest.fixture(scope="module")
def model(parameters: Callable[..., dict[str, Any]]) -> ModelConfig:
    """The preset's section `model`."""
    values = parameters()
    merge(values, YAML(typ="safe").load(FOLDER / "baseline.yaml"), "baseline")
    return parse_config(values, "baseline").model


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize(("channels", "expected"), [(1, 31_935_617), (3, 31_940_227)])
def test_the_network_has_the_predecessors_number_of_parameters(model: ModelConfig, channels: int, expected: int):
    with torch.device("meta"):
        theirs, ours = Predecessor(channels), build_network(model, ImageSpec(28, channels, 10))
    assert count(theirs) == count(ours) == expected
    assert isinstance(ours, UNet)
    for their_part, our_part in theirs.modules_like(ours):
        assert [weight.shape for weight in their_part.parameters()] == [w.shape for w in our_part.parameters()]


@pytest.mark.parametrize("size", [28, 30], ids=["28, 14, 7 pixels", "30, 15, 8 pixels"])
def test_the_network_gives_the_predecessors_output_with_its_weights(model: ModelConfig, size: int):
    torch.manual_seed(0)
    theirs, ours = Predecessor(1), build_network(model, ImageSpec(size, 1, 10))
    assert isinstance(ours, UNet)
    with torch.no_grad():
        for their_part, our_part in theirs.modules_like(ours):
            for weight, our_weight in zip(their_part.parameters(), our_part.parameters(), strict=True):
                weight.add_(torch.randn_like(weight), alpha=0.01)  # norms and biases too
                our_weight.copy_(weight)
        x_t, t = torch.randn(2, 1, size, size), torch.tensor([3, 700])
        expected = theirs(x_t, t)
        assert expected.std() > 0.1
        assert (expected[0] - theirs(x_t, t.flip(0))[0]).abs().max() > 1e-3
        torch.testing.assert_close(ours(x_t, t), expected, rtol=1e-3, atol=1e-4)


def test_weights_start_as_xavier_uniform_and_biases_at_zero(model: ModelConfig):
    torch.manual_seed(0)
    for name, weight in build_network(model, ImageSpec(28, 1, 10)).named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.full_like(weight, "norm" in name and "weight" in name)), name
        else:
            bound = math.sqrt(6 / (weight[0].numel() + weight[:, 0].numel()))
            assert weight.abs().max() <= bound, name
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name


def test_a_forward_pass_takes_as_many_operations_as_the_preset_says(model: ModelConfig):
    assert flops_per_image(model, ImageSpec(28, 1, 10)) == pytest.approx(5.75e9, rel=0.002)
