"""The order of each sampler: its error against the exact solution, as the steps grow in number.

Pixels are of a mixture of Gaussians, so that E[x_0 | x_t] is known. The probability-flow ODE keeps every pixel at its
quantile, so that it leads from x_T to F_t⁻¹(F_T(x_T)), F being the mixture's distribution functions at the two times.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from ddpm.diffusion.samplers import SAMPLERS, Sampler, ddim, ddpm, dpmpp_2m, dpmpp_2s, flow_heun, heun, unipc
from ddpm.diffusion.schedule import Schedule, beta_of

WEIGHTS, MEANS, DEVIATIONS = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), np.array([0.25, 0.35])
# What the slope must be at least, and what the papers name the order.
ORDERS: dict[str, tuple[Sampler, int]] = {
    "ddim": (ddim(0.0), 1),
    "dpmpp_2m": (dpmpp_2m(0.0), 2),
    "dpmpp_2s": (dpmpp_2s(0.0), 2),
    "heun": (heun(), 2),
    "flow_heun": (flow_heun(), 2),
    "unipc of order 1": (unipc(1), 2),
    "unipc": (unipc(2), 3),
    "unipc of order 3": (unipc(3), 4),
}
NOISY_ORDERS: dict[str, tuple[Sampler, int]] = {
    "ddpm": (ddpm("small"), 1),
    "ddim": (ddim(1.0), 1),
    "dpmpp_2m": (dpmpp_2m(1.0), 2),
    "dpmpp_2s": (dpmpp_2s(1.0), 2),
}


def log_snr_schedule(steps: int) -> Schedule:
    """``steps`` steps, one more than intervals, evenly from log √SNR = 2 at t = 0 down to −4."""
    return Schedule(beta_of(torch.sigmoid(2 * torch.linspace(2, -4, steps, dtype=torch.float64))), torch.arange(steps))


def exact_denoiser(schedule: Schedule, weights: np.ndarray, means: np.ndarray, deviations: np.ndarray) -> Callable:
    """E[x_0 | x_t] for pixels of the mixture: a mean over its parts, by how likely each is for x_t."""

    def denoise(x_t: Tensor, t: int) -> Tensor:
        signal = schedule.alpha_bar[t]
        parts, log_likelihoods = [], []
        for weight, mean, deviation in zip(weights, means, deviations, strict=True):
            variance = signal * deviation**2 + 1 - signal
            away = x_t - signal.sqrt() * mean
            parts.append(mean + signal.sqrt() * deviation**2 / variance * away)
            log_likelihoods.append(np.log(weight) - variance.log() / 2 - away**2 / (2 * variance))
        return (torch.softmax(torch.stack(log_likelihoods), 0) * torch.stack(parts)).sum(0)

    return denoise


def moved(x_T: float, first: float, last: float) -> float:
    """Where the ODE leads a pixel from the time of ᾱ ``last`` to that of ``first``: its quantile there."""

    def distribution(x: float, signal: float) -> float:
        spread = np.sqrt(signal * DEVIATIONS**2 + 1 - signal)
        return float((WEIGHTS * norm.cdf((x - np.sqrt(signal) * MEANS) / spread)).sum())

    quantile = distribution(x_T, last)
    return float(brentq(lambda x: distribution(x, first) - quantile, -9, 9, xtol=1e-14, rtol=1e-14))


def ode_error(sampler: Sampler, intervals: int) -> float:
    """Root mean square distance from the exact solution at the last time above 0, over pixels of all quantiles."""
    schedule = log_snr_schedule(intervals + 1)
    x_T = torch.linspace(-2, 2, 15, dtype=torch.float64)[:, None, None, None]
    seen: list[Tensor] = []
    denoise = exact_denoiser(schedule, WEIGHTS, MEANS, DEVIATIONS)
    sampler(denoise, x_T, schedule, lambda: torch.zeros_like(x_T), lambda _, x_t, __: seen.append(x_t))
    first, last = schedule.alpha_bar[0].item(), schedule.alpha_bar[-1].item()
    exact = torch.tensor([moved(x, first, last) for x in x_T.flatten().tolist()], dtype=torch.float64)
    return (seen[-2].flatten() - exact).square().mean().sqrt().item()


def variance_error(sampler: Sampler, intervals: int) -> float:
    """Of Gaussian pixels, the distance of the samples' variance from the exact one at the last time above 0.

    The denoiser is then linear, and so is all that a sampler does: it is run on x_T and on the noise of every step
    alone, and the variances that they add are summed.
    """
    schedule, deviation = log_snr_schedule(intervals + 1), 0.35
    impulses = torch.eye(intervals + 2, dtype=torch.float64)[:, :, None, None, None]
    asked = iter(impulses[1:])
    seen: list[Tensor] = []
    denoise = exact_denoiser(schedule, np.ones(1), np.zeros(1), np.full(1, deviation))
    sampler(denoise, impulses[0], schedule, lambda: next(asked), lambda _, x_t, __: seen.append(x_t))
    first, last = schedule.alpha_bar[0], schedule.alpha_bar[-1]
    gains = seen[-2].flatten().square()
    found = gains[0] * (last * deviation**2 + 1 - last) + gains[1:].sum()
    return (found - (first * deviation**2 + 1 - first)).abs().item()


def slope(error: Callable[[Sampler, int], float], sampler: Sampler, intervals: list[int]) -> float:
    """How steeply log error falls with log steps."""
    return -float(np.polyfit(np.log(intervals), np.log([error(sampler, count) for count in intervals]), 1)[0])


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_against_the_exact_ode_of_a_mixture_falls_with_the_order(name: str):
    sampler, order = ORDERS[name]
    assert slope(ode_error, sampler, [40, 80, 160, 320]) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("name", NOISY_ORDERS)
def test_the_variance_of_samples_of_a_gaussian_nears_the_exact_one_with_the_order(name: str):
    sampler, order = NOISY_ORDERS[name]
    assert slope(variance_error, sampler, [160, 320, 640]) == pytest.approx(order, abs=0.35)


def test_every_sampler_is_here():
    assert {name.partition(" ")[0] for name in ORDERS | NOISY_ORDERS} == set(SAMPLERS)


def test_higher_orders_are_nearer_at_twenty_evaluations():
    errors = {name: ode_error(ORDERS[name][0], 20) for name in ("ddim", "dpmpp_2m", "unipc")}
    assert errors["ddim"] > 3 * errors["dpmpp_2m"] > 3 * errors["unipc"]
