from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import special, stats

from ddpm.diffusion.schedule import (
    SCHEDULES,
    SPACINGS,
    Schedule,
    build_schedule,
    even_times,
    karras_times,
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
} | {
    name: build_schedule(SimpleNamespace(schedule=name, timesteps=1000, beta_start=1e-4, beta_end=0.02))
    for name in ("quadratic", "sigmoid", "laplace", "flow")
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


@pytest.mark.parametrize("steps", [1, 2, 3, 25, 100, 999, 1000])
def test_karras_times_rise_from_the_first_time_to_the_last_that_still_has_some_signal(schedule: Schedule, steps: int):
    steps = min(steps, len(schedule))
    times = karras_times(schedule, steps)
    assert len(times) == steps
    assert (times.diff() > 0).all()
    ratio = (1 / schedule.alpha_bar - 1).sqrt()
    if steps == 1 or ratio[-1] <= 80:
        assert times[-1] == len(schedule) - 1
    elif steps <= len(schedule) // 20:
        assert ratio[times[-1] - 1] < 80 <= ratio[times[-1]]
    assert steps == 1 or times[0] == 0


def test_karras_times_agree_with_the_papers_formula_where_the_schedule_is_fine_enough():
    schedule = linear(100_000, 1e-6, 3e-4)
    ratio = (1 / schedule.alpha_bar - 1).sqrt().numpy()
    assert ratio[-1] > 80
    low, high, i = ratio[0], 80.0, np.arange(12)[::-1]
    wanted = (high ** (1 / 7) + i / 11 * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    np.testing.assert_allclose(ratio[karras_times(schedule, 12)], wanted, rtol=0.01)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(DdpmError, match=r"^unknown schedule even: choose one of linear, cosine, quadratic, sigmoid,"):
        build_schedule(SimpleNamespace(schedule="even", timesteps=10))
    with pytest.raises(
        DdpmError, match=r"^unknown spacing quadratic: choose one of even, trailing, log_snr, karras\.$"
    ):
        _ = SPACINGS["quadratic"]
    assert list(SCHEDULES) == ["linear", "cosine", "quadratic", "sigmoid", "laplace", "flow"]


def test_quadratic_schedule_has_linear_roots():
    beta = EXAMPLES["quadratic"].beta.numpy()
    np.testing.assert_allclose(np.sqrt(beta), np.linspace(1e-4**0.5, 0.02**0.5, 1000), rtol=1e-12)


def test_sigmoid_schedule_agrees_with_its_formula():
    u = np.arange(1, 1000) / 1000
    start, end = special.expit(-3.0), special.expit(3.0)
    # Chen 2023, algorithm 1.
    expected = (-special.expit(u * 6 - 3) + end) / (end - start)
    np.testing.assert_allclose(EXAMPLES["sigmoid"].alpha_bar[:-1], expected, rtol=1e-9)
    assert EXAMPLES["sigmoid"].alpha_bar[-1] < 1e-5


def test_log_snr_of_the_laplace_schedule_is_laplace_distributed():
    log_snr = torch.special.logit(EXAMPLES["laplace"].alpha_bar).numpy()
    assert stats.kstest(log_snr, stats.laplace(0.0, 0.5).cdf).statistic < 1e-3
    u = (np.arange(1000) + 0.5) / 1000
    expected = -0.5 * np.sign(0.5 - u) * np.log(1 - 2 * np.abs(u - 0.5))
    np.testing.assert_allclose(log_snr, expected, rtol=1e-8, atol=1e-10)


def test_flow_schedule_has_the_signal_to_noise_ratio_of_the_straight_path():
    s = (np.arange(1000) + 0.5) / 1000
    alpha_bar = EXAMPLES["flow"].alpha_bar.numpy()
    np.testing.assert_allclose(alpha_bar / (1 - alpha_bar), ((1 - s) / s) ** 2, rtol=1e-6)


def schedule_of(name: str, **changes: object) -> Schedule:
    return build_schedule(SimpleNamespace(schedule=name, timesteps=1000, beta_start=1e-4, beta_end=0.02, **changes))


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_a_shift_moves_log_snr_by_twice_its_logarithm(name: str):
    # Hoogeboom et al. 2023, §3.1: for images of three times the size, log-SNR − 2 log 3.
    before, after = (torch.special.logit(schedule_of(name, shift=shift).alpha_bar) for shift in (1.0, 3.0))
    np.testing.assert_allclose(after - before, np.full(1000, -2 * np.log(3.0)), rtol=1e-6)


def test_on_the_straight_path_a_shift_is_that_of_its_times():
    # Esser et al. 2024, eq. 23.
    s = torch.tensor((np.arange(1000) + 0.5) / 1000)
    moved = 3.0 * s / (1 + 2.0 * s)
    expected = (1 - moved) ** 2 / ((1 - moved) ** 2 + moved**2)
    np.testing.assert_allclose(schedule_of("flow", shift=3.0).alpha_bar, expected, rtol=1e-8)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_zero_terminal_snr_stretches_the_root_of_alpha_bar_to_its_end(name: str):
    plain, stretched = (schedule_of(name, zero_terminal_snr=zero) for zero in (False, True))
    root, found = plain.alpha_bar.sqrt().numpy(), stretched.alpha_bar.sqrt().numpy()
    # Lin et al. 2024, algorithm 1, up to the 2⁻¹² in place of 0.
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(found, expected, atol=2.5e-4)
    assert found[0] == pytest.approx(root[0], rel=1e-9)
    assert found[-1] == pytest.approx(2.0**-12, rel=1e-6)
    # Its steps stay within what every sampler can take.
    assert ((stretched.beta > 0) & (stretched.beta < 1)).all()


def test_the_range_of_a_learned_variance_is_from_the_posteriors_to_that_of_the_step():
    small, large = EXAMPLES["linear"].log_variance_range
    torch.testing.assert_close(small[1:].exp(), EXAMPLES["linear"].posterior_variance[1:])
    torch.testing.assert_close(large.exp(), EXAMPLES["linear"].beta)
    assert small[0] == small[1]
    (only,), (beta,) = linear(1, 0.1, 0.1).log_variance_range
    assert only == beta


def test_a_schedule_that_leaves_nothing_of_the_image_is_refused():
    with pytest.raises(DdpmError, match=r"the linear schedule leaves nothing .* after 1000 timesteps: lower"):
        linear(1000, 0.1, 0.5)


@pytest.mark.parametrize(("name", "timesteps", "shift"), [("flow", 10_000, 1.0), ("cosine", 1000, 1e-9)])
def test_a_schedule_without_noise_at_its_first_time_is_refused(name: str, timesteps: int, shift: float):
    settings = {"timesteps": timesteps, "shift": shift}
    with pytest.raises(DdpmError, match=rf"^the {name} schedule adds no noise at the first of its {timesteps} time"):
        build_schedule(SimpleNamespace(schedule=name, **settings))
    build_schedule(SimpleNamespace(schedule="flow", timesteps=2000))
    build_schedule(SimpleNamespace(schedule="cosine", timesteps=10_000))
