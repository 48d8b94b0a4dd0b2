"""The editing algorithms on data whose best denoiser is known: Gaussian pixels of a given covariance."""

import pytest
import torch
from torch import Tensor

from ddpm.diffusion.editing import (
    ddim_inversion,
    first_times,
    mixed,
    noised_pair,
    repaint,
    repaint_moves,
    sdedit,
    shortened,
    slerp,
)
from ddpm.diffusion.process import q_sample
from ddpm.diffusion.samplers import Denoise, Noise, ddim, ddpm
from ddpm.diffusion.schedule import Schedule, cosine, respace, trailing_times
from ddpm.sampling.conditions import known_error

RHO = 0.9


@pytest.fixture(scope="module")
def training() -> Schedule:
    return Schedule(cosine(1000), torch.arange(1000))


@pytest.fixture
def noise() -> Noise:
    """Of 4,000 images of two pixels."""
    generator = torch.Generator().manual_seed(3)
    return lambda: torch.randn(4000, 1, 1, 2, generator=generator)


def gaussian(training: Schedule, covariance: Tensor) -> Denoise:
    """E[x_0 | x_t] where x_0 has mean 0 and this covariance."""

    def denoise(x_t: Tensor, t: int) -> Tensor:
        alpha_bar = training.alpha_bar[t]
        gain = alpha_bar.sqrt() * covariance @ torch.linalg.inv(alpha_bar * covariance + (1 - alpha_bar) * torch.eye(2))
        return x_t @ gain.float().T

    return denoise


@pytest.fixture
def pair(training: Schedule) -> Denoise:
    """Two pixels of unit variance and correlation RHO."""
    return gaussian(training, torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64))


def steps(training: Schedule, count: int) -> Schedule:
    return respace(training, trailing_times(training, count))


@pytest.mark.parametrize(("count", "jump", "times"), [(30, 5, 5), (30, 1, 3), (7, 10, 4), (1, 1, 2), (250, 10, 10)])
def test_the_walk_of_repaint(count: int, jump: int, times: int):
    moves = repaint_moves(count, jump, times)
    places = count + torch.tensor(moves).cumsum(0)
    assert places[-1] == 0
    assert places.min() >= 0
    assert (places == 0).sum() == 1  # the finished image is not noised again
    assert places.max() <= count
    jumps = len(range(0, count - jump, jump))
    assert moves.count(1) == jumps * jump * (times - 1)
    assert repaint_moves(count, jump, 1) == [-1] * count


def test_the_walk_of_repaint_is_that_of_the_paper():
    # 6 steps, jumps of 2, each taken twice. The authors' schedule names a state by the time of the step that leaves it,
    # one less than the steps that are left: 5, …, 0, and −1 for the finished image, which no jump begins with.
    times = (5 + torch.tensor(repaint_moves(6, 2, 2)).cumsum(0)).tolist()
    assert times == [4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0, -1]


def test_with_jumps_of_one_step_the_walk_is_algorithm_1_of_repaint():
    # Every step but the last, t = 1, is taken `resamplings` times: its lines 3 and 8.
    moves = repaint_moves(4, 1, 3)
    assert moves == [-1, *[+1, -1] * 2, -1, *[+1, -1] * 2, -1, *[+1, -1] * 2, -1]


def test_resampling_brings_the_painted_pixel_into_harmony_with_the_known_one(
    training: Schedule, pair: Denoise, noise: Noise
):
    x_0, painted = noise(), torch.tensor([[[[False, True]]]])
    slopes, spreads = [], []
    for resamplings in (1, 10):
        found = repaint(pair, x_0, painted, steps(training, 50), noise, 5, resamplings)
        assert torch.equal(found[..., 0], x_0[..., 0])
        known, made = x_0[:, 0, 0, 0], found[:, 0, 0, 1]
        slopes.append(float((known * made).mean() / (known * known).mean()))
        spreads.append(float((made - slopes[-1] * known).var()))
    # p(painted | known) has the mean RHO · known and the variance 1 − RHO².
    assert slopes[0] < 0.8 * RHO
    assert slopes[1] == pytest.approx(RHO, abs=0.06)
    assert spreads[1] == pytest.approx(1 - RHO**2, abs=0.08)


def test_the_error_of_known_pixels_is_that_of_v_on_them_alone(training: Schedule, noise: Noise):
    x_0, schedule = noise(), steps(training, 10)
    weights = (1.0 / (1.0 - schedule.alpha_bar)).sum()  # ‖v − v̂‖² = ‖x_0 − x̂_0‖² / (1 − ᾱ)
    for known in (torch.tensor([[[[True, False]]]]), torch.tensor([[[[True, True]]]])):
        found = known_error(lambda x_t, t: torch.full_like(x_t, 0.3), x_0, known, schedule, noise)
        expected = ((x_0 - 0.3).double().square() * known).flatten(1).sum(1) * weights
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)  # x_0 − 0.3 is taken in float32


def test_inversion_is_undone_by_ddim_and_better_so_with_more_iterations(
    training: Schedule, pair: Denoise, noise: Noise
):
    x_0, schedule = q_sample(noise(), torch.tensor(0.5), noise()), steps(training, 50)
    errors = []
    for iterations in (1, 4):
        x_T = ddim_inversion(pair, x_0, schedule, iterations)
        errors.append(float((ddim()(pair, x_T, schedule, noise) - x_0).abs().max()))
    assert errors[1] < 0.1 * errors[0]
    assert errors[1] < 0.03


def test_slerp_keeps_the_length_and_ends_at_its_ends(noise: Noise):
    one, other = noise()[:5].expand(-1, 1, 3, 2), noise()[:5].expand(-1, 1, 3, 2)
    for place in (0.0, 1.0):
        found = slerp(one, other, torch.full((5, 1, 1, 1), place))
        assert torch.allclose(found, other if place else one, atol=1e-6)
    # Of two unit vectors at a right angle the middle lies at 45°.
    x, y = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    x[..., 0], y[..., 1] = 2.0, 2.0
    middle = slerp(x, y, torch.tensor([0.5]).view(-1, 1, 1, 1))
    assert torch.allclose(middle, torch.full((1, 1, 1, 2), 2.0**0.5))
    assert torch.allclose(slerp(x, x, torch.tensor([0.3]).view(-1, 1, 1, 1)), x)


def test_a_noised_pair_has_the_variance_of_its_time_between_the_ends_too():
    generator = torch.Generator().manual_seed(1)
    one, other, *noises = (torch.randn(1, 1, 100, 100, generator=generator) for _ in range(4))
    flat, alpha_bar = torch.zeros_like(one), torch.tensor(0.3)
    for place in (0.0, 0.5, 1.0):
        fraction = torch.tensor([place]).view(-1, 1, 1, 1)
        assert noised_pair(flat, flat, alpha_bar, tuple(noises), fraction).var() == pytest.approx(0.7, rel=0.03)
        if place in (0.0, 1.0):
            expected = q_sample(other if place else one, alpha_bar, noises[int(place)])
            assert torch.allclose(noised_pair(one, other, alpha_bar, tuple(noises), fraction), expected, atol=1e-5)


def test_a_mixed_prediction_is_each_of_both_at_its_end():
    fraction = torch.tensor([0.0, 0.25, 1.0]).view(-1, 1, 1, 1)
    denoise = mixed(lambda x_t, t: x_t + t, lambda x_t, t: x_t - t, fraction)
    assert denoise(torch.zeros(3, 1, 1, 1), 8).flatten().tolist() == [8.0, 4.0, -8.0]


def test_sdedit_over_all_times_forgets_the_image_and_over_few_keeps_it(training: Schedule, pair: Denoise, noise: Noise):
    x_0 = noise()
    kept = []
    for strength in (0.05, 1.0):
        part, count = shortened(training, strength, 40)
        found = sdedit(ddpm(), pair, x_0, steps(part, count), noise)
        kept.append(float(torch.corrcoef(torch.stack([x_0[..., 0].flatten(), found[..., 0].flatten()]))[0, 1]))
    assert kept[0] > 0.95
    assert abs(kept[1]) < 0.06


@pytest.mark.parametrize(
    ("strength", "times", "count"), [(1.0, 1000, 30), (0.5, 500, 15), (0.001, 1, 1), (0.31, 310, 10)]
)
def test_the_part_of_a_schedule(training: Schedule, strength: float, times: int, count: int):
    part, found = shortened(training, strength, 30)
    assert (len(part), found) == (times, count)
    assert torch.equal(part.alpha_bar, training.alpha_bar[:times])
    assert torch.equal(first_times(training, 3).times, torch.tensor([0, 1, 2]))
