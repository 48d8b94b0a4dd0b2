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


def q_posterior_mean(x_0: Tensor, x_t: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor) -> Tensor:
    """Mean of q(x_{t−1} | x_t, x_0). DDPM, eq. 7, with β_t = 1 − ᾱ_t / ᾱ_{t−1}."""
    beta = 1.0 - alpha_bar / alpha_bar_prev
    weight_x_0 = alpha_bar_prev.sqrt() * beta / (1.0 - alpha_bar)
    weight_x_t = (1.0 - beta).sqrt() * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar)
    return weight_x_0 * x_0 + weight_x_t * x_t


def velocity_from(x_0: Tensor, eps: Tensor) -> Tensor:
    """The slope of the straight path (1 − s) x_0 + s eps. Liu et al. 2023, "Flow Straight and Fast", eq. 1."""
    return eps - x_0


def x_0_from_velocity(x_t: Tensor, alpha_bar: Tensor, velocity: Tensor) -> Tensor:
    """Solve eq. 4 of DDPM with eps = x_0 + velocity for x_0: (x_t − √(1−ᾱ_t) velocity) / (√ᾱ_t + √(1−ᾱ_t))."""
    sigma = (1.0 - alpha_bar).sqrt()
    return (x_t - sigma * velocity) / (alpha_bar.sqrt() + sigma)


def x_0_from_mean(x_t: Tensor, alpha_bar: Tensor, mean: Tensor, alpha_bar_prev: Tensor) -> Tensor:
    """Solve `q_posterior_mean` for x_0."""
    zero, one = torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)
    weight_x_0 = q_posterior_mean(one, zero, alpha_bar, alpha_bar_prev)
    return (mean - q_posterior_mean(zero, one, alpha_bar, alpha_bar_prev) * x_t) / weight_x_0


@dataclass(frozen=True)
class Target:
    """What a network may predict, by three formulas of (…, ᾱ_t, …, ᾱ_{t−1}).

    of: (x_0, alpha_bar, eps, alpha_bar_prev) -> the target. to_x_0: (x_t, alpha_bar, prediction, alpha_bar_prev) -> the
    x_0 it stands for. x_0_error: (alpha_bar, alpha_bar_prev) -> the squared error of x_0 per that of the target.
    """

    of: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    to_x_0: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    x_0_error: Callable[[Tensor, Tensor], Tensor]


TARGETS: Registry[Target] = Registry("target")
TARGETS.register("eps")(
    Target(
        of=lambda x_0, alpha_bar, eps, _: eps,
        to_x_0=lambda x_t, alpha_bar, eps, _: x_0_from_eps(x_t, alpha_bar, eps),
        x_0_error=lambda alpha_bar, _: (1.0 - alpha_bar) / alpha_bar,
    )
)
V = TARGETS.register("v")(
    Target(
        of=lambda x_0, alpha_bar, eps, _: v_from(x_0, alpha_bar, eps),
        to_x_0=lambda x_t, alpha_bar, v, _: x_0_from_v(x_t, alpha_bar, v),
        x_0_error=lambda alpha_bar, _: 1.0 - alpha_bar,
    )
)
X_0 = TARGETS.register("x_0")(
    Target(
        of=lambda x_0, alpha_bar, eps, _: x_0,
        to_x_0=lambda x_t, alpha_bar, x_0, _: x_0,
        x_0_error=lambda alpha_bar, _: torch.ones_like(alpha_bar),
    )
)
TARGETS.register("velocity")(
    Target(
        of=lambda x_0, alpha_bar, eps, _: velocity_from(x_0, eps),
        to_x_0=lambda x_t, alpha_bar, velocity, _: x_0_from_velocity(x_t, alpha_bar, velocity),
        x_0_error=lambda alpha_bar, _: (1.0 - alpha_bar) / (alpha_bar.sqrt() + (1.0 - alpha_bar).sqrt()) ** 2,
    )
)
# The mean of q(x_{t−1} | x_t, x_0): DDPM, §3.2. At t = 0 it is x_0.
MEAN = TARGETS.register("mean")(
    Target(
        of=lambda x_0, alpha_bar, eps, alpha_bar_prev: q_posterior_mean(
            x_0, q_sample(x_0, alpha_bar, eps), alpha_bar, alpha_bar_prev
        ),
        to_x_0=x_0_from_mean,
        x_0_error=lambda alpha_bar, alpha_bar_prev: (
            x_0_from_mean(torch.zeros_like(alpha_bar), alpha_bar, torch.ones_like(alpha_bar), alpha_bar_prev) ** 2
        ),
    )
)
