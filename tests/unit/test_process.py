import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.diffusion.process import (
    TARGETS,
    eps_from_x_0,
    q_posterior_mean,
    q_sample,
    v_from,
    velocity_from,
    x_0_from_eps,
    x_0_from_v,
)
from ddpm.diffusion.schedule import Schedule, cosine, linear
from ddpm.utils.errors import DdpmError

LINEAR = Schedule(linear(64, 1e-3, 0.15), torch.arange(64))


@pytest.fixture
def x_0() -> Tensor:
    return torch.rand(64, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


@pytest.fixture
def eps() -> Tensor:
    return torch.randn(64, 1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture
def alpha_bar() -> Tensor:
    return LINEAR.alpha_bar[:, None, None, None]


@pytest.fixture
def alpha_bar_prev() -> Tensor:
    return LINEAR.alpha_bar_prev[:, None, None, None]


def test_eps_and_x_0_are_recovered_from_x_t(x_0: Tensor, eps: Tensor, alpha_bar: Tensor):
    x_t = q_sample(x_0, alpha_bar, eps)
    torch.testing.assert_close(x_0_from_eps(x_t, alpha_bar, eps), x_0, rtol=0, atol=1e-12)
    torch.testing.assert_close(eps_from_x_0(x_t, alpha_bar, x_0), eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(x_0_from_v(x_t, alpha_bar, v_from(x_0, alpha_bar, eps)), x_0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("target", list(TARGETS))
def test_every_target_stands_for_the_x_0_it_was_made_from(
    target: str, x_0: Tensor, eps: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor
):
    x_t = q_sample(x_0, alpha_bar, eps)
    prediction = TARGETS[target].of(x_0, alpha_bar, eps, alpha_bar_prev)
    found = TARGETS[target].to_x_0(x_t, alpha_bar, prediction, alpha_bar_prev)
    torch.testing.assert_close(found, x_0, rtol=0, atol=1e-12)


def test_each_target_is_what_its_paper_says(x_0: Tensor, eps: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor):
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    found = {name: TARGETS[name].of(x_0, alpha_bar, eps, alpha_bar_prev) for name in TARGETS}
    x_t = q_sample(x_0, alpha_bar, eps)
    expected = {
        "eps": eps,
        "v": alpha * eps - sigma * x_0,
        "x_0": x_0,
        "velocity": eps - x_0,
        "mean": q_posterior_mean(x_0, x_t, alpha_bar, alpha_bar_prev),
    }
    assert list(found) == list(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)


def test_the_velocity_is_the_slope_of_the_straight_path(x_0: Tensor, eps: Tensor, alpha_bar: Tensor):
    def path(s: Tensor) -> Tensor:
        return (1 - s) * x_0 + s * eps

    s = (1 - alpha_bar).sqrt() / (alpha_bar.sqrt() + (1 - alpha_bar).sqrt())
    torch.testing.assert_close((path(s + 1e-3) - path(s - 1e-3)) / 2e-3, velocity_from(x_0, eps), rtol=1e-9, atol=1e-9)
    # x_t is the path's point, scaled to the variance 1.
    torch.testing.assert_close(
        q_sample(x_0, alpha_bar, eps), path(s) / ((1 - s) ** 2 + s**2).sqrt(), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("given", list(TARGETS))
def test_a_prediction_of_any_target_is_one_of_v_and_back(
    given: str, x_0: Tensor, eps: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor
):
    # Not a target of these x_0 and eps, but any prediction: half of it, as of an imperfect network.
    x_t, source, v = q_sample(x_0, alpha_bar, eps), TARGETS[given], TARGETS["v"]
    prediction = source.of(x_0, alpha_bar, eps, alpha_bar_prev) / 2
    x_0_hat = source.to_x_0(x_t, alpha_bar, prediction, alpha_bar_prev)
    as_v = v.of(x_0_hat, alpha_bar, eps_from_x_0(x_t, alpha_bar, x_0_hat), alpha_bar_prev)
    torch.testing.assert_close(v.to_x_0(x_t, alpha_bar, as_v, alpha_bar_prev), x_0_hat, rtol=1e-10, atol=1e-10)
    back = source.of(x_0_hat, alpha_bar, eps_from_x_0(x_t, alpha_bar, x_0_hat), alpha_bar_prev)
    torch.testing.assert_close(back, prediction, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("target", list(TARGETS))
def test_an_error_of_the_target_becomes_the_error_of_x_0_that_the_target_states(
    target: str, x_0: Tensor, eps: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor
):
    x_t, entry = q_sample(x_0, alpha_bar, eps), TARGETS[target]
    found = entry.to_x_0(x_t, alpha_bar, entry.of(x_0, alpha_bar, eps, alpha_bar_prev) + 0.1, alpha_bar_prev)
    expected = entry.x_0_error(alpha_bar, alpha_bar_prev) * 0.1**2
    torch.testing.assert_close((found - x_0) ** 2, expected.expand_as(x_0), rtol=1e-8, atol=1e-12)


def test_an_unknown_target_is_refused_with_those_there_are():
    with pytest.raises(DdpmError, match=r"^unknown target score: choose one of eps, v, x_0, velocity, mean\.$"):
        _ = TARGETS["score"]


def test_x_t_and_v_are_a_rotation_of_x_0_and_eps(x_0: Tensor, eps: Tensor, alpha_bar: Tensor):
    x_t, v = q_sample(x_0, alpha_bar, eps), v_from(x_0, alpha_bar, eps)
    torch.testing.assert_close(x_t**2 + v**2, x_0**2 + eps**2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [0, 20, 63])
def test_x_t_has_the_variance_of_the_forward_process(t: int, alpha_bar: Tensor):
    generator = torch.Generator().manual_seed(3)
    x_0 = 0.5 + 0.3 * torch.randn(400_000, 1, 1, 1, generator=generator, dtype=torch.float64)
    eps = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    x_t = q_sample(x_0, alpha_bar[t], eps)
    signal = alpha_bar[t].item()
    assert x_t.var().item() == pytest.approx(signal * 0.09 + 1 - signal, rel=0.01)
    assert x_t.mean().item() == pytest.approx(signal**0.5 * 0.5, abs=0.006)


def test_posterior_mean_has_the_coefficients_of_equation_7(x_0: Tensor, eps: Tensor):
    schedule = LINEAR
    beta = schedule.beta.numpy()
    alpha_bar = np.cumprod(1 - beta)
    x_t = q_sample(x_0, schedule.alpha_bar[:, None, None, None], eps)
    for t in (1, 2, 31, 63):
        first = np.sqrt(alpha_bar[t - 1]) * beta[t] / (1 - alpha_bar[t])
        second = np.sqrt(1 - beta[t]) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
        found = q_posterior_mean(x_0[t], x_t[t], schedule.alpha_bar[t], schedule.alpha_bar[t - 1])
        np.testing.assert_allclose(found, first * x_0[t] + second * x_t[t], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("t", [1, 10, 49])
def test_posterior_mean_is_that_of_bayes_rule(t: int):
    schedule = Schedule(cosine(50), torch.arange(50))
    x_0, x_t = 0.37, -1.21
    alpha, beta = 1 - schedule.beta[t].item(), schedule.beta[t].item()
    previous = schedule.alpha_bar_prev[t].item()
    # Prior N(√ᾱ_{t−1} x_0, 1 − ᾱ_{t−1}) times likelihood N(x_t; √α x_{t−1}, β): precisions add.
    precision = 1 / (1 - previous) + alpha / beta
    mean = (previous**0.5 * x_0 / (1 - previous) + alpha**0.5 * x_t / beta) / precision
    found = q_posterior_mean(
        torch.tensor(x_0, dtype=torch.float64),
        torch.tensor(x_t, dtype=torch.float64),
        schedule.alpha_bar[t],
        schedule.alpha_bar_prev[t],
    )
    assert found.item() == pytest.approx(mean, rel=1e-10)


def test_posterior_mean_before_the_first_time_is_x_0(x_0: Tensor, eps: Tensor):
    alpha_bar = LINEAR.alpha_bar[0]
    found = q_posterior_mean(x_0, eps, alpha_bar, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(found, x_0, rtol=0, atol=1e-12)
