from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ddpm.diffusion.objective import TIME_DENSITIES, TIME_SAMPLINGS, WEIGHTINGS, Objective, build_objective
from ddpm.diffusion.process import TARGETS, q_sample
from ddpm.diffusion.schedule import cosine, linear
from ddpm.utils.errors import DdpmError

ALPHA_BARS = {
    "cosine": torch.cumprod(1 - cosine(1000), 0),
    "linear": torch.cumprod(1 - linear(1000, 1e-4, 0.02), 0),
}


def objective(**changes: object) -> Objective:
    """As from the settings, with some values changed."""
    settings: dict[str, Any] = {
        "schedule": "cosine", "timesteps": 100, "target": "eps", "weighting": "simple", "min_snr_gamma": 5.0,
        "time_density": "uniform", "log_sigma_mean": 0.0, "log_sigma_std": 1.0, "time_sampling": "stratified",
    }  # fmt: skip
    both = SimpleNamespace(**settings | changes)
    return build_objective(both, both)


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_every_target_like_the_same_error_of_x_0(target: str, gamma: float):
    alpha_bar = torch.cumprod(1 - linear(200, 1e-4, 0.05), 0)
    generator = torch.Generator().manual_seed(0)
    x_0, eps, error = (torch.randn(200, generator=generator, dtype=torch.float64) for _ in range(3))
    x_t = q_sample(x_0, alpha_bar, eps)
    prediction = TARGETS[target].of(x_0, alpha_bar, eps) + error
    weighted = WEIGHTINGS["min_snr"](alpha_bar, target, gamma) * error**2
    snr = alpha_bar / (1 - alpha_bar)
    expected = snr.clamp(max=gamma) * (TARGETS[target].to_x_0(x_t, alpha_bar, prediction) - x_0) ** 2
    np.testing.assert_allclose(weighted, expected, rtol=1e-8)


def test_min_snr_of_eps_is_one_where_the_noise_dominates():
    alpha_bar = ALPHA_BARS["cosine"]
    weights = WEIGHTINGS["min_snr"](alpha_bar, "eps", 5.0)
    low = alpha_bar / (1 - alpha_bar) <= 5.0
    assert 100 < low.sum() < 900
    np.testing.assert_allclose(weights[low], 1.0, rtol=1e-12)
    assert (weights[~low] < 1).all()


@pytest.mark.parametrize("target", list(TARGETS))
def test_the_simple_weighting_is_ones_for_every_target(target: str):
    assert torch.equal(objective(target=target).weights, torch.ones(100))


@pytest.mark.parametrize("weighting", list(WEIGHTINGS))
@pytest.mark.parametrize("target", list(TARGETS))
def test_loss_and_gradient_are_those_of_the_formulas_in_plain_numpy(
    target: str, weighting: str, rng: np.random.Generator
):
    ours = objective(target=target, weighting=weighting)
    images, t = rng.integers(256, size=(6, 2, 3, 3), dtype=np.uint8), np.array([0, 7, 30, 55, 80, 99])
    eps = rng.normal(size=images.shape).astype(np.float32)
    gain = torch.tensor(0.3, requires_grad=True)
    # A network of one weight: its prediction is gain · x_t.
    errors = ours.squared_errors(
        lambda x_t, *_: gain * x_t, torch.from_numpy(images), torch.from_numpy(t), torch.from_numpy(eps), None
    )
    loss = ours.loss(errors, torch.from_numpy(t))
    loss.backward()

    u = np.arange(101) / 100
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))[t][:, None, None, None]
    x_0 = images / 127.5 - 1
    x_t = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps
    wanted = {"eps": eps, "x_0": x_0, "v": np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x_0}[target]
    snr = (alpha_bar / (1 - alpha_bar)).ravel()
    # Hang et al. 2023, §3.4: of x_0 itself, of eps by 1/SNR, of v by 1/(SNR + 1).
    weights = np.minimum(snr, 5.0) / {"x_0": 1.0, "eps": snr, "v": snr + 1}[target]
    weights = weights if weighting == "min_snr" else np.ones(6)
    residual = 0.3 * x_t - wanted
    np.testing.assert_allclose(errors.detach(), (residual**2).mean((1, 2, 3)), rtol=1e-4)
    assert loss.item() == pytest.approx((weights * (residual**2).mean((1, 2, 3))).mean(), rel=1e-4)
    assert gain.grad is not None
    assert gain.grad.item() == pytest.approx((weights * (2 * residual * x_t).mean((1, 2, 3))).mean(), rel=1e-4)


def test_the_network_meets_x_t_the_times_and_the_labels():
    ours, met = objective(), []

    def predict(*inputs: Tensor | None) -> Tensor:
        met.extend(inputs)
        return torch.zeros(2, 1, 4, 4)

    images, t, labels = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8), torch.tensor([3, 90]), torch.tensor([1, 0])
    eps = torch.randn(2, 1, 4, 4)
    ours.squared_errors(predict, images, t, eps, labels)
    torch.testing.assert_close(met[0], q_sample(torch.ones(2, 1, 4, 4), ours.alpha_bar[t][:, None, None, None], eps))
    assert met[1:] == [t, labels]


@pytest.mark.parametrize("density", list(TIME_DENSITIES))
def test_weights_of_an_even_grid_of_times_have_the_mean_of_the_density(density: str):
    ours = objective(time_density=density, weighting="min_snr")
    errors = torch.linspace(1, 2, 100)
    expected = (ours.density * ours.weights * errors).sum().item()
    assert (ours.grid_weights * errors).mean().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [1, 8, 50, 100])
def test_stratified_times_hit_every_stratum_once(count: int):
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        t = objective(timesteps=400).sample_times(count, generator)
        assert (t * count // 400).tolist() == list(range(count)), "strata of a batch"


def test_stratified_times_lie_in_range_where_they_outnumber_the_steps():
    t = objective(timesteps=10).sample_times(64, torch.Generator().manual_seed(5))
    assert t.min() == 0
    assert t.max() == 9
    assert set(np.bincount(t).tolist()) <= {6, 7}


@pytest.mark.parametrize("sampling", list(TIME_SAMPLINGS))
def test_every_time_is_equally_likely(sampling: str):
    generator, ours = torch.Generator().manual_seed(6), objective(timesteps=7, time_sampling=sampling)
    times = torch.cat([ours.sample_times(30, generator) for _ in range(3000)])
    fractions = np.bincount(times, minlength=7) / len(times)
    assert len(fractions) == 7
    np.testing.assert_allclose(fractions, 1 / 7, rtol=0.04)


@pytest.mark.parametrize("sampling", list(TIME_SAMPLINGS))
def test_times_follow_from_the_generator_alone(sampling: str):
    ours = objective(timesteps=1000, time_sampling=sampling)
    first, second, other = (ours.sample_times(64, torch.Generator().manual_seed(seed)) for seed in (9, 9, 10))
    assert first.dtype == torch.int64
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("schedule", ALPHA_BARS)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.4, 0.5)])
def test_log_normal_density_makes_log_sigma_normal_on_every_schedule(schedule: str, mean: float, std: float):
    changes = {"schedule": schedule, "timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    ours = objective(time_density="log_normal", log_sigma_mean=mean, log_sigma_std=std, **changes)
    assert ours.density.sum().item() == pytest.approx(1.0, rel=1e-12)
    assert (ours.density >= 0).all()
    t = ours.sample_times(50_000, torch.Generator().manual_seed(1))
    alpha_bar = ALPHA_BARS[schedule][t]
    log_sigma = 0.5 * torch.log((1 - alpha_bar) / alpha_bar)
    assert stats.kstest(log_sigma.numpy(), stats.norm(mean, std).cdf).statistic < 0.01


@pytest.mark.parametrize(("sampling", "tolerance"), [("stratified", 1), ("uniform", 60)])
def test_times_follow_the_density(sampling: str, tolerance: int):
    density = torch.tensor([0.5, 0.25, 0.0, 0.25], dtype=torch.float64)
    ours = Objective(TARGETS["eps"], density.float(), density.float(), density, TIME_SAMPLINGS[sampling])
    counts = np.bincount(ours.sample_times(1000, torch.Generator().manual_seed(2)), minlength=4)
    assert np.abs(counts - 1000 * density.numpy()).max() <= tolerance
    assert counts[2] == 0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("schedule", "unknown schedule other: choose one of linear, cosine"),
        ("target", "unknown target other: choose one of eps, v, x_0"),
        ("weighting", "unknown weighting other: choose one of simple, min_snr"),
        ("time_density", "unknown time density other: choose one of uniform, log_normal"),
        ("time_sampling", "unknown time sampling other: choose one of uniform, stratified"),
    ],
)
def test_an_unknown_name_is_refused_with_those_there_are(key: str, message: str):
    with pytest.raises(DdpmError, match=f"^{message}\\.$"):
        objective(**{key: "other"})
