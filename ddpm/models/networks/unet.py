"""The U-Net that predicts the noise (or v, or x_0) from x_t and t."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

from ddpm.models.layers import dropout_layer, timestep_embedding, zero_init
from ddpm.models.networks import NETWORKS, NULL_LABEL
from ddpm.utils.errors import DdpmError


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, around a shortcut, with the time put in at the second normalisation.

    time_conditioning: "film" scales and shifts after the second GroupNorm (Perez et al. 2018; Nichol & Dhariwal 2021);
    "shift" adds to the first convolution's output (DDPM).
    """

    def __init__(
        self, channels_in: int, channels_out: int, time_size: int, groups: int, time_conditioning: str, dropout: float
    ) -> None:
        super().__init__()
        self.film = time_conditioning == "film"
        self.norm1 = nn.GroupNorm(groups, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.time = nn.Linear(time_size, channels_out * (2 if self.film else 1))
        self.norm2 = nn.GroupNorm(groups, channels_out)
        self.dropout = dropout_layer(dropout)
        self.conv2 = zero_init(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.shortcut = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: [n, channels_in, h, w]; time: [n, time_size]. Returns [n, channels_out, h, w]."""
        h = self.conv1(F.silu(self.norm1(x)))
        condition = self.time(time)[:, :, None, None]
        if self.film:
            scale, shift = condition.chunk(2, 1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + condition)
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class Blocks(nn.ModuleList):
    """Residual blocks one after the other, conditioned on the same embedding."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: [n, channels_in, h, w]; time: [n, time_size]. Returns the last block's output."""
        for block in self:
            x = block(x, time)
        return x


class SelfAttention(nn.Module):
    """Multi-head attention over all places of the image, around a shortcut. Vaswani et al. 2017; DDPM, appendix B."""

    def __init__(self, channels: int, groups: int, head_channels: int = 32) -> None:
        super().__init__()
        wanted = max(1, channels // head_channels)
        self.heads = next(heads for heads in range(wanted, 0, -1) if channels % heads == 0)
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, channels, h, w]. Returns the same shape."""
        n, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).view(n, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.out(attended.reshape(n, channels, height, width))


@NETWORKS.register("unet")
class UNet(nn.Module):
    """Residual blocks over levels of halving resolution, with a skip from every level down to its twin up.

    input_channels, output_channels: of what it is given and of its prediction. image_size: pixels a side, a multiple of
    patch_size. classes: class labels, whose embedding is added to the time's; 0: none. base_channels: of the first
    level, which ``channel_multipliers`` multiply level by level. blocks_per_level, mid_blocks: residual blocks.
    patch_size: p × p pixels are folded into channels before the first convolution and unfolded after the last, so that
    the network works at 1/p of the resolution. attention: self-attention after the first mid block. time_multiplier:
    size of the sinusoidal embedding and a fourth of the hidden layer behind it, in base_channels. upsampling: "nearest"
    and a 3 × 3 convolution, or a "transposed" 2 × 2 one of stride 2; odd sides are aligned bilinearly. initialization:
    "zero" for the last convolution of every branch and of the network (torch's defaults elsewhere), or "xavier" uniform
    weights and zero biases everywhere. norm_groups: of every GroupNorm.

    Raises DdpmError where image_size and patch_size, or image_size and norm_groups, do not fit together.
    """

    def __init__(
        self,
        *,
        input_channels: int,
        output_channels: int,
        image_size: int,
        classes: int,
        base_channels: int,
        channel_multipliers: Sequence[int],
        blocks_per_level: int,
        mid_blocks: int,
        patch_size: int,
        attention: bool,
        time_conditioning: str,
        time_multiplier: int,
        upsampling: str,
        initialization: str,
        norm_groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [base_channels * multiplier for multiplier in channel_multipliers]
        _check_sizes(image_size, patch_size, norm_groups, [base_channels, *widths])
        self.classes = classes
        self.sinusoid_channels = time_multiplier * base_channels
        time_size, hidden = 4 * base_channels, 4 * self.sinusoid_channels
        self.time_mlp = nn.Sequential(
            nn.Linear(self.sinusoid_channels, hidden), nn.SiLU(), nn.Linear(hidden, time_size)
        )
        self.label_embedding = nn.Embedding(classes + 1, time_size) if classes else None
        if self.label_embedding:
            nn.init.normal_(self.label_embedding.weight, std=0.5)
        self.fold = nn.PixelUnshuffle(patch_size)
        self.unfold = nn.PixelShuffle(patch_size)

        def blocks(count: int, channels_in: int, channels_out: int) -> Blocks:
            inputs = [channels_in, *[channels_out] * (count - 1)][:count]
            return Blocks(
                ResidualBlock(size, channels_out, time_size, norm_groups, time_conditioning, dropout) for size in inputs
            )

        self.conv_in = nn.Conv2d(input_channels * patch_size**2, base_channels, 3, padding=1)
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        above = base_channels
        for level, width in enumerate(widths):
            if level > 0:
                self.downsample.append(nn.Conv2d(above, above, 3, stride=2, padding=1))
                self.upsample.append(UPSAMPLINGS[upsampling](above))
            self.down.append(blocks(blocks_per_level, above, width))
            self.up.append(blocks(blocks_per_level, 2 * width, above))
            above = width
        self.mid_in = blocks(1, above, above)
        self.attention = SelfAttention(above, norm_groups) if attention else nn.Identity()
        self.mid = blocks(mid_blocks - 1, above, above)
        self.norm_out = nn.GroupNorm(norm_groups, base_channels)
        self.conv_out = zero_init(nn.Conv2d(base_channels, output_channels * patch_size**2, 3, padding=1))
        if initialization == "xavier":
            self.apply(_xavier)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x_t: float [n, input_channels, h, w]; t: int64 [n] in 0 … T−1. Returns float [n, output_channels, h, w].

        labels: int64 [n] in 0 … classes−1, or `NULL_LABEL`; None is the null label for all images. An unconditional
        network takes None alone.
        """
        time = self.time_mlp(timestep_embedding(t, self.sinusoid_channels))
        if self.label_embedding is not None:
            labels = torch.full_like(t, NULL_LABEL) if labels is None else labels
            time = time + self.label_embedding(labels.remainder(self.classes + 1))
        time = F.silu(time)
        h = self.conv_in(self.fold(x_t))
        skips = []
        for level in range(len(self.down)):
            if level > 0:
                h = self.downsample[level - 1](h)
            h = self.down[level](h, time)
            skips.append(h)

        h = self.mid(self.attention(self.mid_in(h, time)), time)

        for level in reversed(range(len(self.up))):
            h = torch.cat([h, skips[level]], 1)
            h = self.up[level](h, time)
            if level > 0:
                h = self.upsample[level - 1](h, skips[level - 1].shape[-2:])
        return self.unfold(self.conv_out(F.silu(self.norm_out(h))))


class NearestUpsample(nn.Module):
    """Twice the resolution by repeating pixels, then a 3 × 3 convolution; bilinear where ``size`` is odd."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, size: torch.Size) -> Tensor:
        """h: [n, channels, h, w]. Returns [n, channels, *size]."""
        if size == (2 * h.shape[-2], 2 * h.shape[-1]):
            # Not F.interpolate: on CUDA the deterministic form of its gradient is a sort.
            n, channels, height, width = h.shape
            repeated = h[:, :, :, None, :, None].expand(n, channels, height, 2, width, 2)
            return self.conv(repeated.reshape(n, channels, 2 * height, 2 * width))
        return self.conv(F.interpolate(h, size=size, mode="bilinear"))


class TransposedUpsample(nn.ConvTranspose2d):
    """Twice the resolution by a transposed 2 × 2 convolution; then bilinear where ``size`` is odd."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 2, stride=2)

    def forward(self, h: Tensor, size: torch.Size) -> Tensor:  # type: ignore[override]
        """h: [n, channels, h, w]. Returns [n, channels, *size]."""
        h = super().forward(h)
        return h if h.shape[-2:] == size else F.interpolate(h, size=size, mode="bilinear")


UPSAMPLINGS: dict[str, type[nn.Module]] = {"nearest": NearestUpsample, "transposed": TransposedUpsample}


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_sizes(image_size: int, patch_size: int, norm_groups: int, widths: Sequence[int]) -> None:
    if image_size % patch_size:
        nearest = f"{image_size // patch_size * patch_size} or {-(-image_size // patch_size) * patch_size}"
        raise DdpmError(
            f"model.patch_size={patch_size} does not divide the images' {image_size} pixels: lower it, or bring them "
            f"to {nearest} pixels."
        )
    for level, width in enumerate(widths[1:]):
        one_pixel = patch_size * 2**level >= image_size
        if one_pixel and norm_groups in (width, widths[level]):
            raise DdpmError(
                f"model.norm_groups={norm_groups} leaves each value alone in its group where the {len(widths) - 1} "
                "levels of model.channel_multipliers lead down to one pixel: lower it, or name fewer levels."
            )
