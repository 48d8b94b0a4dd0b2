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


def zero_init(module: nn.Conv2d | nn.Linear) -> nn.Module:
    """Zero a layer, so that the branch it ends starts as nothing and its block as the identity."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
