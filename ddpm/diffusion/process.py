"""The forward process, its posterior, and the conversions between what a network may predict. Pure functions.

``alpha_bar`` is always ᾱ_t shaped to broadcast against the images, that is [n, 1, 1, 1] or a scalar tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.utils.registry import Registry


def q_sample(x_0: Tensor, alpha_bar: Tensor, eps: Tensor) -> Tensor:
    """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) eps. DDPM, eq. 4."""
    return alpha_bar.sqrt() * x_0 + (1.0 - alpha_bar).sqrt() * eps


def v_from(x_0: Tensor, alpha_bar: Tensor, eps: Tensor) -> Tensor:
    """V = √ᾱ_t eps − √(1−ᾱ_t) x_0. Salimans & Ho 2022, "Progressive Distillation", §4."""
    return alpha_bar.sqrt() * eps - (1.0 - alpha_bar).sqrt() * x_0


def x_0_from_eps(x_t: Tensor, alpha_bar: Tensor, eps: Tensor) -> Tensor:
    """Solve eq. 4 of DDPM for x_0."""
    return (x_t - (1.0 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


def eps_from_x_0(x_t: Tensor, alpha_bar: Tensor, x_0: Tensor) -> Tensor:
    """Solve eq. 4 of DDPM for eps."""
    return (x_t - alpha_bar.sqrt() * x_0) / (1.0 - alpha_bar).sqrt()


def x_0_from_v(x_t: Tensor, alpha_bar: Tensor, v: Tensor) -> Tensor:
    """x_0 = √ᾱ_t x_t − √(1−ᾱ_t) v."""
    return alpha_bar.sqrt() * x_t - (1.0 - alpha_bar).sqrt() * v


@dataclass(frozen=True)
class Target:
    """What a network may predict, by three formulas of (…, ᾱ_t).

    of: (x_0, alpha_bar, eps) -> the target. to_x_0: (x_t, alpha_bar, prediction) -> the x_0 it stands for.
    x_0_error: (snr) -> the squared error of x_0 per squared error of the target, with SNR_t = ᾱ_t / (1−ᾱ_t).
    """

    of: Callable[[Tensor, Tensor, Tensor], Tensor]
    to_x_0: Callable[[Tensor, Tensor, Tensor], Tensor]
    x_0_error: Callable[[Tensor], Tensor]


TARGETS: Registry[Target] = Registry("target")
EPS = TARGETS.register("eps")(Target(lambda x_0, alpha_bar, eps: eps, x_0_from_eps, lambda snr: 1.0 / snr))
V = TARGETS.register("v")(Target(v_from, x_0_from_v, lambda snr: 1.0 / (snr + 1.0)))
X_0 = TARGETS.register("x_0")(Target(lambda x_0, alpha_bar, eps: x_0, lambda x_t, alpha_bar, x_0: x_0, torch.ones_like))


def q_posterior_mean(x_0: Tensor, x_t: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor) -> Tensor:
    """Mean of q(x_{t−1} | x_t, x_0). DDPM, eq. 7, with β_t = 1 − ᾱ_t / ᾱ_{t−1}."""
    beta = 1.0 - alpha_bar / alpha_bar_prev
    weight_x_0 = alpha_bar_prev.sqrt() * beta / (1.0 - alpha_bar)
    weight_x_t = (1.0 - beta).sqrt() * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar)
    return weight_x_0 * x_0 + weight_x_t * x_t
