from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.stats import norm
from torch import Tensor

from ddpm.diffusion.likelihood import step_term
from ddpm.diffusion.objective import TIME_DENSITIES, TIME_SAMPLINGS, WEIGHTINGS, Objective, build_objective
from ddpm.diffusion.process import TARGETS, q_sample, x_0_from_eps
from ddpm.diffusion.samplers import learned_log_variance
from ddpm.diffusion.schedule import Schedule, before, build_schedule, cosine, flow, linear
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
def test_a_weighting_weighs_every_target_like_the_same_error_of_x_0(target: str, gamma: float):
    alpha_bar = torch.cumprod(1 - linear(200, 1e-4, 0.05), 0)
    generator = torch.Generator().manual_seed(0)
    x_0, eps, error = (torch.randn(200, generator=generator, dtype=torch.float64) for _ in range(3))
    x_t = q_sample(x_0, alpha_bar, eps)
    alpha_bar_prev = before(alpha_bar)
    prediction = TARGETS[target].of(x_0, alpha_bar, eps, alpha_bar_prev) + error
    error_of_x_0 = (TARGETS[target].to_x_0(x_t, alpha_bar, prediction, alpha_bar_prev) - x_0) ** 2
    snr = alpha_bar / (1 - alpha_bar)
    of_x_0 = {
        "min_snr": snr.clamp(max=gamma),
        "soft_min_snr": 1 / (1 / snr + 1 / gamma),
        "p2": snr / (1 + snr),
        "edm": (1 / snr + 0.5**2) / (0.5**2 / snr),
    }
    for name, weights in of_x_0.items():
        found = WEIGHTINGS.build(name, SimpleNamespace(min_snr_gamma=gamma), alpha_bar=alpha_bar, target=target)
        np.testing.assert_allclose(found * error**2, weights * error_of_x_0, rtol=1e-8)


def test_p2_of_eps_is_its_equation_8():
    snr = ALPHA_BARS["linear"] / (1 - ALPHA_BARS["linear"])
    np.testing.assert_allclose(WEIGHTINGS["p2"](ALPHA_BARS["linear"], "eps"), 1 / (1 + snr), rtol=1e-9)
    found = WEIGHTINGS["p2"](ALPHA_BARS["linear"], "eps", p2_k=2.0, p2_gamma=0.5)
    np.testing.assert_allclose(found, 1 / (2 + snr) ** 0.5, rtol=1e-9)


@pytest.mark.parametrize("target", list(TARGETS))
def test_the_mean_loss_of_the_weighting_vlb_is_the_steps_of_the_bound(target: str):
    schedule = Schedule(linear(50, 1e-3, 0.2), torch.arange(50))
    weights = WEIGHTINGS["vlb"](schedule.alpha_bar, target)
    generator = torch.Generator().manual_seed(0)
    x_0, eps, error = (torch.randn(50, 1, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    levels = [each[:, None, None, None] for each in (schedule.alpha_bar, schedule.alpha_bar_prev)]
    x_t, entry = q_sample(x_0, levels[0], eps), TARGETS[target]
    x_0_hat = entry.to_x_0(x_t, levels[0], entry.of(x_0, levels[0], eps, levels[1]) + error, levels[1])
    losses = weights * error.square().mean((1, 2, 3))
    for step in (1, 2, 30, 49):
        small = schedule.posterior_variance[step].log()
        term = step_term(x_0[step : step + 1], x_0_hat[step : step + 1], schedule, step, small).item() / 9
        assert losses[step].item() / 50 == pytest.approx(term, rel=1e-8)
    # The decoder's density, at β̃ of the second step.
    density = norm(loc=x_0_hat[0].numpy(), scale=schedule.posterior_variance[1].sqrt().item())
    fall = density.logpdf(x_0_hat[0].numpy()) - density.logpdf(x_0[0].numpy())
    assert losses[0].item() / 50 == pytest.approx(fall.mean(), rel=1e-8)


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


@pytest.mark.parametrize("weighting", ["simple", "min_snr", "soft_min_snr", "p2", "edm"])
@pytest.mark.parametrize("target", ["eps", "v", "x_0"])
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
    of_x_0 = {"min_snr": np.minimum(snr, 5.0), "edm": snr + 4.0, "p2": snr / (1 + snr)}
    of_x_0 |= {"soft_min_snr": 5 * snr / (5 + snr), "simple": {"x_0": np.ones(6), "eps": snr, "v": snr + 1}[target]}
    weights = of_x_0[weighting] / {"x_0": 1.0, "eps": snr, "v": snr + 1}[target]
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


def test_on_the_straight_path_the_log_normal_density_is_logit_normal_in_its_times():
    # Esser et al. 2024, eq. 19: the logit of s = σ / (α + σ) is log σ of the noise-to-signal ratio.
    ours = objective(time_density="log_normal", schedule="flow", timesteps=1000, log_sigma_mean=0.5, log_sigma_std=0.8)
    torch.testing.assert_close(ours.alpha_bar, torch.cumprod(1 - flow(1000), 0).float())
    t = ours.sample_times(50_000, torch.Generator().manual_seed(1))
    s = (t.double() + 0.5) / 1000
    assert stats.kstest(torch.special.logit(s).numpy(), stats.norm(0.5, 0.8).cdf).statistic < 0.01


LEARNED = SimpleNamespace(learned_variance=True, self_conditioning=False)
SELF = SimpleNamespace(learned_variance=False, self_conditioning=True)


def learning(model: SimpleNamespace, **changes: object) -> Objective:
    """As from the settings, with those of a network."""
    settings: dict[str, Any] = {
        "schedule": "cosine", "timesteps": 100, "target": "eps", "weighting": "simple", "time_density": "uniform",
        "time_sampling": "stratified", "vlb_weight": 0.001,
    }  # fmt: skip
    both = SimpleNamespace(**settings | changes)
    return build_objective(both, both, model)


def test_with_a_learned_variance_the_loss_is_that_of_equation_16(rng: np.random.Generator):
    ours, schedule = learning(LEARNED), build_schedule(SimpleNamespace(schedule="cosine", timesteps=100))
    images, t = torch.from_numpy(rng.integers(256, size=(3, 2, 3, 3), dtype=np.uint8)), torch.tensor([5, 40, 90])
    eps = torch.from_numpy(rng.normal(size=images.shape)).float()
    spread = torch.from_numpy(rng.uniform(-1, 1, size=images.shape)).float().requires_grad_()
    gain = torch.tensor(0.3, requires_grad=True)
    met = []

    def predict(x_t: Tensor, *_: Tensor | None) -> Tensor:
        met.append(x_t)
        return torch.cat([gain * x_t, spread], 1)

    errors = ours.squared_errors(predict, images, t, eps, None)
    alone = objective(target="eps").squared_errors(lambda x_t, *_: gain * x_t, images, t, eps, None)
    torch.testing.assert_close(errors[:, 0], alone)
    x_0 = images / 127.5 - 1
    for row, step in enumerate(t.tolist()):
        x_0_hat = x_0_from_eps(met[0][row], schedule.alpha_bar[step], 0.3 * met[0][row])
        log_variance = learned_log_variance(schedule, step, (spread[row : row + 1].detach().double() + 1) / 2)
        term = step_term(x_0[row : row + 1], x_0_hat[None], schedule, step, log_variance).item()
        assert errors[row, 1].item() == pytest.approx(term / 18 / np.log(2), rel=2e-3)
    loss = ours.loss(errors, t)
    assert loss.item() == pytest.approx((errors[:, 0] + 0.001 * 100 * errors[:, 1]).mean().item(), rel=1e-6)
    # The bound teaches the variance alone.
    (of_mean,) = torch.autograd.grad(errors[:, 1].sum(), gain, retain_graph=True)
    assert of_mean == 0
    (of_spread,) = torch.autograd.grad(errors[:, 1].sum(), spread)
    assert (of_spread != 0).all()


def test_the_bound_with_a_learned_variance_is_least_at_the_true_one():
    # Where x̂_0 is exact, the reverse step is the posterior, of variance β̃: the lower end of the range.
    ours, images = learning(LEARNED, target="x_0"), torch.full((4, 1, 6, 6), 90, dtype=torch.uint8)
    t, eps = torch.tensor([3, 20, 50, 80]), torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    x_0 = images / 127.5 - 1
    predictions = [torch.cat([x_0, torch.full_like(x_0, level)], 1) for level in (-1.0, 0.0, 1.0)]
    found = [ours.squared_errors(lambda *_, made=made: made, images, t, eps, None) for made in predictions]
    assert found[0][:, 1].abs().max() < 1e-5
    assert (found[0][:, 1] < found[1][:, 1]).all()
    assert (found[1][:, 1] < found[2][:, 1]).all()


def test_with_self_conditioning_half_of_the_images_come_with_the_networks_own_x_0():
    ours = learning(SELF, target="x_0")
    images, t, eps = torch.full((2, 1, 4, 4), 200, dtype=torch.uint8), torch.tensor([30, 60]), torch.randn(2, 1, 4, 4)
    weight, met = torch.tensor(1.5, requires_grad=True), []

    def predict(given: Tensor, *_: Tensor | None) -> Tensor:
        met.append(given)
        return weight * given[:, :1] + given[:, 1:]

    errors = ours.squared_errors(predict, images, t, eps, None, torch.tensor([True, False]))
    (first, second), x_t = met, met[0][:, :1]
    assert not first[:, 1:].any()
    own = (1.5 * x_t).clamp(-1, 1)
    torch.testing.assert_close(second[0, 1], own[0, 0])
    assert not second[1, 1].any()
    assert not second.requires_grad
    x_0 = images / 127.5 - 1
    expected = (torch.stack([1.5 * x_t[0] + own[0], 1.5 * x_t[1]]) - x_0).square().mean((1, 2, 3))
    torch.testing.assert_close(errors.detach(), expected)
    met.clear()
    ours.squared_errors(predict, images, t, eps, None)
    torch.testing.assert_close(met[1][:, 1:], own)


@pytest.mark.parametrize(("sampling", "tolerance"), [("stratified", 1), ("uniform", 60)])
def test_times_follow_the_density(sampling: str, tolerance: int):
    density = torch.tensor([0.5, 0.25, 0.0, 0.25], dtype=torch.float64)
    ours = Objective(TARGETS["eps"], *(density.float(),) * 2, density, TIME_SAMPLINGS[sampling], density.float())
    counts = np.bincount(ours.sample_times(1000, torch.Generator().manual_seed(2)), minlength=4)
    assert np.abs(counts - 1000 * density.numpy()).max() <= tolerance
    assert counts[2] == 0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("schedule", "unknown schedule other: choose one of linear, cosine, quadratic, sigmoid, laplace, flow"),
        ("target", "unknown target other: choose one of eps, v, x_0, velocity, mean"),
        ("weighting", "unknown weighting other: choose one of simple, min_snr, soft_min_snr, p2, edm, vlb"),
        ("time_density", "unknown time density other: choose one of uniform, log_normal, loss_aware"),
        ("time_sampling", "unknown time sampling other: choose one of uniform, stratified"),
    ],
)
def test_an_unknown_name_is_refused_with_those_there_are(key: str, message: str):
    with pytest.raises(DdpmError, match=f"^{message}\\.$"):
        objective(**{key: "other"})
