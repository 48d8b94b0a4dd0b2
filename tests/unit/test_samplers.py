from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ddpm.diffusion import schedule as schedules
from ddpm.diffusion.samplers import (
    SAMPLERS,
    VARIANCES,
    Sampler,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2s,
    evaluated_times,
    flow_heun,
    heun,
    learned_log_variance,
    reverse_variance,
    unipc,
)
from ddpm.diffusion.schedule import Schedule, even_times, log_snr_times, respace
from ddpm.utils.errors import DdpmError


def cosine(timesteps: int) -> Schedule:
    return Schedule(schedules.cosine(timesteps), torch.arange(timesteps))


def linear(timesteps: int, beta_start: float, beta_end: float) -> Schedule:
    return Schedule(schedules.linear(timesteps, beta_start, beta_end), torch.arange(timesteps))


EXAMPLES = {
    "ddpm small": ddpm("small"),
    "ddpm large": ddpm("large"),
    "ddim 0": ddim(0.0),
    "ddim 0.5": ddim(0.5),
    "ddim 1": ddim(1.0),
    "dpmpp 0": dpmpp_2m(0.0),
    "dpmpp 0.5": dpmpp_2m(0.5),
    "dpmpp 1": dpmpp_2m(1.0),
    "heun": heun(),
    "dpmpp_2s 0": dpmpp_2s(0.0),
    "dpmpp_2s 1": dpmpp_2s(1.0),
    "unipc 1": unipc(1),
    "unipc": unipc(),
    "unipc 3": unipc(3),
    "flow_heun": flow_heun(),
}


class CountedNoise:
    """Standard normal noise from a seed, and how often it was called."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.shape, self.dtype, self.calls = shape, dtype, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return torch.randn(self.shape, generator=self.generator, dtype=self.dtype)


def spaced(schedule: Schedule, steps: int) -> Schedule:
    return respace(schedule, even_times(schedule, steps))


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES.keys())
def sampler(request: pytest.FixtureRequest) -> Sampler:
    return request.param


@pytest.mark.parametrize("steps", [1, 2, 13, 100])
def test_an_oracle_denoiser_leads_every_sampler_to_x_0(sampler: Sampler, steps: int):
    x_0 = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise = CountedNoise(x_0.shape, dtype=torch.float32)
    found = sampler(lambda *_: x_0, noise(), spaced(cosine(100), steps), noise)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x_0, rtol=0, atol=1e-6)


def test_the_denoiser_meets_the_times_it_was_trained_on_from_noise_to_image(sampler: Sampler):
    met = []

    def denoise(x_t: Tensor, t: int) -> Tensor:
        met.append(t)
        return torch.zeros_like(x_t)

    noise = CountedNoise((2, 1, 1, 1))
    sampler(denoise, noise(), respace(cosine(1000), torch.tensor([0, 10, 500, 999])), noise)
    twice = sampler in (EXAMPLES["heun"], EXAMPLES["flow_heun"])
    assert met == ([999, 500, 500, 10, 10, 0, 0] if twice else [999, 500, 10, 0])
    assert evaluated_times(sampler, respace(cosine(1000), torch.tensor([0, 10, 500, 999]))) == met


def curved(x_t: Tensor, t: int) -> Tensor:
    return torch.tanh(x_t * (1 + 0.01 * t)) * 0.9


@pytest.mark.parametrize("schedule", [linear(100, 1e-4, 0.1), cosine(100)], ids=["linear", "cosine"])
@pytest.mark.parametrize("steps", [5, 100])
def test_ddim_with_eta_1_is_ddpm_with_small_variance(schedule: Schedule, steps: int):
    trajectories: list[list[Tensor]] = []
    for sampler in (ddim(1.0), ddpm("small")):
        noise, seen = CountedNoise((8, 1, 2, 2), seed=4), []
        sampler(curved, noise(), spaced(schedule, steps), noise, lambda _, x_t, __, seen=seen: seen.append(x_t))
        trajectories.append(seen)
    assert len(trajectories[0]) == steps + 1
    for by_ddim, by_ddpm in zip(*trajectories, strict=True):
        torch.testing.assert_close(by_ddim, by_ddpm, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("fraction", "name"), [(0.0, "small"), (1.0, "large")])
def test_the_ends_of_a_fraction_are_the_named_variances(fraction: float, name: str):
    torch.testing.assert_close(
        reverse_variance(cosine(100), fraction), VARIANCES[name](cosine(100)), rtol=1e-12, atol=0
    )


def test_a_variance_between_is_the_geometric_mean():
    small, large = (VARIANCES[name](cosine(100)) for name in ("small", "large"))
    found = reverse_variance(cosine(100), 0.25)
    torch.testing.assert_close(found.log()[1:], 0.75 * small.log()[1:] + 0.25 * large.log()[1:], rtol=1e-12, atol=0)
    assert found[0] == 0.0


def test_large_variance_samples_otherwise_than_small():
    found = []
    for sampler in (ddpm("small"), ddpm("large")):
        noise = CountedNoise((8, 1, 2, 2), seed=4)
        found.append(sampler(curved, noise(), spaced(cosine(100), 10), noise))
    assert (found[0] - found[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["ddim 0", "dpmpp 0", "heun", "dpmpp_2s 0", "unipc", "flow_heun"])
def test_deterministic_samplers_take_no_noise_after_the_first(name: str):
    noise = CountedNoise((2, 1, 2, 2))
    EXAMPLES[name](curved, noise(), cosine(20), noise)
    assert noise.calls == 1


@pytest.mark.parametrize("name", ["ddpm small", "ddpm large", "ddim 1", "dpmpp 1", "dpmpp_2s 1"])
def test_noisy_samplers_take_noise_at_every_step_but_the_last(name: str):
    noise = CountedNoise((2, 1, 2, 2))
    EXAMPLES[name](curved, noise(), cosine(20), noise)
    assert noise.calls == 20


@pytest.mark.parametrize("steps", [1, 6])
def test_on_step_sees_every_step_and_the_result(sampler: Sampler, steps: int):
    seen: list[tuple[int, Tensor, Tensor]] = []
    noise = CountedNoise((3, 1, 2, 2))
    x_T = noise()
    result = sampler(curved, x_T, spaced(cosine(50), steps), noise, lambda *step: seen.append(step))
    assert [step for step, *_ in seen] == list(range(steps + 1))
    assert torch.equal(seen[0][1], x_T)
    assert torch.equal(seen[0][2], curved(x_T, 49))
    assert torch.equal(seen[-1][1], result)
    assert torch.equal(seen[-1][2], result)


def exact_denoiser(schedule: Schedule, mean: float, deviation: float) -> Callable[[Tensor, int], Tensor]:
    """E[x_0 | x_t] for x_0 ~ N(mean, deviation²), from Bayes' rule."""

    def denoise(x_t: Tensor, t: int) -> Tensor:
        signal = schedule.alpha_bar[t].item()
        gain = signal**0.5 * deviation**2 / (signal * deviation**2 + 1 - signal)
        return mean + gain * (x_t - signal**0.5 * mean)

    return denoise


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("schedule", [linear(1000, 1e-4, 0.02), cosine(1000)], ids=["linear", "cosine"])
def test_ancestral_sampling_of_gaussian_data_has_its_mean_and_variance(schedule: Schedule, variance: str):
    mean, deviation = 0.4, 0.5
    noise = CountedNoise((20_000, 1, 1, 1), seed=8, dtype=torch.float32)
    found = ddpm(variance)(exact_denoiser(schedule, mean, deviation), noise(), schedule, noise)
    assert found.mean().item() == pytest.approx(mean, abs=0.015)
    assert found.std().item() == pytest.approx(deviation, rel=0.02)


def test_deterministic_ddim_of_gaussian_data_has_its_mean_and_variance():
    schedule = cosine(1000)
    noise = CountedNoise((20_000, 1, 1, 1), seed=8)
    found = ddim(0.0)(exact_denoiser(schedule, -0.3, 0.5), noise(), schedule, noise)
    assert found.mean().item() == pytest.approx(-0.3, abs=0.015)
    assert found.std().item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(
    ("sampler", "first_order"),
    [
        (dpmpp_2m(0.0), ddim(0.0)),
        (dpmpp_2m(1.0), ddpm("small")),
        (dpmpp_2s(0.0), ddim(0.0)),
        (dpmpp_2s(1.0), ddpm("small")),
        (unipc(3), ddim(0.0)),
    ],
)
def test_the_first_step_of_a_solver_is_of_first_order(sampler: Sampler, first_order: Sampler):
    # Of two steps the second only hands over x̂_0, so that the first decides the result.
    found = []
    for each in (sampler, first_order):
        noise = CountedNoise((8, 1, 2, 2), seed=4)
        found.append(each(curved, noise(), spaced(cosine(100), 2), noise))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_a_pair_of_dpmpp_2s_is_algorithm_1_of_its_paper():
    schedule = respace(cosine(100), torch.tensor([20, 50, 80]))
    x_T, seen = CountedNoise((8, 1, 2, 2))(), []
    noise = CountedNoise((8, 1, 2, 2))
    dpmpp_2s(0.0)(curved, x_T, schedule, noise, lambda _, x_t, __: seen.append(x_t))
    end, middle, start = range(3)
    alpha, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    log_snr = (alpha / sigma).log()
    h = log_snr[end] - log_snr[start]
    r = (log_snr[middle] - log_snr[start]) / h
    first = curved(x_T, 80)
    u = sigma[middle] / sigma[start] * x_T - alpha[middle] * ((-r * h).exp() - 1) * first
    estimate = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * curved(u, 50)
    x = sigma[end] / sigma[start] * x_T - alpha[end] * ((-h).exp() - 1) * estimate
    torch.testing.assert_close(seen[1], u, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(seen[2], x, rtol=1e-10, atol=1e-10)


def test_dpmpp_2m_is_algorithm_2_of_its_paper():
    schedule = respace(cosine(100), torch.tensor([20, 50, 60, 80]))
    x_T, seen = CountedNoise((8, 1, 2, 2))(), []
    dpmpp_2m(0.0)(curved, x_T, schedule, CountedNoise((8, 1, 2, 2)), lambda _, x_t, __: seen.append(x_t))
    alpha, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    log_snr, times = (alpha / sigma).log(), schedule.times.tolist()
    x = sigma[2] / sigma[3] * x_T - alpha[2] * ((log_snr[3] - log_snr[2]).exp() - 1) * curved(x_T, 80)
    torch.testing.assert_close(seen[1], x, rtol=1e-10, atol=1e-10)
    for step in (1, 0):
        h, h_before = log_snr[step] - log_snr[step + 1], log_snr[step + 1] - log_snr[step + 2]
        r = h_before / h
        now, before = curved(seen[2 - step], times[step + 1]), curved(seen[1 - step], times[step + 2])
        estimate = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before
        x = sigma[step] / sigma[step + 1] * x - alpha[step] * ((-h).exp() - 1) * estimate
        torch.testing.assert_close(seen[3 - step], x, rtol=1e-10, atol=1e-10)


def test_eulers_method_on_the_straight_path_is_ddim():
    schedule = Schedule(schedules.flow(1000), torch.arange(1000))
    steps, noise = spaced(schedule, 9), CountedNoise((8, 1, 2, 2))
    x_T, seen = noise(), []
    ddim(0.0)(curved, x_T, steps, noise, lambda _, x_t, __: seen.append(x_t))
    s = (torch.tensor(steps.times.tolist(), dtype=torch.float64) + 0.5) / 1000
    norm = ((1 - s) ** 2 + s**2).sqrt()
    z = norm[-1] * x_T
    for step in reversed(range(1, 9)):
        velocity = (z - curved(z / norm[step], int(steps.times[step]))) / s[step]
        z = z + (s[step - 1] - s[step]) * velocity
        torch.testing.assert_close(seen[9 - step], z / norm[step - 1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("fraction", "variance"), [(0.0, "small"), (1.0, "large"), (0.3, 0.3)])
def test_a_learned_variance_lies_between_the_small_and_the_large_one(fraction: float, variance: str | float):
    class Learned:
        def __call__(self, x_t: Tensor, t: int) -> Tensor:
            return curved(x_t, t)

        def with_fraction(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
            return curved(x_t, t), torch.full_like(x_t, fraction)

    found = []
    for sampler in (ddpm("learned"), ddpm(variance)):
        noise = CountedNoise((8, 1, 2, 2), seed=4)
        found.append(sampler(Learned(), noise(), spaced(cosine(100), 10), noise))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_the_learned_variance_is_of_every_pixel():
    schedule, fraction = cosine(100), torch.tensor([[[[0.0, 0.25, 1.0]]]], dtype=torch.float64)
    found = learned_log_variance(schedule, 40, fraction)
    small, large = schedule.posterior_variance[40].log(), schedule.beta[40].log()
    torch.testing.assert_close(found.flatten(), torch.stack([small, 0.75 * small + 0.25 * large, large]))
    # At the first step, where β̃ is 0, its logarithm is that of the second.
    assert learned_log_variance(schedule, 0, fraction).flatten()[0] == schedule.posterior_variance[1].log()


def ode_error(sampler: Sampler, steps: int, spacing: Callable[[Schedule, int], Tensor] = log_snr_times) -> float:
    """Greatest distance from where the probability-flow ODE of Gaussian data leads, which is known exactly."""
    schedule, mean, deviation = cosine(1000), 0.4, 0.3
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None, None, None]
    seen: list[Tensor] = []
    times = spacing(schedule, steps)
    sampler(
        exact_denoiser(schedule, mean, deviation),
        x_T,
        respace(schedule, times),
        lambda: torch.zeros_like(x_T),
        lambda _, x_t, __: seen.append(x_t),
    )
    # Compared at the last time above 0: the jump from there to x_0 is the same for all samplers.
    signal = schedule.alpha_bar[times[[0, -1]]]
    spread = (signal * deviation**2 + 1 - signal).sqrt()
    exact = signal[0].sqrt() * mean + spread[0] * (x_T - signal[1].sqrt() * mean) / spread[1]
    return (seen[-2] - exact).abs().max().item()


@pytest.mark.parametrize(("sampler", "per_step"), [(dpmpp_2m(0.0), 1), (heun(), 2)])
def test_second_order_samplers_halve_their_error_twice_where_ddim_does_once(sampler: Sampler, per_step: int):
    assert ode_error(ddim(0.0), 80) > 0.45 * ode_error(ddim(0.0), 40)
    assert ode_error(sampler, 80) < 0.3 * ode_error(sampler, 40)
    assert ode_error(sampler, 80 // per_step) < 0.5 * ode_error(ddim(0.0), 80)


@pytest.mark.parametrize("steps", [10, 25])
def test_heun_stays_close_in_few_even_steps_of_a_cosine(steps: int):
    # Its noise over signal spans orders of magnitude in the first of these steps: averaging slopes in it diverges.
    assert ode_error(heun(), steps, even_times) < 0.7 * ode_error(ddim(0.0), steps, even_times) < 0.1


@pytest.mark.parametrize("steps", [100, 1000])
def test_stochastic_dpmpp_of_gaussian_data_has_its_mean_and_variance(steps: int):
    schedule = cosine(1000)
    noise = CountedNoise((20_000, 1, 1, 1), seed=8)
    found = dpmpp_2m(1.0)(exact_denoiser(schedule, 0.4, 0.5), noise(), spaced(schedule, steps), noise)
    assert found.mean().item() == pytest.approx(0.4, abs=0.015)
    assert found.std().item() == pytest.approx(0.5, rel=0.02)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(DdpmError, match=r"^unknown sampler euler: choose one of ddpm, ddim, dpmpp_2m, heun, "):
        _ = SAMPLERS["euler"]
    with pytest.raises(DdpmError, match=r"^unknown variance middle: choose one of small, large\.$"):
        ddpm("middle")(curved, torch.zeros(1, 1, 1, 1), cosine(3), lambda: torch.zeros(1, 1, 1, 1))
