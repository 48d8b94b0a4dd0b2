"""Layers that several networks share."""

import math

import torch
from torch import Tensor, nn


def timestep_embedding(t: Tensor, size: int) -> Tensor:
    """Sinusoidal embedding of integer times t [n] with periods from 2π to 20,000π, as in DDPM's reference code.

    Returns float32 [n, size]: sines, then cosines. ``size`` is even.
    """
    half = size // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000) / max(1, half - 1)))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose rate is a value on the device, 0 outside of training.

    So training and validation are one compiled network; torch's own layer would compile a second.
    """

    rate: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.trained_with = rate
        self.register_buffer("rate", torch.tensor(rate), persistent=False)

    def train(self, mode: bool = True) -> "Dropout":
        """Switch it on or off."""
        self.rate.fill_(self.trained_with if mode else 0.0)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape, which the result has."""
        kept = torch.rand_like(x, dtype=torch.float32) >= self.rate
        return x * kept / (1.0 - self.rate)


def dropout_layer(rate: float) -> nn.Module:
    """A layer that drops this fraction of its input in training."""
    return Dropout(rate) if rate else nn.Identity()


def zero_init(module: nn.Conv2d | nn.Linear) -> nn.Module:
    """Zero a layer, so that the branch it ends starts as nothing and its block as the identity."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
