"""Noise schedules as float64 arrays, and respacing: fewer steps are just another schedule.

A schedule of `SCHEDULES` is a function that returns the β of every step; its parameters name the settings that it reads
(`diffusion.timesteps`, `diffusion.beta_start`, …). `shifted` and `zero_terminal_snr` change any of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.utils.errors import DdpmError
from ddpm.utils.registry import Registry

SCHEDULES: Registry[Callable[..., Tensor]] = Registry("schedule")
SPACINGS: Registry[Callable[["Schedule", int], Tensor]] = Registry("spacing")

# Below it the last ᾱ counts as 0 in float32, and what divides by it is no number.
_MIN_ALPHA_BAR = 1e-30
_MAX_BETA = 0.999  # Nichol & Dhariwal 2021, §3.2: keeps the last steps of the cosine schedule from being singular
# What "zero" is at the last time: √ᾱ is 2⁻¹², which float16 and the logarithms of the samplers still hold.
_ZERO_ALPHA_BAR = 2.0**-24


@dataclass(frozen=True)
class Schedule:
    """A noise schedule over the times the network was trained on, or over a subset of them.

    beta: float64 [S], β of each step, in (0, 1). times: int64 [S], the training time of each step, increasing.
    """

    beta: Tensor
    times: Tensor

    def __len__(self) -> int:
        return len(self.beta)

    @property
    def alpha_bar(self) -> Tensor:
        """ᾱ_t = Π_{s ≤ t} (1 − β_s), float64 [S], decreasing in (0, 1). DDPM, eq. 4."""
        return torch.cumprod(1.0 - self.beta, 0)

    @property
    def alpha_bar_prev(self) -> Tensor:
        """ᾱ of the step before each, float64 [S]; 1 before the first."""
        return before(self.alpha_bar)

    @property
    def posterior_variance(self) -> Tensor:
        """β̃_t = (1 − ᾱ_{t−1}) / (1 − ᾱ_t) · β_t, float64 [S]; 0 at the first step. DDPM, eq. 7."""
        return (1.0 - self.alpha_bar_prev) / (1.0 - self.alpha_bar) * self.beta

    @property
    def log_variance_range(self) -> tuple[Tensor, Tensor]:
        """The log β̃_t and log β_t, float64 [S], between which a learned variance lies: Nichol & Dhariwal 2021, eq. 15.

        At the first step, where β̃ is 0, log β̃ is that of the second, as in their code.
        """
        small = self.posterior_variance[1:]
        return torch.cat([small[:1] if len(small) else self.beta[:1], small]).log(), self.beta.log()


def before(alpha_bar: Tensor) -> Tensor:
    """ᾱ of the step before each of ``alpha_bar`` [S]; 1 before the first."""
    return torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])


def beta_of(alpha_bar: Tensor) -> Tensor:
    """The β of every step whose product is ``alpha_bar``, float64 [S], decreasing in (0, 1). DDPM, eq. 4."""
    return 1.0 - alpha_bar / before(alpha_bar)


@SCHEDULES.register("linear")
def linear(timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """β_t rising linearly from ``beta_start`` to ``beta_end``, both in (0, 1): float64 [timesteps]. DDPM, §4."""
    return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)


@SCHEDULES.register("cosine")
def cosine(timesteps: int, offset: float = 0.008) -> Tensor:
    """β_t whose ᾱ_t follows a squared cosine; ``offset`` keeps β small near t = 0. Nichol & Dhariwal 2021, eq. 17.

    Returns float64 [timesteps].
    """
    u = torch.linspace(0.0, 1.0, timesteps + 1, dtype=torch.float64)
    f = torch.cos((u + offset) / (1.0 + offset) * math.pi / 2) ** 2
    return (1.0 - f[1:] / f[:-1]).clamp(max=_MAX_BETA)


@SCHEDULES.register("quadratic")
def quadratic(timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """β_t whose square root rises linearly from √``beta_start`` to √``beta_end``: float64 [timesteps].

    The reference code of DDPM and that of Rombach et al. 2022 have it; diffusers calls it scaled linear.
    """
    return torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2


@SCHEDULES.register("sigmoid")
def sigmoid(timesteps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    """β_t whose ᾱ_t falls along a sigmoid from ``start`` to ``end`` of temperature ``tau``, scaled to run from 1 to 0.

    Jabri et al. 2023, "Scalable Adaptive Computation for Iterative Generation"; Chen 2023, "On the Importance of Noise
    Scheduling for Diffusion Models", algorithm 1. Returns float64 [timesteps].
    """
    u = torch.linspace(0.0, 1.0, timesteps + 1, dtype=torch.float64)
    f = torch.sigmoid((start + u * (end - start)) / tau)
    alpha_bar = (f[-1] - f) / (f[-1] - f[0])
    return (1.0 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=_MAX_BETA)


@SCHEDULES.register("laplace")
def laplace(timesteps: int, laplace_mean: float = 0.0, laplace_scale: float = 0.5) -> Tensor:
    """β_t whose log-SNR is Laplace distributed over the times, most of them where the image takes shape.

    Hang & Gu 2024, "Improved Noise Schedule for Diffusion Training", table 1: λ = μ − b sgn(½ − u) log(1 − 2|u − ½|),
    at the middle u of each of ``timesteps`` equal parts of [0, 1]. Returns float64 [timesteps].
    """
    away = (torch.arange(timesteps, dtype=torch.float64) + 0.5) / timesteps - 0.5
    log_snr = laplace_mean + laplace_scale * away.sign() * torch.log1p(-2.0 * away.abs())
    return beta_of(torch.sigmoid(log_snr))


@SCHEDULES.register("flow")
def flow(timesteps: int) -> Tensor:
    """β_t of the straight path (1 − s) x_0 + s eps of flow matching, at the middle s of each of ``timesteps`` parts.

    Lipman et al. 2023, "Flow Matching for Generative Modeling", eq. 20 (σ_min 0); Liu et al. 2023, "Flow Straight and
    Fast", eq. 1. x_t here is the point of that path divided by √((1 − s)² + s²), so that its variance stays 1, as that
    of every other schedule; with the target "velocity" the network learns the path's slope. float64 [timesteps].
    """
    s = (torch.arange(timesteps, dtype=torch.float64) + 0.5) / timesteps
    return beta_of((1.0 - s) ** 2 / ((1.0 - s) ** 2 + s**2))


def shifted(alpha_bar: Tensor, shift: float) -> Tensor:
    """ᾱ_t with ``shift`` > 0 times the noise-to-signal ratio √(1/ᾱ_t − 1) at every time: float64 [S].

    Images of d times the size show the same amount of structure at d times the ratio: Hoogeboom et al. 2023, "Simple
    Diffusion", §3.1. On the schedule "flow" it is the shift of Esser et al. 2024, "Scaling Rectified Flow
    Transformers", eq. 23.
    """
    return alpha_bar / (alpha_bar + shift**2 * (1.0 - alpha_bar))


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """ᾱ_t with √ᾱ_t moved and stretched so that the last is 0 (here 2⁻¹²) and the first stays: float64 [S].

    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps Are Flawed", algorithm 1.
    """
    root, last = alpha_bar.sqrt(), _ZERO_ALPHA_BAR**0.5
    return (last + (root - root[-1]) * (root[0] - last) / (root[0] - root[-1])) ** 2


def build_schedule(diffusion: object) -> Schedule:
    """The schedule that the settings describe, over all training times.

    ``schedule``: its name; its parameters; where they are there, ``shift`` (1: none) and ``zero_terminal_snr``. Raises
    DdpmError for an unknown name, and where in float32 the first time has no noise or the last nothing of the image.
    """
    name = str(getattr(diffusion, "schedule"))  # noqa: B009 (any object with these attributes)
    beta = SCHEDULES.build(name, diffusion)
    if (shift := getattr(diffusion, "shift", 1.0)) != 1.0:
        beta = beta_of(shifted(torch.cumprod(1.0 - beta, 0), shift))
    if getattr(diffusion, "zero_terminal_snr", False) and len(beta) > 1:
        beta = beta_of(zero_terminal_snr(torch.cumprod(1.0 - beta, 0)))
    schedule = Schedule(beta, torch.arange(len(beta)))
    if not schedule.alpha_bar[-1] > _MIN_ALPHA_BAR:
        raise DdpmError(
            f"the {name} schedule leaves nothing of the image after {len(beta)} timesteps: lower "
            "diffusion.beta_end, diffusion.timesteps or diffusion.shift."
        )
    if schedule.alpha_bar[0].float() == 1.0:
        raise DdpmError(
            f"the {name} schedule adds no noise at the first of its {len(beta)} timesteps: lower diffusion.timesteps, "
            "or raise diffusion.shift or diffusion.beta_start."
        )
    return schedule


def respace(schedule: Schedule, times: Tensor) -> Schedule:
    """The schedule whose ᾱ at each step is that of ``schedule`` at ``times``.

    times: int64 [S], increasing positions in ``schedule``. Nichol & Dhariwal 2021, §4.
    """
    return Schedule(beta_of(schedule.alpha_bar[times]), schedule.times[times])


def spaced(schedule: Schedule, steps: int, spacing: str) -> Schedule:
    """So many steps of a sampling run, at times by that entry of `SPACINGS`. Raises DdpmError where it has fewer."""
    if steps > len(schedule):
        raise DdpmError(f"generate.steps={steps} exceeds the {len(schedule)} timesteps of the checkpoint.")
    return respace(schedule, SPACINGS[spacing](schedule, steps))


@SPACINGS.register("even")
def even_times(schedule: Schedule, steps: int) -> Tensor:
    """``steps`` times spread evenly over those of ``schedule``, both ends among them (the last alone for one step).

    Returns int64 [steps], increasing. Requires 1 ≤ steps ≤ the schedule's steps.
    """
    total = len(schedule)
    if steps == 1:
        return torch.tensor([total - 1])
    return torch.linspace(0, total - 1, steps, dtype=torch.float64).round().long()


@SPACINGS.register("trailing")
def trailing_times(schedule: Schedule, steps: int) -> Tensor:
    """The last time of each of ``steps`` equal parts of those of ``schedule``, so that the first one is left out.

    The last prediction of x_0, which is the image, is then made where there is still some noise to take away: at the
    first time it would be x_t itself, with what the step before has left on it. Lin et al. 2024, "Common Diffusion
    Noise Schedules and Sample Steps Are Flawed", table 2. Returns int64 [steps], increasing.
    """
    total = len(schedule)
    return (torch.arange(1, steps + 1, dtype=torch.float64) * total / steps).round().long() - 1


@SPACINGS.register("log_snr")
def log_snr_times(schedule: Schedule, steps: int) -> Tensor:
    """``steps`` different times of ``schedule`` spread evenly in log-SNR as far as its times allow, both ends included.

    Lu et al. 2022, "DPM-Solver", uniform λ. Returns int64 [steps], increasing. Requires 1 ≤ steps ≤ the schedule's.
    """
    log_snr = torch.special.logit(schedule.alpha_bar)
    return _where(-log_snr, torch.linspace(-log_snr[0], -log_snr[-1], steps, dtype=torch.float64))


@SPACINGS.register("karras")
def karras_times(schedule: Schedule, steps: int) -> Tensor:
    """``steps`` different times of ``schedule`` whose σ/α have roots of order ρ = 7 that are as evenly spread as its
    times allow, from the first time to the last, or to that of σ/α = 80.

    Karras et al. 2022, eq. 5 and table 1. Returns int64 [steps], increasing. Requires 1 ≤ steps ≤ the schedule's.
    """
    root = (1 / schedule.alpha_bar - 1) ** (1 / (2 * 7))
    return _where(root, torch.linspace(root[0], min(root[-1], 80 ** (1 / 7)), steps, dtype=torch.float64))


def _where(rising: Tensor, wanted: Tensor) -> Tensor:
    """Different positions, int64 [S], where float64 ``rising`` [T] reaches ``wanted`` [S], which rise; the last for
    S = 1.
    """
    total, steps = len(rising), len(wanted)
    if steps == 1:
        return torch.tensor([total - 1])
    positions = torch.searchsorted(rising, wanted).clamp(max=total - 1)
    # Where several fall on one position they move on to the next, and at its end back again, so that all differ.
    places = torch.arange(steps)
    positions = (positions - places).cummax(0).values + places
    return torch.minimum(positions, total - steps + places)
