"""The reverse process.

Every sampler is one function of the same signature and sees only the network's prediction of x_0:

    sampler(denoise, x_T, schedule, noise, on_step=None) -> x_0

denoise: (x_t [n, c, h, w], t) -> x̂_0 of the same shape, t a training time. x_T: float32 standard normal.
schedule: the steps to take, from `respace`. noise: () -> fresh standard normal of x_T's shape.
on_step: called as on_step(step, x_t, x̂_0) before each step is taken, step 0 first, and once more with the result.

An entry of `SAMPLERS` is a function that returns one; its parameters name the settings that it reads (`generate.eta`).
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ddpm.diffusion.process import eps_from_x_0, q_posterior_mean
from ddpm.diffusion.schedule import Schedule
from ddpm.utils.devices import of_each, to_device
from ddpm.utils.registry import Registry

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]


@runtime_checkable
class LearnedDenoise(Protocol):
    """A `Denoise` of a network that predicts the variance of the reverse step too.

    t: the training time of all images, or of each, as in `ddpm.diffusion.denoiser.Denoiser`.
    """

    def __call__(self, x_t: Tensor, t: int | Tensor, /) -> Tensor: ...  # noqa: D102 (see the module)

    def with_fraction(self, x_t: Tensor, t: int | Tensor, /) -> tuple[Tensor, Tensor]:
        """x̂_0 and, for every pixel, where the variance lies between β̃_t (0) and β_t (1): shaped like it."""
        ...


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


def learned_log_variance(schedule: Schedule, step: int | Tensor, fraction: Tensor) -> Tensor:
    """The log σ_t² of a reverse step, f log β_t + (1 − f) log β̃_t by the network's ``fraction``, shaped like it.

    step: of all images, or int64 [n] on the CPU, of each. Nichol & Dhariwal 2021, eq. 15.
    """
    small, large = schedule.log_variance_range
    ends = (of_each(each[step].to(fraction.dtype), fraction.device) for each in (small, large))
    low, high = (to_device(each, fraction.device) for each in ends)
    return torch.lerp(low, high, fraction)


class _Recorder:
    """A denoiser of the image 0 that keeps the times at which it is asked."""

    def __init__(self) -> None:
        self.times: list[int] = []

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        return self.with_fraction(x_t, t)[0]

    def with_fraction(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        self.times.append(t)
        return torch.zeros_like(x_t), torch.zeros_like(x_t)


def evaluated_times(sampler: Sampler, steps: Schedule) -> list[int]:
    """The training times at which a sampler asks for x̂_0, in order: their number is its NFE without guidance."""
    recorder, x_T = _Recorder(), torch.zeros(1, 1, 1, 1)
    sampler(recorder, x_T, steps, lambda: x_T)
    return recorder.times


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
    """Ancestral sampling (DDPM, algorithm 2), with σ_t² by `reverse_variance`.

    ``variance`` "learned" is that of the network, see `learned_log_variance`: for a `LearnedDenoise` alone.
    """

    def learned(
        denoise: Denoise, x_T: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep | None = None
    ) -> Tensor:
        alpha_bar, alpha_bar_prev, fraction = schedule.alpha_bar, schedule.alpha_bar_prev, torch.empty(0)
        assert isinstance(denoise, LearnedDenoise)

        def keeping_fraction(x_t: Tensor, t: int) -> Tensor:
            nonlocal fraction
            x_0, fraction = denoise.with_fraction(x_t, t)
            return x_0

        def step_back(step: int, x_t: Tensor, x_0: Tensor) -> Tensor:
            mean = q_posterior_mean(x_0, x_t, alpha_bar[step], alpha_bar_prev[step])
            sigma = (0.5 * learned_log_variance(schedule, step, fraction)).exp()
            return mean + sigma * noise() if step > 0 else mean

        return reverse_process(step_back, keeping_fraction, x_T, schedule, on_step)

    def sample(
        denoise: Denoise, x_T: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep | None = None
    ) -> Tensor:
        alpha_bar, alpha_bar_prev = schedule.alpha_bar, schedule.alpha_bar_prev
        sigma = reverse_variance(schedule, variance).sqrt().tolist()

        def step_back(step: int, x_t: Tensor, x_0: Tensor) -> Tensor:
            mean = q_posterior_mean(x_0, x_t, alpha_bar[step], alpha_bar_prev[step])
            return mean + sigma[step] * noise() if step > 0 else mean

        return reverse_process(step_back, denoise, x_T, schedule, on_step)

    return learned if variance == "learned" else sample


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

    ``eta`` 0 is the solver of the ODE (Lu et al. 2022, "DPM-Solver++", algorithm 2), 1 that of the SDE (in the same
    paper, whose first order is ancestral sampling), values between are k-diffusion's interpolation.
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


@SAMPLERS.register("dpmpp_2s")
def dpmpp_2s(eta: float = 0.0) -> Sampler:
    """DPM-Solver++(2S): second order from pairs of steps, each from its own first x_t, without memory of earlier pairs.

    ``eta`` 0 is the solver of the ODE (Lu et al. 2022, "DPM-Solver++", algorithm 1, with the middle time of each pair
    where the schedule of the steps has it), 1 that of the SDE (as k-diffusion's DPM++ SDE), values between as for
    `dpmpp_2m`. The noise of the second step of a pair is added to that of the first, which led to the middle. Of an
    even number of steps the last but one is of first order.
    """

    def sample(
        denoise: Denoise, x_T: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep | None = None
    ) -> Tensor:
        alpha, sigma = schedule.alpha_bar.sqrt(), (1.0 - schedule.alpha_bar).sqrt()
        half_log_snr = (alpha / sigma).log()
        # Of the pair that is under way: where it began, x_t and x̂_0 there, and the noise of its first step.
        pair: tuple[int, Tensor, Tensor, Tensor | float] | None = None

        def solved(start: int, end: int, x_t: Tensor, x_0: Tensor) -> Tensor:
            h = half_log_snr[end] - half_log_snr[start]
            kept = sigma[end] / sigma[start] * torch.exp(-eta * h)
            return kept * x_t - (alpha[end] * torch.expm1(-(1.0 + eta) * h)) * x_0

        def added(start: int, end: int) -> Tensor | float:
            h = half_log_snr[end] - half_log_snr[start]
            return (sigma[end] * (-torch.expm1(-2.0 * eta * h)).sqrt()) * noise() if eta else 0.0

        def step_back(step: int, x_t: Tensor, x_0: Tensor) -> Tensor:
            nonlocal pair
            if step == 0:
                return x_0
            fresh = added(step, step - 1)
            if pair is None:
                pair = step, x_t, x_0, fresh
                return solved(step, step - 1, x_t, x_0) + fresh
            first, x_first, x_0_first, fresh_first = pair
            pair = None
            h = half_log_snr[step - 1] - half_log_snr[first]
            r = (half_log_snr[step] - half_log_snr[first]) / h
            estimate = x_0_first + (x_0 - x_0_first) / (2.0 * r)
            carried = sigma[step - 1] / sigma[step] * torch.exp(-eta * (1.0 - r) * h)
            return solved(first, step - 1, x_first, estimate) + carried * fresh_first + fresh

        return reverse_process(step_back, denoise, x_T, schedule, on_step)

    return sample


@SAMPLERS.register("unipc")
def unipc(unipc_order: int = 2) -> Sampler:
    """UniPC of an order p, predicting x_0, with B(h) = e^h − 1: order p + 1 from one evaluation a step.

    Every step is predicted from the last p values of x̂_0 (UniP-p) and, once x̂_0 is known there, corrected (UniC-p)
    before the next. The first steps have the order that the steps so far allow. Zhao et al. 2023, "UniPC: A Unified
    Predictor-Corrector Framework", algorithms 1, 2 and 5 to 8.
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
        # The last steps, newest first, with x̂_0 there; the corrected x_t of the newest.
        known: list[tuple[int, Tensor]] = []
        x_known = x_T

        def solved(step: int, points: list[tuple[int, Tensor]]) -> Tensor:
            """The x at ``step`` from the newest of ``known``, with x̂_0 through all of ``known`` and ``points``."""
            start, x_0_start = known[0]
            h = half_log_snr[step] - half_log_snr[start]
            # b_k = z φ_{k+1}(z) k! / B with z = −h, φ_1(z) = (e^z − 1) / z and φ_{k+1}(z) = (φ_k(z) − 1/k!) / z.
            others, phi, factorial, b = [*known[1:], *points], torch.expm1(-h) / -h, 1.0, []
            for k in range(1, len(others) + 1):
                factorial *= k
                phi = (phi - 1.0 / factorial) / -h
                b.append(phi * factorial * -h / torch.expm1(-h))
            x = (sigma[step] / sigma[start]) * x_known - (alpha[step] * torch.expm1(-h)) * x_0_start
            if others:
                r = torch.stack([(half_log_snr[at] - half_log_snr[start]) / h for at, _ in others])
                powers = torch.stack([r**k for k in range(len(others))])
                # For one other point 1/2 keeps the order, and the paper's code takes it.
                weights = torch.linalg.solve(powers, torch.stack(b)) if len(others) > 1 else r.new_full((1,), 0.5)
                slopes = [w / ratio * (x_0 - x_0_start) for w, ratio, (_, x_0) in zip(weights, r, others, strict=True)]
                x = x - (alpha[step] * torch.expm1(-h)) * sum(slopes)
            return x

        def step_back(step: int, x_t: Tensor, x_0: Tensor) -> Tensor:
            nonlocal x_known
            if step == 0:
                return x_0
            x_known = solved(step, [(step, x_0)]) if known else x_t
            known.insert(0, (step, x_0))
            del known[unipc_order:]
            return solved(step - 1, [])

        return reverse_process(step_back, denoise, x_T, schedule, on_step)

    return sample


@SAMPLERS.register("flow_heun")
def flow_heun() -> Sampler:
    """Heun's method on the straight path of flow matching, two evaluations a step but the last.

    With s = σ / (α + σ) and z = x_t / (α + σ) every schedule is the path z = (1 − s) x_0 + s eps, whose slope is the
    velocity dz/ds = (z − x̂_0) / s: Lipman et al. 2023, "Flow Matching for Generative Modeling", by the method of Karras
    et al. 2022, algorithm 1. Euler's method on it is `ddim` with eta 0.
    """

    def sample(
        denoise: Denoise,
        x_T: Tensor,
        schedule: Schedule,
        noise: Noise,  # noqa: ARG001 (the common signature)
        on_step: OnStep | None = None,
    ) -> Tensor:
        alpha, sigma = schedule.alpha_bar.sqrt(), (1.0 - schedule.alpha_bar).sqrt()
        scale, s = alpha + sigma, sigma / (alpha + sigma)

        def step_back(step: int, x_t: Tensor, x_0: Tensor) -> Tensor:
            if step == 0:
                return x_0
            z, after = x_t / scale[step], step - 1
            velocity = (z - x_0) / s[step]
            ahead = z + (s[after] - s[step]) * velocity
            x_0_ahead = denoise(scale[after] * ahead, int(schedule.times[after]))
            mean_velocity = (velocity + (ahead - x_0_ahead) / s[after]) / 2.0
            return scale[after] * (z + (s[after] - s[step]) * mean_velocity)

        return reverse_process(step_back, denoise, x_T, schedule, on_step)

    return sample
