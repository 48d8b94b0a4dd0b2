"""Noise schedules as float64 arrays, and respacing: fewer steps are just another schedule.

A schedule of `SCHEDULES` is a function that returns the β of every step; its parameters name the settings that it reads
(`diffusion.timesteps`, `diffusion.beta_start`, …).
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
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])

    @property
    def posterior_variance(self) -> Tensor:
        """β̃_t = (1 − ᾱ_{t−1}) / (1 − ᾱ_t) · β_t, float64 [S]; 0 at the first step. DDPM, eq. 7."""
        return (1.0 - self.alpha_bar_prev) / (1.0 - self.alpha_bar) * self.beta


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


def build_schedule(diffusion: object) -> Schedule:
    """The schedule that the settings (``schedule``: its name, and its parameters) describe, over all training times.

    Raises DdpmError for an unknown name, and where nothing of the image is left at the last time.
    """
    name = str(getattr(diffusion, "schedule"))  # noqa: B009 (any object with these attributes)
    beta = SCHEDULES.build(name, diffusion)
    schedule = Schedule(beta, torch.arange(len(beta)))
    if not schedule.alpha_bar[-1] > _MIN_ALPHA_BAR:
        raise DdpmError(
            f"the {name} schedule leaves nothing of the image after {len(beta)} timesteps: lower "
            "diffusion.beta_end or diffusion.timesteps."
        )
    return schedule


def respace(schedule: Schedule, times: Tensor) -> Schedule:
    """The schedule whose ᾱ at each step is that of ``schedule`` at ``times``.

    times: int64 [S], increasing positions in ``schedule``. Nichol & Dhariwal 2021, §4.
    """
    alpha_bar = schedule.alpha_bar[times]
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    return Schedule(1.0 - alpha_bar / previous, schedule.times[times])


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

    Lu et al. 2022, "DPM-Solver", §4. Returns int64 [steps], increasing. Requires 1 ≤ steps ≤ the schedule's steps.
    """
    total = len(schedule)
    if steps == 1:
        return torch.tensor([total - 1])
    falling = torch.special.logit(schedule.alpha_bar)
    wanted = torch.linspace(falling[0], falling[-1], steps, dtype=torch.float64)
    times = torch.searchsorted(-falling, -wanted).clamp(max=total - 1)
    # Where several fall on one time they move on to the next, and at the noisy end back again, so that all differ.
    places = torch.arange(steps)
    times = (times - places).cummax(0).values + places
    return torch.minimum(times, total - steps + places)
