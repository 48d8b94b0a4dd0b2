"""The training objective: a weighted squared error on the network's target, over times of a density."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ddpm.data.image_set import normalize
from ddpm.diffusion.bound import decoder_term, divergence
from ddpm.diffusion.process import TARGETS, Target, q_posterior_mean, q_sample
from ddpm.diffusion.schedule import Schedule, before, beta_of, build_schedule
from ddpm.utils.devices import to_device
from ddpm.utils.registry import Registry

WEIGHTINGS: Registry[Callable[..., Tensor]] = Registry("weighting")
TIME_DENSITIES: Registry[Callable[..., Tensor]] = Registry("time density")
TIME_SAMPLINGS: Registry[Callable[[int, torch.Generator], Tensor]] = Registry("time sampling")


class Predict(Protocol):
    """A network: (x_t [n, c, h, w], t int64 [n], labels int64 [n] or None) -> its prediction, shaped like x_t.

    With self-conditioning x_t comes with the last x̂_0 as c more channels; with a learned variance the prediction has c
    more channels, which say in [-1, 1] where the variance lies.
    """

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
    return _snr(alpha_bar).clamp(max=min_snr_gamma) * _x_0_error(alpha_bar, target)


@WEIGHTINGS.register("soft_min_snr")
def soft_min_snr(alpha_bar: Tensor, target: str, min_snr_gamma: float) -> Tensor:
    """γ SNR_t / (γ + SNR_t) on the squared error of x_0, expressed for the target: a smooth min(SNR_t, γ).

    Crowson et al. 2024, "Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion Transformers",
    where γ is 4. Returns float64 [T].
    """
    snr = _snr(alpha_bar)
    return min_snr_gamma * snr / (min_snr_gamma + snr) * _x_0_error(alpha_bar, target)


@WEIGHTINGS.register("p2")
def p2(alpha_bar: Tensor, target: str, p2_k: float = 1.0, p2_gamma: float = 1.0) -> Tensor:
    """1 / (k + SNR_t)^γ on the squared error of eps, expressed for the target. Returns float64 [T].

    Choi et al. 2022, "Perception Prioritized Training of Diffusion Models", eq. 8.
    """
    snr = _snr(alpha_bar)
    return snr / (p2_k + snr) ** p2_gamma * _x_0_error(alpha_bar, target)


@WEIGHTINGS.register("edm")
def edm(alpha_bar: Tensor, target: str, sigma_data: float = 0.5) -> Tensor:
    """(σ² + σ_data²) / (σ σ_data)² on the squared error of x_0, expressed for the target; σ² = 1 / SNR_t.

    Karras et al. 2022, "Elucidating the Design Space", table 1 and §5. Returns float64 [T].
    """
    return (_snr(alpha_bar) + 1.0 / sigma_data**2) * _x_0_error(alpha_bar, target)


@WEIGHTINGS.register("vlb")
def vlb(alpha_bar: Tensor, target: str) -> Tensor:
    """T times the weight of each time in the variational bound, whose mean is then Σ_t L_{t−1} (DDPM, eq. 12).

    In nats a pixel, for reverse steps of variance β̃_t; at t = 0, where that is 0, with β̃ of t = 1 and the decoder's
    density in place of its integral over a grey value. Returns float64 [T].
    """
    schedule = Schedule(beta_of(alpha_bar), torch.arange(len(alpha_bar)))
    variance = schedule.log_variance_range[0].exp()
    zero, one = torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)
    coefficient = q_posterior_mean(one, zero, alpha_bar, schedule.alpha_bar_prev)
    return len(alpha_bar) * coefficient**2 / (2.0 * variance) * _x_0_error(alpha_bar, target)


def _snr(alpha_bar: Tensor) -> Tensor:
    """SNR_t = ᾱ_t / (1 − ᾱ_t)."""
    return alpha_bar / (1.0 - alpha_bar)


def _x_0_error(alpha_bar: Tensor, target: str) -> Tensor:
    """The squared error of x_0 per squared error of the target at each time: float64 [T]."""
    return TARGETS[target].x_0_error(alpha_bar, before(alpha_bar))


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


@TIME_DENSITIES.register("loss_aware")
def loss_aware(alpha_bar: Tensor) -> Tensor:
    """All times alike at first, then by their losses: see `ddpm.training.loss_aware`. float64 [T], summing to 1."""
    return uniform(alpha_bar)


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
    """E_t,eps w_t ‖target − prediction‖² with t from a density.

    target: what the network predicts. alpha_bar: float32 [T]. weights: float32 [T], w_t. density: float64 [T], of t:
    on the CPU, so that times are the same on every device, unless it is made of losses.
    alpha_bar_prev: float32 [T], ᾱ before each time. self_conditioning: whether the network is given x̂_0 too.
    log_variances: float32 [2, T], log β̃_t and log β_t, for a network that predicts a variance between them, and
    bound_weights: float32 [T], λT of L_hybrid = L_simple + λ L_vlb, which then is minimized (Nichol & Dhariwal 2021,
    eq. 16). A density other than the uniform one weighs both parts, unless it is made of losses. The validation loss is
    of the first part alone.
    """

    target: Target
    alpha_bar: Tensor
    weights: Tensor
    density: Tensor
    quantiles: Callable[[int, torch.Generator], Tensor]
    alpha_bar_prev: Tensor
    self_conditioning: bool = False
    log_variances: Tensor | None = None
    bound_weights: Tensor | None = None

    def to(self, device: torch.device) -> "Objective":
        """The same on another device."""
        names = ("alpha_bar", "weights", "alpha_bar_prev", "log_variances", "bound_weights")
        held = {name: getattr(self, name) for name in names}
        return replace(self, **{name: tensor.to(device) for name, tensor in held.items() if tensor is not None})

    def sample_times(self, count: int, generator: torch.Generator) -> Tensor:
        """The training times of one batch: int64 [count] in 0 … T−1, on the objective's device."""
        cumulative = self.density.cumsum(0)
        quantiles = to_device(self.quantiles(count, generator), cumulative.device)
        found = torch.searchsorted(cumulative, quantiles, right=True).clamp(max=len(cumulative) - 1)
        return to_device(found, self.alpha_bar.device)

    def squared_errors(
        self,
        predict: Predict,
        images: Tensor,
        t: Tensor,
        eps: Tensor,
        labels: Tensor | None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of each image's prediction of the target: float32 [n], unweighted.

        Of a network that predicts a variance float32 [n, 2]: that, and its term of the variational bound in bits a
        pixel, which teaches the variance alone. images: uint8 [n, c, h, w]. t: int64 [n]. eps: float32, shaped like
        images. labels: int64 [n], or None. known: bool [n], to which images' x_t a network with self-conditioning is
        given its own x̂_0; to the others zeros, to all x̂_0 where it is None.
        """
        x_0, alpha_bar = normalize(images), self.alpha_bar[t][:, None, None, None]
        alpha_bar_prev, channels = self.alpha_bar_prev[t][:, None, None, None], images.shape[1]
        x_t = given = q_sample(x_0, alpha_bar, eps)
        if self.self_conditioning:
            with torch.no_grad():
                first = predict(torch.cat([x_t, torch.zeros_like(x_t)], 1), t, labels).float()[:, :channels]
                x_0_hat = self.target.to_x_0(x_t, alpha_bar, first, alpha_bar_prev).clamp(-1.0, 1.0)
                shown = x_0_hat if known is None else x_0_hat * known[:, None, None, None]
            given = torch.cat([x_t, shown], 1)
        prediction = predict(given, t, labels).float()
        wanted = self.target.of(x_0, alpha_bar, eps, alpha_bar_prev)
        if self.log_variances is None:
            return (prediction - wanted).square().mean((1, 2, 3))
        prediction, spread = prediction[:, :channels], prediction[:, channels:]
        x_0_hat = self.target.to_x_0(x_t, alpha_bar, prediction, alpha_bar_prev).detach()
        log_small, log_large = self.log_variances[:, t][:, :, None, None, None]
        log_variance = torch.lerp(log_small, log_large, (spread + 1.0) / 2.0)
        means = [q_posterior_mean(x, x_t, alpha_bar, alpha_bar_prev) for x in (x_0, x_0_hat)]
        steps = divergence(means[0] - means[1], log_small, log_variance)
        bound = torch.where(t == 0, decoder_term(x_0, means[1], log_variance.exp()).float().to(steps.device), steps)
        bits = bound / (x_0[0].numel() * math.log(2.0))
        return torch.stack([(prediction - wanted).square().mean((1, 2, 3)), bits], 1)

    def losses(self, squared_errors: Tensor, t: Tensor) -> Tensor:
        """The weighted loss of every image, float32 [n], from its `squared_errors` at times ``t``."""
        if self.bound_weights is None:
            return self.weights[t] * squared_errors
        return self.weights[t] * squared_errors[:, 0] + self.bound_weights[t] * squared_errors[:, 1]

    def loss(self, squared_errors: Tensor, t: Tensor) -> Tensor:
        """The mean of `losses` at times ``t`` of the density: a scalar."""
        return self.losses(squared_errors, t).mean()

    @property
    def grid_weights(self) -> Tensor:
        """Weight of each time where times are not of the density but spread evenly: w_t · T · density, float32 [T]."""
        return self.weights * (self.density * len(self.density)).float().to(self.weights.device)


def build_objective(diffusion: object, train: object, model: object = None) -> Objective:
    """The objective that the settings `diffusion` (schedule, target) and `train` (weighting, density) describe.

    model: those of the network, which say whether it predicts a variance and is given its last x̂_0.
    """
    schedule = build_schedule(diffusion)
    alpha_bar = schedule.alpha_bar
    names = {key: str(getattr(train, key)) for key in ("weighting", "time_density", "time_sampling")}
    target = str(getattr(diffusion, "target"))  # noqa: B009 (any object with these attributes)
    weights = WEIGHTINGS.build(names["weighting"], train, alpha_bar=alpha_bar, target=target)
    density = TIME_DENSITIES.build(names["time_density"], train, alpha_bar=alpha_bar)
    quantiles = TIME_SAMPLINGS[names["time_sampling"]]
    learned = getattr(model, "learned_variance", False)
    bound_weights = torch.full_like(weights, getattr(train, "vlb_weight", 0.0) * len(weights)) if learned else None
    return Objective(
        TARGETS[target],
        alpha_bar.float(),
        weights.float(),
        density,
        quantiles,
        schedule.alpha_bar_prev.float(),
        self_conditioning=getattr(model, "self_conditioning", False),
        log_variances=torch.stack(schedule.log_variance_range).float() if learned else None,
        bound_weights=None if bound_weights is None else bound_weights.float(),
    )
