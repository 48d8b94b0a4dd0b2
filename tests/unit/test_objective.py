import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ddpm.diffusion.objective import loss_weights, sample_times, time_density
from ddpm.diffusion.process import q_sample, target_of, x_0_from
from ddpm.diffusion.schedule import Schedule, cosine_schedule, linear_schedule


@pytest.mark.parametrize("target", ["eps", "v", "x_0"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_every_target_like_the_same_error_of_x_0(target: str, gamma: float):
    alpha_bar = linear_schedule(200, 1e-4, 0.05).alpha_bar
    generator = torch.Generator().manual_seed(0)
    x_0, eps, error = (torch.randn(200, generator=generator, dtype=torch.float64) for _ in range(3))
    x_t = q_sample(x_0, alpha_bar, eps)
    prediction = target_of(target, x_0, alpha_bar, eps) + error
    weighted = loss_weights(target, "min_snr", alpha_bar, gamma) * error**2
    snr = alpha_bar / (1 - alpha_bar)
    expected = snr.clamp(max=gamma) * (x_0_from(target, x_t, alpha_bar, prediction) - x_0) ** 2
    np.testing.assert_allclose(weighted, expected, rtol=1e-8)


def test_min_snr_of_eps_is_one_where_the_noise_dominates():
    alpha_bar = cosine_schedule(1000).alpha_bar
    weights = loss_weights("eps", "min_snr", alpha_bar, 5.0)
    low = alpha_bar / (1 - alpha_bar) <= 5.0
    assert 100 < low.sum() < 900
    np.testing.assert_allclose(weights[low], 1.0, rtol=1e-12)
    assert (weights[~low] < 1).all()


@pytest.mark.parametrize("target", ["eps", "v", "x_0"])
def test_no_weighting_is_ones(target: str):
    assert torch.equal(
        loss_weights(target, "none", cosine_schedule(10).alpha_bar, 5.0), torch.ones(10, dtype=torch.float64)
    )


def flat(total: int) -> Tensor:
    return time_density("uniform", cosine_schedule(total).alpha_bar, 0.0, 1.0).cumsum(0)


@pytest.mark.parametrize("count", [1, 8, 50, 100])
def test_stratified_times_hit_every_stratum_once(count: int):
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        t = sample_times(count, flat(400), "stratified", generator)
        assert (t * count // 400).tolist() == list(range(count)), "strata of a batch"


def test_stratified_times_lie_in_range_where_they_outnumber_the_steps():
    t = sample_times(64, flat(10), "stratified", torch.Generator().manual_seed(5))
    assert t.min() == 0
    assert t.max() == 9
    assert set(np.bincount(t).tolist()) <= {6, 7}


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_every_time_is_equally_likely(sampling: str):
    generator = torch.Generator().manual_seed(6)
    draws = torch.cat([sample_times(30, flat(7), sampling, generator) for _ in range(3000)])
    shares = np.bincount(draws, minlength=7) / len(draws)
    assert len(shares) == 7
    np.testing.assert_allclose(shares, 1 / 7, rtol=0.04)


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_times_follow_from_the_generator_alone(sampling: str):
    first, second, other = (
        sample_times(64, flat(1000), sampling, torch.Generator().manual_seed(seed)) for seed in (9, 9, 10)
    )
    assert first.dtype == torch.int64
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("schedule", [cosine_schedule(1000), linear_schedule(1000, 1e-4, 0.02)])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-0.4, 0.5)])
def test_log_normal_density_makes_log_sigma_normal_on_every_schedule(schedule: Schedule, mean: float, deviation: float):
    density = time_density("log_normal", schedule.alpha_bar, mean, deviation)
    assert density.sum().item() == pytest.approx(1.0, rel=1e-12)
    assert (density >= 0).all()
    t = sample_times(50_000, density.cumsum(0), "stratified", torch.Generator().manual_seed(1))
    log_sigma = 0.5 * torch.log((1 - schedule.alpha_bar) / schedule.alpha_bar)[t]
    assert stats.kstest(log_sigma.numpy(), stats.norm(mean, deviation).cdf).statistic < 0.01


def test_stratified_times_follow_the_density():
    density = torch.tensor([0.5, 0.25, 0.0, 0.25], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    for sampling, tolerance in (("stratified", 1), ("uniform", 60)):
        counts = np.bincount(sample_times(1000, density.cumsum(0), sampling, generator), minlength=4)
        assert np.abs(counts - 1000 * density.numpy()).max() <= tolerance
        assert counts[2] == 0
