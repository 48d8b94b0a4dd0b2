import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ddpm.data.image_set import normalize
from ddpm.diffusion import schedule as schedules
from ddpm.diffusion.bound import decoder_term
from ddpm.diffusion.likelihood import (
    Likelihood,
    bits_per_dimension,
    prior_term,
    step_term,
    step_variance,
    visited_times,
)
from ddpm.diffusion.process import q_posterior_mean
from ddpm.diffusion.samplers import VARIANCES
from ddpm.diffusion.schedule import Schedule, even_times, respace
from ddpm.utils.processes import process_pool


def linear(timesteps: int, beta_start: float, beta_end: float) -> Schedule:
    return Schedule(schedules.linear(timesteps, beta_start, beta_end), torch.arange(timesteps))


LINEAR = linear(1000, 1e-4, 0.02)
EXAMPLES = {"linear": LINEAR, "cosine": Schedule(schedules.cosine(1000), torch.arange(1000))}


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES.keys())
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return request.param


@pytest.fixture
def x_0() -> Tensor:
    return normalize(torch.randint(256, (6, 1, 5, 5), generator=torch.Generator().manual_seed(1), dtype=torch.uint8))


def test_the_prior_term_is_torchs_divergence(schedule: Schedule, x_0: Tensor):
    signal = schedule.alpha_bar[-1]
    q = Normal(signal.sqrt() * x_0.double(), (1 - signal).sqrt().expand(x_0.shape))
    expected = kl_divergence(q, Normal(torch.zeros_like(q.loc), 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(prior_term(x_0, schedule), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("variance", list(VARIANCES))
@pytest.mark.parametrize("step", [1, 2, 500, 999])
def test_a_steps_term_is_torchs_divergence_of_the_two_reverse_steps(
    schedule: Schedule, x_0: Tensor, step: int, variance: str
):
    x_t, x_0_hat = torch.randn(x_0.shape, dtype=torch.float64), (x_0 * 0.9).double()
    signal, before = schedule.alpha_bar[step], schedule.alpha_bar_prev[step]
    means = [q_posterior_mean(x, x_t, signal, before) for x in (x_0.double(), x_0_hat)]
    q = Normal(means[0], schedule.posterior_variance[step].sqrt())
    sigma2 = step_variance(schedule, step, variance)
    expected = kl_divergence(q, Normal(means[1], sigma2.sqrt())).sum((1, 2, 3))
    torch.testing.assert_close(step_term(x_0, x_0_hat, schedule, step, sigma2.log()), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.003, 0.05, 1.0])
def test_the_decoder_is_scipys_probability_of_each_grey_value(sigma: float):
    greys = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    x_0 = normalize(greys)
    mean = torch.full_like(x_0, 0.1)
    found = decoder_term(x_0, mean, torch.tensor(sigma**2, dtype=torch.float64)).numpy()
    edges = np.r_[-np.inf, np.arange(255) / 127.5 - 1 + 1 / 255, np.inf]
    low, high = (edges[:-1] - 0.1) / sigma, (edges[1:] - 0.1) / sigma
    upper = low > 0
    probability = np.where(upper, norm.sf(low) - norm.sf(high), norm.cdf(high) - norm.cdf(low))
    there = probability > 1e-290
    np.testing.assert_allclose(found[there], -np.log(probability[there]), rtol=1e-4)
    assert np.isfinite(found).all()
    assert np.exp(-found).sum() == pytest.approx(1, rel=1e-6)


def test_an_images_times_are_a_comb_and_all_combs_hold_every_time_once():
    for steps, stride in ((1000, 100), (1000, 77), (10, 3), (2, 1)):
        together = sorted(step for residue in range(stride) for step in visited_times(residue, stride, steps))
        assert together == list(range(1, steps))


MEAN, DEVIATION = -0.1, 0.25


def exact_denoiser(schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x_0 | x_t] for pixels that are N(MEAN, DEVIATION²), from Bayes' rule; t is the time of each image."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        signal = schedule.alpha_bar[t].float()[:, None, None, None]
        gain = signal**0.5 * DEVIATION**2 / (signal * DEVIATION**2 + 1 - signal)
        return MEAN + gain * (x_t - signal**0.5 * MEAN)

    return denoise


@pytest.fixture(scope="module")
def gaussian_images() -> Tensor:
    """256 grey values of normal pixels: uint8 [4000, 1, 6, 6]."""
    x = MEAN + DEVIATION * torch.randn(4000, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


# The entropy of those pixels: of the normal distribution, less the logarithm of the distance of two grey values.
ENTROPY = 0.5 * math.log2(2 * math.pi * math.e * DEVIATION**2) - math.log2(2 / 255)


def bits(
    conditioned: Callable[[Tensor | None], Callable[[Tensor, Tensor], Tensor]],
    images: Tensor,
    labels: Tensor | None,
    frequencies: list[float],
    schedule: Schedule,
    times_per_image: int,
) -> dict[str, float]:
    return bits_per_dimension(Likelihood(conditioned, images, labels, schedule, times_per_image, 7), frequencies)


def bound(schedule: Schedule, images: Tensor, times_per_image: int) -> dict[str, float]:
    denoise = exact_denoiser(LINEAR)
    return bits(lambda _: denoise, images, None, [], schedule, times_per_image)


def test_the_bound_is_above_the_entropy_and_tighter_with_more_steps(gaussian_images: Tensor):
    found = [bound(respace(LINEAR, even_times(LINEAR, steps)), gaussian_images, 50) for steps in (10, 50, 250)]
    for variance in VARIANCES:
        bounds = [each[f"bpd_{variance}"] for each in found]
        assert bounds == sorted(bounds, reverse=True)
        assert all(each[f"bpd_{variance}"] > ENTROPY - 3 * each[f"bpd_{variance}_se"] for each in found)
    assert found[-1]["bpd_large"] < ENTROPY + 0.08


def test_large_variance_suits_broad_data_and_small_variance_a_point(gaussian_images: Tensor):
    # DDPM, §3.2: they are the best choices for normal data and for a single image.
    broad = bound(LINEAR, gaussian_images, 20)
    assert broad["bpd_large"] < broad["bpd_small"] - 0.3
    point = torch.full((40, 1, 6, 6), 77, dtype=torch.uint8)
    oracle = bits(lambda _: lambda x_t, _: normalize(point[: len(x_t)]), point, None, [], LINEAR, 20)
    assert abs(oracle["bpd_steps_small"]) < 1e-9
    assert oracle["bpd_steps_large"] > 0.3


@pytest.mark.parametrize("variance", list(VARIANCES))
def test_the_steps_terms_are_what_the_posterior_variance_says(gaussian_images: Tensor, variance: str):
    signal = LINEAR.alpha_bar[1:]
    left = DEVIATION**2 * (1 - signal) / (signal * DEVIATION**2 + 1 - signal)  # variance of x_0, given x_t
    weight = LINEAR.alpha_bar_prev[1:] * LINEAR.beta[1:] ** 2 / (1 - signal) ** 2
    sigma2 = (LINEAR.posterior_variance if variance == "small" else LINEAR.beta)[1:]
    ratio = LINEAR.posterior_variance[1:] / sigma2
    expected = 0.5 * (weight * left / sigma2 + ratio - 1 - ratio.log()).sum().item() / math.log(2)
    assert bound(LINEAR, gaussian_images, 50)[f"bpd_steps_{variance}"] == pytest.approx(expected, rel=0.01)


def test_of_few_images_each_meets_more_steps_and_all_steps_are_met():
    schedule, met = linear(50, 1e-4, 0.2), []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        assert len(t) == len(x_t)
        met.extend(t.tolist())
        return x_t

    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 3, 3)
    bits(lambda _: denoise, images, None, [], schedule, 1)
    assert sorted(met) == sorted([0] * 6 + [t for t in range(1, 50) for _ in range(2)])
    with pytest.raises(ValueError, match="two images"):
        bits(lambda _: denoise, images[:1], None, [], schedule, 1)


@pytest.mark.parametrize("count", [6, 7, 9, 11])
def test_the_bound_is_that_of_all_steps_for_any_number_of_images(count: int):
    """Images that are all alike, and a denoiser with the same error everywhere, have the same terms at every step."""
    schedule = linear(4, 1e-4, 0.2)  # three groups, as there are three steps beside the decoder's
    images = torch.full((count, 1, 3, 3), 90, dtype=torch.uint8)
    x_0 = normalize(images[:1])
    found = bits(lambda _: lambda x_t, t: (x_0 + 0.1).expand_as(x_t), images, None, [], schedule, 1)
    variances = ((step, step_variance(schedule, step, "small").log()) for step in (1, 2, 3))
    nats = sum(step_term(x_0, x_0 + 0.1, schedule, *each).item() for each in variances)
    assert found["bpd_steps_small"] == pytest.approx(nats / (9 * math.log(2)), rel=1e-6)


def test_few_times_an_image_give_the_same_bound_within_its_error(gaussian_images: Tensor):
    many, few = (bound(LINEAR, gaussian_images, times) for times in (200, 5))
    assert few["bpd_small"] == pytest.approx(many["bpd_small"], abs=4 * few["bpd_small_se"])
    assert many["bpd_small_se"] < few["bpd_small_se"] < 0.1


def test_the_bound_is_the_sum_of_its_parts_with_the_labels(gaussian_images: Tensor):
    labels = torch.arange(400) % 2
    met: list[int] = []

    def make_denoiser(labels: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            assert labels is not None
            assert len(labels) == len(x_t)
            met.extend(labels[t == 0].tolist())
            return exact_denoiser(LINEAR)(x_t, t)

        return denoise

    found = bits(make_denoiser, gaussian_images[:400], labels, [0.25, 0.75], LINEAR, 5)
    expected = -(math.log2(0.25) + math.log2(0.75)) / 2 / 36
    assert found["bpd_label"] == pytest.approx(expected, rel=1e-9)
    for variance in VARIANCES:
        parts = [found[f"bpd_{part}"] for part in ("prior", "decoder", "label", f"steps_{variance}")]
        assert found[f"bpd_{variance}"] == pytest.approx(sum(parts), rel=1e-9)
    assert sorted(met) == sorted(labels.tolist())


def test_a_label_that_no_training_image_has_costs_a_bit_more_than_the_rarest(gaussian_images: Tensor):
    images, labels = gaussian_images[:40], torch.arange(40) % 2
    found = bits(lambda _: exact_denoiser(LINEAR), images, labels, [0.0, 1.0], LINEAR, 5)
    assert found["bpd_label"] == pytest.approx(0.5 / 36, rel=1e-9)


class LearnedDenoiser:
    """The exact denoiser with the variance that is right for pixels that are N(MEAN, DEVIATION²)."""

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.with_fraction(x_t, t)[0]

    def with_fraction(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        signal, before = LINEAR.alpha_bar[t], LINEAR.alpha_bar_prev[t]
        left = DEVIATION**2 * (1 - signal) / (signal * DEVIATION**2 + 1 - signal)  # variance of x_0, given x_t
        true = LINEAR.posterior_variance[t] + before * LINEAR.beta[t] ** 2 / (1 - signal) ** 2 * left
        small, large = (each[t] for each in LINEAR.log_variance_range)
        fraction = (true.log() - small) / (large - small)
        return exact_denoiser(LINEAR)(x_t, t), fraction[:, None, None, None].expand(x_t.shape)


def test_the_learned_variance_has_the_lowest_bound_where_it_is_the_true_one(gaussian_images: Tensor):
    found = bits_per_dimension(Likelihood(lambda _: LearnedDenoiser(), gaussian_images, None, LINEAR, 20, 7, True), [])
    assert found["bpd_steps_learned"] < min(found["bpd_steps_small"], found["bpd_steps_large"])
    # With the true mean and variance of a Gaussian reverse step, the bound is the entropy of the pixels.
    assert found["bpd_learned"] == pytest.approx(ENTROPY, abs=3 * found["bpd_learned_se"] + 0.01)
    assert bound(LINEAR, gaussian_images, 20)["bpd_small"] == found["bpd_small"]


@pytest.mark.parametrize("step", [1, 2, 500, 999])
def test_a_steps_term_with_a_learned_variance_is_torchs_divergence(schedule: Schedule, x_0: Tensor, step: int):
    x_t, x_0_hat = torch.randn(x_0.shape, dtype=torch.float64), (x_0 * 0.9).double()
    signal, before = schedule.alpha_bar[step], schedule.alpha_bar_prev[step]
    means = [q_posterior_mean(x, x_t, signal, before) for x in (x_0.double(), x_0_hat)]
    log_variance = schedule.beta[step].log() + 0.1 * torch.randn(x_0.shape, dtype=torch.float64)
    q, p = Normal(means[0], schedule.posterior_variance[step].sqrt()), Normal(means[1], (log_variance / 2).exp())
    expected = kl_divergence(q, p).sum((1, 2, 3))
    found = step_term(x_0, x_0_hat, schedule, step, log_variance)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_a_worse_denoiser_has_a_worse_bound(gaussian_images: Tensor):
    exact = exact_denoiser(LINEAR)

    def worse(x_t: Tensor, t: Tensor) -> Tensor:
        return exact(x_t, t) + 0.05

    found = bits(lambda _: worse, gaussian_images, None, [], LINEAR, 20)
    assert found["bpd_small"] > bound(LINEAR, gaussian_images, 20)["bpd_small"] + 0.5


@pytest.mark.parametrize("batch_size", [1, 33, 1000])
def test_the_bound_does_not_depend_on_how_many_images_the_network_is_given(gaussian_images: Tensor, batch_size: int):
    """Of 301 images in 150 groups, one of which has three, and whose combs have six or seven times."""
    few, given = gaussian_images[:301], []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        given.append(len(x_t))
        return exact_denoiser(LINEAR)(x_t, t)

    likelihood = Likelihood(lambda _: denoise, few, None, LINEAR, 5, 7, batch_size=batch_size)
    found = bits_per_dimension(likelihood, [])
    assert max(given) == {1: 3, 33: 33, 1000: 301}[batch_size]
    assert len(given) <= 8 * likelihood.batches
    expected = bits_per_dimension(Likelihood(lambda _: denoise, few, None, LINEAR, 5, 7), [])
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_batch_that_memory_does_not_hold_is_halved(gaussian_images: Tensor):
    met: list[int] = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        met.append(len(x_t))
        if len(x_t) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return exact_denoiser(LINEAR)(x_t, t)

    few, exact = gaussian_images[:301], exact_denoiser(LINEAR)
    found = bits_per_dimension(Likelihood(lambda _: denoise, few, None, LINEAR, 5, 7), [])
    assert max(met) > 80
    assert found == pytest.approx(
        bits_per_dimension(Likelihood(lambda _: exact, few, None, LINEAR, 5, 7), []), rel=1e-6
    )


def test_memory_that_holds_no_image_is_no_reason_to_go_on(gaussian_images: Tensor):
    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        bits_per_dimension(Likelihood(lambda _: denoise, gaussian_images[:9], None, LINEAR, 5, 7), [])


def open_likelihood(images: Tensor, number: int) -> Likelihood:
    return Likelihood(lambda _: exact_denoiser(LINEAR), images, None, LINEAR, 5, 7)


def test_the_bound_has_the_same_bits_for_any_number_of_processes(gaussian_images: Tensor):
    few = gaussian_images[:300]
    alone = bits_per_dimension(open_likelihood(few, 0), [])
    with process_pool(2, open_likelihood, few) as pool:
        assert bits_per_dimension(open_likelihood(few, 0), [], pool) == alone
