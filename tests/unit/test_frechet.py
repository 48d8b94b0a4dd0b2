import numpy as np
import pytest
from pytorch_fid.fid_score import calculate_frechet_distance
from scipy.linalg import sqrtm

from ddpm.evaluation import frechet
from ddpm.evaluation.frechet import (
    Gaussian,
    bootstrap_deviations,
    curve_sizes,
    distance_influences,
    fit_gaussian,
    frechet_distance,
    frechet_infinity,
)
from ddpm.utils.errors import DdpmError


def gaussian(rng: np.random.Generator, dimensions: int, rank: int | None = None) -> Gaussian:
    factor = rng.normal(size=(dimensions, rank or 2 * dimensions))
    return Gaussian(rng.normal(size=dimensions), factor @ factor.T / dimensions, 1000)


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")
@pytest.mark.parametrize("dimensions", [2, 16, 96])
def test_distance_agrees_with_scipys_matrix_root_and_with_pytorch_fid(rng: np.random.Generator, dimensions: int):
    for _ in range(3):
        a, b = gaussian(rng, dimensions), gaussian(rng, dimensions)
        shift = a.mean - b.mean
        root = sqrtm(a.covariance @ b.covariance)
        expected = shift @ shift + np.trace(a.covariance + b.covariance - 2 * np.real(root))
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
        other = calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
        assert frechet_distance(a, b) == pytest.approx(other, rel=1e-6)


def test_with_equal_covariances_distance_is_that_of_the_means(rng: np.random.Generator):
    a, b = gaussian(rng, 12), gaussian(rng, 12)
    b = Gaussian(b.mean, a.covariance, 1000)
    assert frechet_distance(a, b) == pytest.approx(((a.mean - b.mean) ** 2).sum(), rel=1e-10)


def test_with_diagonal_covariances_distance_has_a_closed_form(rng: np.random.Generator):
    means, deviations = rng.normal(size=(2, 9)), rng.uniform(0, 3, size=(2, 9))
    a, b = (Gaussian(m, np.diag(s**2), 1000) for m, s in zip(means, deviations, strict=True))
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_distance_is_symmetric_and_does_not_see_rotations(rng: np.random.Generator):
    a, b = gaussian(rng, 10), gaussian(rng, 10)
    turn = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T, g.count) for g in (a, b)]
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_a_set_is_at_no_distance_from_itself(rng: np.random.Generator):
    features = rng.normal(size=(500, 64)).astype(np.float32) * 10
    a = fit_gaussian(features)
    assert abs(frechet_distance(a, fit_gaussian(features[::-1]))) < 1e-8 * np.trace(a.covariance)


def test_singular_covariances_are_exact(rng: np.random.Generator):
    # Of rank 3 in 40 dimensions, on the same 3: the distance is that of the 3-dimensional Gaussians.
    basis = np.linalg.qr(rng.normal(size=(40, 3)))[0]
    small = [gaussian(rng, 3), gaussian(rng, 3)]
    large = [Gaussian(basis @ g.mean, basis @ g.covariance @ basis.T, g.count) for g in small]
    # The root of a rounding error of 1e-16 is 1e-8, once for each of 37 empty dimensions.
    assert frechet_distance(*large) == pytest.approx(frechet_distance(*small), abs=1e-5)
    nothing = Gaussian(small[0].mean, np.zeros((3, 3)), 1000)
    expected = ((nothing.mean - small[1].mean) ** 2).sum() + np.trace(small[1].covariance)
    assert frechet_distance(nothing, small[1]) == pytest.approx(expected, rel=1e-10)


def test_a_gaussian_is_the_mean_and_the_unbiased_covariance(rng: np.random.Generator):
    features = (1000 + rng.normal(size=(50, 3))).astype(np.float32)
    found = fit_gaussian(features)
    exact = features.astype(np.float64)
    centred = exact - exact.mean(0)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, centred.T @ centred / 49, rtol=1e-9)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    assert found.count == 50


@pytest.mark.parametrize("count", [1, 7, 8])
def test_too_few_images_are_refused(count: int):
    with pytest.raises(DdpmError, match=rf"the sample holds {count} images, too few for 8 features"):
        fit_gaussian(np.zeros((count, 8)), "the sample")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused(value: float):
    features = np.zeros((20, 3))
    features[7, 1] = value
    with pytest.raises(DdpmError, match="the sample has features that are not finite numbers"):
        fit_gaussian(features, "the sample")


@pytest.fixture
def sample(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0.5, 1.0, size=(400, 4))


fresh = np.random.default_rng
REFERENCE = Gaussian(np.zeros(4), np.eye(4), 60_000)


def test_deviations_are_around_zero_and_follow_from_the_seed(sample: np.ndarray):
    found = [bootstrap_deviations(sample, REFERENCE, 100, fresh(seed)) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert all(low < 0 < high for low, high in found)


def test_deviations_are_those_of_fresh_samples(sample: np.ndarray, rng: np.random.Generator):
    others = [frechet_distance(REFERENCE, fit_gaussian(rng.normal(0.5, 1.0, size=(400, 4)))) for _ in range(300)]
    low, high = bootstrap_deviations(sample, REFERENCE, 300, fresh(1))
    assert high - low == pytest.approx(np.diff(np.quantile(others, [0.025, 0.975]))[0], rel=0.25)
    assert low == pytest.approx(np.quantile(others, 0.025) - np.mean(others), rel=0.35)


def test_deviations_halve_with_four_times_the_images(sample: np.ndarray, rng: np.random.Generator):
    more = rng.normal(0.5, 1.0, size=(1600, 4))
    widths = [np.diff(bootstrap_deviations(part, REFERENCE, 300, fresh(1)))[0] for part in (sample, more)]
    assert widths[1] / widths[0] == pytest.approx(0.5, rel=0.25)


def test_the_distance_of_a_resample_is_that_of_the_images_it_draws(sample: np.ndarray):
    generator = fresh(1)
    rows = [generator.integers(400, size=400) for _ in range(50)]
    distances = np.array([frechet_distance(REFERENCE, fit_gaussian(sample[chosen])) for chosen in rows])
    expected = np.quantile(distances, [0.025, 0.975]) - distances.mean()
    np.testing.assert_allclose(bootstrap_deviations(sample, REFERENCE, 50, fresh(1)), expected, rtol=1e-9)


def test_the_order_of_images_is_not_seen_even_where_features_are_dead(rng: np.random.Generator):
    features = np.maximum(0, rng.normal(size=(2000, 40)) * np.linspace(0.5, 3, 40)).astype(np.float32)
    features[:, [3, 17, 30]] = 0
    other = features[:, rng.permutation(40)].copy()
    found = [
        frechet_distance(fit_gaussian(features), fit_gaussian(other[rng.permutation(len(other))])) for _ in range(4)
    ]
    assert max(found) - min(found) < 1e-10 * max(found)


def test_fd_infinity_is_the_distance_of_the_distributions_whatever_the_count(rng: np.random.Generator):
    # Two normal distributions whose means differ by 0.3 in each of 8 dimensions.
    reference, expected = Gaussian(np.zeros(8), np.eye(8), 60_000), 8 * 0.3**2
    for count in (300, 3000):
        samples = rng.normal(0.3, 1.0, size=(20, count, 8))
        estimates = [frechet_infinity(sample, reference, fresh(1)) for sample in samples]
        biased = [frechet_distance(reference, fit_gaussian(sample)) for sample in samples]
        error = np.std(estimates) / np.sqrt(len(estimates))
        assert np.mean(estimates) == pytest.approx(expected, abs=3.5 * error)
        assert np.mean(biased) > expected + 3.5 * error if count == 300 else np.mean(biased) > np.mean(estimates)


def test_fd_infinity_of_perfect_images_is_zero_and_may_fall_below(rng: np.random.Generator):
    reference = Gaussian(np.zeros(8), np.eye(8), 60_000)
    estimates = [frechet_infinity(rng.normal(size=(1000, 8)), reference, fresh(1)) for _ in range(20)]
    assert min(estimates) < 0 < max(estimates)
    assert abs(np.mean(estimates)) < 0.01


def test_too_few_images_have_no_fd_infinity(rng: np.random.Generator):
    assert curve_sizes(256, 128) == []
    assert curve_sizes(258, 128)[0] == 129
    assert curve_sizes(10_000, 128)[::9] == [2000, 10_000]
    assert frechet_infinity(rng.normal(size=(12, 8)), Gaussian(np.zeros(8), np.eye(8), 100), fresh(1)) is None


def test_fd_infinity_scatters_as_the_distance_does(
    sample: np.ndarray, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(frechet, "curves", lambda _: (10, 5))
    low, high = bootstrap_deviations(sample, REFERENCE, 300, fresh(1))
    others = [frechet_infinity(rng.normal(0.5, 1.0, size=(400, 4)), REFERENCE, fresh(1)) for _ in range(300)]
    assert None not in others
    scatter = np.diff(np.quantile([other for other in others if other is not None], [0.025, 0.975]))[0]
    assert high - low == pytest.approx(scatter, rel=0.25)


def weighted(features: np.ndarray, weights: np.ndarray) -> Gaussian:
    mean, covariance = np.average(features, 0, weights), np.cov(features, rowvar=False, fweights=weights)
    return Gaussian(mean, covariance, int(weights.sum()))


def test_influences_are_the_derivative_of_the_distance_by_the_weight_of_each_image(rng: np.random.Generator):
    features, reference = rng.normal(0.5, 1.0, size=(30, 4)) * [1, 2, 0.5, 1], gaussian(rng, 4)
    found = distance_influences(features, reference)
    assert abs(found.mean()) < 1e-12 * np.abs(found).max()
    copies = 10**6  # of each image; then one of them once more
    every = np.full(30, copies)
    before = frechet_distance(reference, weighted(features, every))
    for number in (0, 11, 29):
        after = frechet_distance(reference, weighted(features, every + copies // 100 * (np.arange(30) == number)))
        # By n · (d distance) per share of weight; the covariance of 30 images is 30/29 of that of many copies.
        assert (after - before) * 30 / 0.01 == pytest.approx(found[number], rel=0.05, abs=0.05 * found.std())


def test_influences_of_a_singular_covariance_are_those_without_its_empty_dimensions(rng: np.random.Generator):
    basis, small = np.linalg.qr(rng.normal(size=(20, 3)))[0], gaussian(rng, 3)
    features = rng.normal(size=(50, 3))
    large = Gaussian(basis @ small.mean, basis @ small.covariance @ basis.T, 1000)
    found = distance_influences(features @ basis.T, large)
    np.testing.assert_allclose(found, distance_influences(features, small), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("dimensions", "count"), [(4, 400), (64, 1000)])
def test_influences_give_the_interval_of_whole_resamples(rng: np.random.Generator, dimensions: int, count: int):
    reference = Gaussian(np.zeros(dimensions), np.eye(dimensions), 60_000)
    features = rng.normal(0.5, 1.0, size=(count, dimensions)) * rng.uniform(0.5, 1.5, size=dimensions)
    low, high = bootstrap_deviations(features, reference, 300, fresh(1))
    width = 2 * 1.96 * distance_influences(features, reference).std() / np.sqrt(count)
    assert width == pytest.approx(high - low, rel=0.2)
