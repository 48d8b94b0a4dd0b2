from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ddpm.diffusion.schedule import (
    SCHEDULES,
    SPACINGS,
    Schedule,
    build_schedule,
    even_times,
    log_snr_times,
    respace,
    trailing_times,
)
from ddpm.utils.errors import DdpmError


def linear(timesteps: int, beta_start: float, beta_end: float) -> Schedule:
    return build_schedule(
        SimpleNamespace(schedule="linear", timesteps=timesteps, beta_start=beta_start, beta_end=beta_end)
    )


def cosine(timesteps: int) -> Schedule:
    return build_schedule(SimpleNamespace(schedule="cosine", timesteps=timesteps))


EXAMPLES = {
    "linear": linear(1000, 1e-4, 0.02),
    "cosine": cosine(1000),
    "short linear": linear(10, 1e-4, 0.3),
    "short cosine": cosine(10),
}


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES.keys())
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return request.param


def test_alpha_bar_falls_strictly_between_one_and_zero(schedule: Schedule):
    alpha_bar = schedule.alpha_bar.numpy()
    assert alpha_bar.dtype == np.float64
    assert (np.diff(alpha_bar) < 0).all()
    assert alpha_bar[0] < 1
    assert alpha_bar[-1] > 0


def test_times_count_from_zero(schedule: Schedule):
    assert schedule.times.tolist() == list(range(len(schedule)))


def test_linear_schedule_agrees_with_plain_numpy():
    schedule = linear(1000, 1e-4, 0.02)
    beta = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
    np.testing.assert_allclose(schedule.beta, beta, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha_bar, np.cumprod(1 - beta), rtol=1e-11)
    assert schedule.beta[0].item() == 1e-4
    assert schedule.beta[-1].item() == 0.02


def test_linear_schedule_of_the_paper_ends_in_almost_pure_noise():
    assert linear(1000, 1e-4, 0.02).alpha_bar[-1].item() == pytest.approx(4.036e-5, rel=1e-3)


def test_cosine_schedule_agrees_with_its_formula():
    u = np.arange(1001) / 1000
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    schedule = cosine(1000)
    np.testing.assert_allclose(schedule.beta, np.minimum(1 - f[1:] / f[:-1], 0.999), rtol=1e-9)
    np.testing.assert_allclose(schedule.alpha_bar[:-1], (f / f[0])[1:-1], rtol=1e-9)
    assert schedule.beta[-1].item() == 0.999


def test_alpha_bar_prev_is_alpha_bar_one_step_earlier(schedule: Schedule):
    assert schedule.alpha_bar_prev[0].item() == 1.0
    assert torch.equal(schedule.alpha_bar_prev[1:], schedule.alpha_bar[:-1])


def test_posterior_variance_is_that_of_bayes_rule(schedule: Schedule):
    previous, alpha, beta = schedule.alpha_bar_prev[1:], 1 - schedule.beta[1:], schedule.beta[1:]
    precision = 1 / (1 - previous) + alpha / beta
    np.testing.assert_allclose(schedule.posterior_variance[1:], 1 / precision, rtol=1e-9)
    assert schedule.posterior_variance[0].item() == 0.0


def test_posterior_variance_is_below_beta(schedule: Schedule):
    assert (schedule.posterior_variance[1:] < schedule.beta[1:]).all()


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 999, 1000])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_respacing_keeps_alpha_bar_at_the_kept_times(name: str, steps: int):
    whole = EXAMPLES[name]
    times = even_times(cosine(1000), steps)
    kept = respace(whole, times)
    assert torch.equal(kept.times, times)
    np.testing.assert_allclose(kept.alpha_bar, whole.alpha_bar[times], rtol=1e-11, atol=1e-15)
    assert ((kept.beta > 0) & (kept.beta < 1)).all()


def test_respacing_to_every_step_is_the_identity(schedule: Schedule):
    same = respace(schedule, torch.arange(len(schedule)))
    np.testing.assert_allclose(same.beta, schedule.beta, rtol=0, atol=1e-14)
    assert torch.equal(same.times, schedule.times)


def test_respacing_twice_is_respacing_once():
    whole = cosine(1000)
    once = respace(whole, torch.tensor([0, 300, 999]))
    twice = respace(respace(whole, torch.tensor([0, 100, 300, 999])), torch.tensor([0, 2, 3]))
    assert torch.equal(once.times, twice.times)
    np.testing.assert_allclose(once.beta, twice.beta, rtol=1e-12)


@pytest.mark.parametrize(
    ("total", "steps"), [(1000, 2), (1000, 3), (1000, 25), (1000, 999), (1000, 1000), (7, 5), (2, 2)]
)
def test_even_times_rise_from_the_first_time_to_the_last(total: int, steps: int):
    times = even_times(cosine(total), steps)
    gaps = times.diff()
    assert len(times) == steps
    assert times[0] == 0
    assert times[-1] == total - 1
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_a_single_step_is_taken_from_pure_noise():
    assert even_times(cosine(1000), 1).tolist() == [999]


@pytest.mark.parametrize("steps", [1, 2, 3, 25, 100, 999, 1000])
def test_log_snr_times_rise_from_the_first_time_to_the_last(schedule: Schedule, steps: int):
    steps = min(steps, len(schedule))
    times = log_snr_times(schedule, steps)
    assert len(times) == steps
    assert times[-1] == len(schedule) - 1
    assert steps == 1 or times[0] == 0
    assert (times.diff() > 0).all()


@pytest.mark.parametrize(("total", "steps"), [(1000, 1), (1000, 20), (1000, 30), (1000, 1000), (7, 5)])
def test_trailing_times_end_equal_parts_of_all_times(total: int, steps: int):
    times = trailing_times(cosine(total), steps)
    assert times.dtype == torch.int64
    assert len(times) == steps
    assert times[-1] == total - 1
    gaps = torch.cat([torch.tensor([-1]), times]).diff()
    assert gaps.min() >= 1
    assert (gaps - total / steps).abs().max() < 1


def test_log_snr_times_are_even_in_log_snr_where_the_schedule_is_fine_enough():
    schedule = linear(100_000, 1e-6, 2e-4)
    gaps = torch.special.logit(schedule.alpha_bar)[log_snr_times(schedule, 12)].diff()[1:]
    assert gaps.std() < 0.05 * gaps.mean().abs()


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(DdpmError, match=r"^unknown schedule sigmoid: choose one of linear, cosine\.$"):
        build_schedule(SimpleNamespace(schedule="sigmoid", timesteps=10))
    with pytest.raises(DdpmError, match=r"^unknown spacing quadratic: choose one of even, trailing, log_snr\.$"):
        _ = SPACINGS["quadratic"]
    assert list(SCHEDULES) == ["linear", "cosine"]


def test_a_schedule_that_leaves_nothing_of_the_image_is_refused():
    with pytest.raises(DdpmError, match=r"the linear schedule leaves nothing .* after 1000 timesteps: lower"):
        linear(1000, 0.1, 0.5)
