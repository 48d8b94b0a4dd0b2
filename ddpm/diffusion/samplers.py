"""The reverse process.

Every sampler is one function of the same signature and sees only the network's prediction of x_0:

    sampler(denoise, x_T, schedule, noise, on_step=None) -> x_0

denoise: (x_t [n, c, h, w], t) -> x̂_0 of the same shape, t a training time. x_T: float32 standard normal.
schedule: the steps to take, from `respace`. noise: () -> fresh standard normal of x_T's shape.
on_step: called as on_step(step, x_t, x̂_0) before each step is taken, step 0 first, and once more with the result.

An entry of `SAMPLERS` is a function that returns one; its parameters name the settings that it reads (`generate.eta`).
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ddpm.diffusion.process import eps_from_x_0, q_posterior_mean
from ddpm.diffusion.schedule import Schedule
from ddpm.utils.registry import Registry

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]


class Sampler(Protocol):
    """The signature above."""

    def __call__(  # noqa: D102 (see the module)
        self, denoise: Denoise, x_T: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep | None = None
    ) -> Tensor: ...


# σ_t² of the reverse steps by name: β̃_t and β_t, the two ends between which the best lies (DDPM, §3.2).
VARIANCES: Registry[Callable[[Schedule], Tensor]] = Registry("variance")
VARIANCES.register("small")(lambda schedule: schedule.posterior_variance)
VARIANCES.register("large")(lambda schedule: schedule.beta)
SAMPLERS: Registry[Callable[..., Sampler]] = Registry("sampler")


def reverse_variance(schedule: Schedule, variance: str | float) -> Tensor:
    """σ_t² of every reverse step, float64 [S]: by its name, or β̃_t^(1−f) β_t^f for a fraction f in [0, 1].

    The latter is Nichol & Dhariwal 2021, eq. 15, with the same f at every step: 0 is "small", 1 is "large".
    """
    if isinstance(variance, str):
        return VARIANCES[variance](schedule)
    small, large = (VARIANCES[name](schedule) for name in ("small", "large"))
    return small ** (1.0 - variance) * large**variance


def evaluated_times(sampler: Sampler, steps: Schedule) -> list[int]:
    """The training times at which a sampler asks for x̂_0, in order: their number is its NFE without guidance."""
    times: list[int] = []

    def denoise(x_t: Tensor, t: int) -> Tensor:
        times.append(t)
        return torch.zeros_like(x_t)

    x_T = torch.zeros(1, 1, 1, 1)
    sampler(denoise, x_T, steps, lambda: x_T)
    return times


def reverse_process(
    step_back: Callable[[int, Tensor, Tensor], Tensor],
    denoise: Denoise,
    x_T: Tensor,
    schedule: Schedule,
    on_step: OnStep | None,
) -> Tensor:
    """Walk the schedule from its noisiest step to its first; ``step_back`` maps (step, x_t, x̂_0) to x_{t−1}."""
    x_t = x_T
    for taken, step in enumerate(reversed(range(len(schedule)))):
        x_0 = denoise(x_t, int(schedule.times[step]))
        if on_step:
            on_step(taken, x_t, x_0)
        x_t = step_back(step, x_t, x_0)
    if on_step:
        on_step(len(schedule), x_t, x_t)
    return x_t


@SAMPLERS.register("ddpm")
def ddpm(variance: str | float = "small") -> Sampler:
    """Ancestral sampling (DDPM, algorithm 2), with σ_t² by `reverse_variance`."""

    def sample(
        denoise: Denoise, x_T: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep | None = None
    ) -> Tensor:
        alpha_bar, alpha_bar_prev = schedule.alpha_bar, schedule.alpha_bar_prev
        sigma = reverse_variance(schedule, variance).sqrt().tolist()

        def step_back(step: int, x_t: Tensor, x_0: Tensor) -> Tensor:
            mean = q_posterior_mean(x_0, x_t, alpha_bar[step], alpha_bar_prev[step])
            return mean + sigma[step] * noise() if step > 0 else mean

        return reverse_process(step_back, denoise, x_T, schedule, on_step)

    return sample


@SAMPLERS.register("ddim")
def ddim(eta: float = 0.0) -> Sampler:
    """DDIM (Song et al. 2021, eq. 12 and 16). ``eta`` ≥ 0: 0 is deterministic, 1 has the ancestral variance β̃_t."""

    def sample(
        denoise: Denoise, x_T: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep | None = None
    ) -> Tensor:
        alpha_bar, alpha_bar_prev = schedule.alpha_bar, schedule.alpha_bar_prev
        sigma = eta * schedule.posterior_variance.sqrt()

        def step_back(step: int, x_t: Tensor, x_0: Tensor) -> Tensor:
            eps = eps_from_x_0(x_t, alpha_bar[step], x_0)
            direction = (1.0 - alpha_bar_prev[step] - sigma[step] ** 2).clamp(min=0.0).sqrt()
            mean = alpha_bar_prev[step].sqrt() * x_0 + direction * eps
            return mean + sigma[step] * noise() if eta and step > 0 else mean

        return reverse_process(step_back, denoise, x_T, schedule, on_step)

    return sample


@SAMPLERS.register("dpmpp_2m")
def dpmpp_2m(eta: float = 0.0) -> Sampler:
    """DPM-Solver++(2M): second order from one evaluation a step, by looking back at the step before.

    ``eta`` 0 is the solver of the ODE (Lu et al. 2022, "DPM-Solver++", algorithm 2), 1 that of the SDE (§5, whose first
    order is ancestral sampling), values between are k-diffusion's interpolation.
    """

    def sample(
        denoise: Denoise, x_T: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep | None = None
    ) -> Tensor:
        alpha, sigma = schedule.alpha_bar.sqrt(), (1.0 - schedule.alpha_bar).sqrt()
        half_log_snr = (alpha / sigma).log()
        before: Tensor | None = None

        def step_back(step: int, x_t: Tensor, x_0: Tensor) -> Tensor:
            nonlocal before
            if step == 0:
                return x_0
            h = half_log_snr[step - 1] - half_log_snr[step]
            gain = -torch.expm1(-(1.0 + eta) * h)
            estimate = x_0
            if before is not None:
                r = (half_log_snr[step] - half_log_snr[step + 1]) / h
                estimate = x_0 + (x_0 - before) / (2.0 * r)
            before = x_0
            mean = (sigma[step - 1] / sigma[step] * torch.exp(-eta * h)) * x_t + (alpha[step - 1] * gain) * estimate
            return mean + (sigma[step - 1] * (-torch.expm1(-2.0 * eta * h)).sqrt()) * noise() if eta else mean

        return reverse_process(step_back, denoise, x_T, schedule, on_step)

    return sample


@SAMPLERS.register("heun")
def heun() -> Sampler:
    """Heun's second-order method on the probability-flow ODE, two evaluations a step but the last.

    Between two times x_0 is taken to be linear in λ = log(α/σ), from its prediction at the one to that at the
    other, and the rest is integrated exactly (Hochbruck and Ostermann 2005, the exponential Heun method; Zhang et
    al. 2023, "Improved order analysis and design of exponential integrator for diffusion models", c₂ = 1). Karras's
    form of 2022, which averages slopes in σ/α, diverges where that spans thousands or nearly vanishes, as on a cosine
    schedule.
    """

    def sample(
        denoise: Denoise,
        x_T: Tensor,
        schedule: Schedule,
        noise: Noise,  # noqa: ARG001 (the common signature)
        on_step: OnStep | None = None,
    ) -> Tensor:
        alpha, sigma = schedule.alpha_bar.sqrt(), (1.0 - schedule.alpha_bar).sqrt()
        half_log_snr = (alpha / sigma).log()

        def step_back(step: int, x_t: Tensor, x_0: Tensor) -> Tensor:
            if step == 0:
                return x_0
            h = half_log_snr[step - 1] - half_log_snr[step]
            gain = -torch.expm1(-h)
            ahead = (sigma[step - 1] / sigma[step]) * x_t + (alpha[step - 1] * gain) * x_0
            x_0_ahead = denoise(ahead, int(schedule.times[step - 1]))
            return ahead + (alpha[step - 1] * (1.0 - gain / h)) * (x_0_ahead - x_0)

        return reverse_process(step_back, denoise, x_T, schedule, on_step)

    return sample
