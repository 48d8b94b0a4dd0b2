"""The training objective: a weighted squared error on the network's target, over times of a density."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ddpm.data.image_set import normalize
from ddpm.diffusion.process import TARGETS, Target, q_sample
from ddpm.diffusion.schedule import build_schedule
from ddpm.utils.registry import Registry

WEIGHTINGS: Registry[Callable[..., Tensor]] = Registry("weighting")
TIME_DENSITIES: Registry[Callable[..., Tensor]] = Registry("time density")
TIME_SAMPLINGS: Registry[Callable[[int, torch.Generator], Tensor]] = Registry("time sampling")


class Predict(Protocol):
    """A network: (x_t [n, c, h, w], t int64 [n], labels int64 [n] or None) -> its prediction, shaped like x_t."""

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None, /) -> Tensor: ...  # noqa: D102


@WEIGHTINGS.register("simple")
def simple(alpha_bar: Tensor) -> Tensor:
    """Weight 1 at every time: L_simple (DDPM, eq. 14), for whichever target. float64 [T]."""
    return torch.ones_like(alpha_bar)


@WEIGHTINGS.register("min_snr")
def min_snr(alpha_bar: Tensor, target: str, min_snr_gamma: float) -> Tensor:
    """min(SNR_t, γ) on the squared error of x_0, expressed for the target: Hang et al. 2023, "Min-SNR Weighting", §3.4.

    alpha_bar: float64 [T]. Returns float64 [T].
    """
    snr = alpha_bar / (1.0 - alpha_bar)
    return snr.clamp(max=min_snr_gamma) * TARGETS[target].x_0_error(snr)


@TIME_DENSITIES.register("uniform")
def uniform(alpha_bar: Tensor) -> Tensor:
    """All times alike (DDPM, algorithm 1): float64 [T], summing to 1."""
    return torch.full_like(alpha_bar, 1.0 / len(alpha_bar))


@TIME_DENSITIES.register("log_normal")
def log_normal(alpha_bar: Tensor, log_sigma_mean: float, log_sigma_std: float) -> Tensor:
    """Times such that log σ_t is normal, with the noise-to-signal ratio σ_t = √(1/ᾱ_t − 1), whatever the schedule.

    Karras et al. 2022, "Elucidating the Design Space", §5. Returns float64 [T], summing to 1.
    """
    log_sigma = (1.0 / alpha_bar - 1.0).log() / 2.0
    between = (log_sigma[1:] + log_sigma[:-1]) / 2.0
    edges = torch.special.ndtr((between - log_sigma_mean) / log_sigma_std)
    return torch.cat([edges.new_zeros(1), edges, edges.new_ones(1)]).diff()


@TIME_SAMPLINGS.register("uniform")
def uniform_quantiles(count: int, generator: torch.Generator) -> Tensor:
    """Each time on its own: float64 [count], independent in [0, 1)."""
    return torch.rand(count, generator=generator, dtype=torch.float64)


@TIME_SAMPLINGS.register("stratified")
def stratified_quantiles(count: int, generator: torch.Generator) -> Tensor:
    """One time in each of ``count`` equal parts of the density, with a common random offset, so that every batch
    covers all noise levels: float64 [count]. Kingma et al. 2021, "Variational Diffusion Models", appendix I.1.
    """
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    return (torch.arange(count) + offset) / count


@dataclass(frozen=True)
class Objective:
    """E_t,eps w_t ‖target − prediction‖² with t from a density; everything on one device.

    target: what the network predicts. alpha_bar: float32 [T]. weights: float32 [T], w_t. density: float64 [T], of t.
    """

    target: Target
    alpha_bar: Tensor
    weights: Tensor
    density: Tensor
    quantiles: Callable[[int, torch.Generator], Tensor]

    def to(self, device: torch.device) -> "Objective":
        """The same on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("alpha_bar", "weights", "density")}
        return replace(self, **moved)

    def sample_times(self, count: int, generator: torch.Generator) -> Tensor:
        """The training times of one batch: int64 [count] in 0 … T−1."""
        cumulative = self.density.cumsum(0)
        quantiles = self.quantiles(count, generator).to(cumulative.device)
        return torch.searchsorted(cumulative, quantiles, right=True).clamp(max=len(cumulative) - 1)

    def squared_errors(self, predict: Predict, images: Tensor, t: Tensor, eps: Tensor, labels: Tensor | None) -> Tensor:
        """Mean squared error of each image's prediction of the target: float32 [n], unweighted.

        images: uint8 [n, c, h, w]. t: int64 [n]. eps: float32, shaped like images. labels: int64 [n], or None.
        """
        x_0, alpha_bar = normalize(images), self.alpha_bar[t][:, None, None, None]
        prediction = predict(q_sample(x_0, alpha_bar, eps), t, labels)
        return (prediction.float() - self.target.of(x_0, alpha_bar, eps)).square().mean((1, 2, 3))

    def loss(self, squared_errors: Tensor, t: Tensor) -> Tensor:
        """The weighted mean of `squared_errors` at times ``t`` of the density: a scalar."""
        return (self.weights[t] * squared_errors).mean()

    @property
    def grid_weights(self) -> Tensor:
        """Weight of each time where times are not of the density but spread evenly: w_t · T · density, float32 [T]."""
        return self.weights * (self.density * len(self.density)).float()


def build_objective(diffusion: object, train: object) -> Objective:
    """The objective that the settings `diffusion` (schedule, target) and `train` (weighting, density) describe."""
    alpha_bar = build_schedule(diffusion).alpha_bar
    names = {key: str(getattr(train, key)) for key in ("weighting", "time_density", "time_sampling")}
    target = str(getattr(diffusion, "target"))  # noqa: B009 (any object with these attributes)
    weights = WEIGHTINGS.build(names["weighting"], train, alpha_bar=alpha_bar, target=target)
    density = TIME_DENSITIES.build(names["time_density"], train, alpha_bar=alpha_bar)
    quantiles = TIME_SAMPLINGS[names["time_sampling"]]
    return Objective(TARGETS[target], alpha_bar.float(), weights.float(), density, quantiles)
