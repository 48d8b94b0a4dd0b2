"""A diffusion transformer that predicts the noise (or v, or x_0, …) from x_t and t."""

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

from ddpm.models.layers import dropout_layer, timestep_embedding, zero_init
from ddpm.models.networks import NETWORKS, NULL_LABEL
from ddpm.utils.errors import DdpmError

_HEAD_CHANNELS = 32


def position_embedding(side: int, size: int) -> Tensor:
    """Sinusoidal embedding of the places of a ``side`` × ``side`` grid, row by row: float32 [side², size].

    Half of it is of the row, half of the column: Peebles & Xie 2023, their code. ``size`` is a multiple of 4.
    """
    of_place = timestep_embedding(torch.arange(side), size // 2)
    rows, columns = of_place.repeat_interleave(side, 0), of_place.repeat(side, 1)
    return torch.cat([rows, columns], 1)


class Block(nn.Module):
    """Self-attention and a two-layer perceptron around shortcuts, each scaled, shifted and gated by the condition.

    The layer that computes these starts at zero, so that the block starts as the identity: adaLN-Zero, Peebles & Xie
    2023, §3.2.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = max(1, width // _HEAD_CHANNELS)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), dropout_layer(dropout), nn.Linear(4 * width, width)
        )
        self.modulation = zero_init(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: [n, tokens, width]; condition: [n, width]. Returns x's shape."""
        n, tokens, width = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        qkv = self.qkv(self.norm1(x) * (1 + scale1) + shift1).view(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + gate1 * self.attended(attended)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


@NETWORKS.register("dit")
class DiT(nn.Module):
    """A transformer over patches of the image: Peebles & Xie 2023, "Scalable Diffusion Models with Transformers".

    input_channels, output_channels: of what it is given and of its prediction. image_size: pixels a side, a multiple of
    patch_size. classes: class labels, whose embedding is added to the time's; 0: none. base_channels: of every token, a
    multiple of 4, and of 32 where it is above. mid_blocks: blocks, one after the other. patch_size: p × p pixels make a
    token. dropout: in the perceptrons. Raises DdpmError where base_channels, or image_size and patch_size, do not fit.
    """

    one_resolution = True

    def __init__(
        self,
        *,
        input_channels: int,
        output_channels: int,
        image_size: int,
        classes: int,
        base_channels: int,
        mid_blocks: int,
        patch_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise DdpmError(f"model.patch_size={patch_size} does not divide the images' {image_size} pixels: lower it.")
        if base_channels % (_HEAD_CHANNELS if base_channels > _HEAD_CHANNELS else 4):
            raise DdpmError(
                f"model.base_channels={base_channels}: the network dit needs a multiple of {_HEAD_CHANNELS}, or below "
                "it one of 4."
            )
        self.classes, self.width = classes, base_channels
        self.conv_in = nn.Conv2d(input_channels, base_channels, patch_size, patch_size)
        # Not a weight: it is the same for all networks of these settings.
        positions = position_embedding(image_size // patch_size, base_channels)
        self.register_buffer("positions", positions, persistent=False)
        self.time_mlp = nn.Sequential(
            nn.Linear(base_channels, base_channels), nn.SiLU(), nn.Linear(base_channels, base_channels)
        )
        self.label_embedding = nn.Embedding(classes + 1, base_channels) if classes else None
        if self.label_embedding:
            nn.init.normal_(self.label_embedding.weight, std=0.5)
        self.blocks = nn.ModuleList(Block(base_channels, dropout) for _ in range(mid_blocks))
        self.norm_out = nn.LayerNorm(base_channels, elementwise_affine=False, eps=1e-6)
        self.modulation = zero_init(nn.Linear(base_channels, 2 * base_channels))
        self.conv_out = zero_init(nn.Conv2d(base_channels, output_channels * patch_size**2, 1))
        self.unfold = nn.PixelShuffle(patch_size)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x_t: float [n, input_channels, h, w]; t: int64 [n] in 0 … T−1. Returns float [n, output_channels, h, w].

        labels: int64 [n] in 0 … classes−1, or `NULL_LABEL`; None is the null label for all images. An unconditional
        network takes None alone.
        """
        condition = self.time_mlp(timestep_embedding(t, self.width))
        if self.label_embedding is not None:
            labels = torch.full_like(t, NULL_LABEL) if labels is None else labels
            condition = condition + self.label_embedding(labels.remainder(self.classes + 1))
        condition = F.silu(condition)
        patches = self.conv_in(x_t)
        x = patches.flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        x = self.norm_out(x) * (1 + scale) + shift
        return self.unfold(self.conv_out(x.transpose(1, 2).reshape(patches.shape)))
