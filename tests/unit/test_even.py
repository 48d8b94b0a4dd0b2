import numpy as np
import pytest

from ddpm.evaluation.even import conditioning_labels, even_order, even_resample
from ddpm.evaluation.frechet import (
    Gaussian,
    bootstrap_intervals,
    fit_gaussian,
    frechet_distance,
    frechet_infinity,
)
from ddpm.sampling.labels import balanced_labels

fresh = np.random.default_rng
FREQUENCIES = np.array([0.5, 0.3, 0.15, 0.05])
COUNT = 1000


@pytest.fixture
def labels(rng: np.random.Generator) -> np.ndarray:
    """Dealt evenly, in an order of no meaning."""
    return rng.permutation(balanced_labels(range(1, COUNT + 1), FREQUENCIES))


def test_every_beginning_of_an_even_order_has_labels_as_even_as_samples(labels: np.ndarray):
    found = even_order(labels, COUNT, fresh(1))
    assert sorted(found) == list(range(COUNT))
    taken = np.eye(4)[labels[found]].cumsum(0)
    expected = np.arange(1, COUNT + 1)[:, None] * np.bincount(labels) / COUNT
    assert np.abs(taken - expected).max() < 3  # of random ones 20
    assert np.abs(np.eye(4)[labels[fresh(1).permutation(COUNT)]].cumsum(0) - expected).max() > 10


def test_the_images_of_a_label_are_in_random_order_and_the_stream_decides(labels: np.ndarray):
    orders = np.array([even_order(labels, COUNT, fresh(seed)) for seed in range(400)])
    assert np.array_equal(orders[3], even_order(labels, COUNT, fresh(3)))
    # Each image comes among the first half as often as not.
    first = np.array([np.bincount(order[: COUNT // 2], minlength=COUNT) for order in orders]).mean(0)
    assert first.mean() == 0.5
    assert np.abs(first - 0.5).max() < 5 * (0.25 / 400) ** 0.5


def test_a_resample_has_the_same_labels_and_each_image_as_often_as_another(labels: np.ndarray):
    drawn = np.array([even_resample(labels, COUNT, fresh(seed)) for seed in range(400)])
    counts = np.array([np.bincount(labels[rows], minlength=4) for rows in drawn])
    assert np.abs(counts - np.bincount(labels)).max() < 20
    often = np.array([np.bincount(rows, minlength=COUNT) for rows in drawn])
    assert np.abs(often.mean(0) - 1).max() < 5 * (1 / 400) ** 0.5
    assert often.std(0).mean() == pytest.approx(0.95**0.5, rel=0.02)  # of a stratum of 20


def test_images_without_labels_are_drawn_independently():
    assert np.array_equal(even_order(None, 50, fresh(1)), fresh(1).permutation(50))
    assert np.array_equal(even_resample(None, 50, fresh(1)), fresh(1).integers(50, size=50))


def test_a_conditioning_label_is_a_class_and_a_cluster():
    classes, clusters = np.array([1, 0, 1, 1]), np.array([0, 1, 5, 0])
    found = conditioning_labels(classes, clusters)
    assert found is not None
    assert [found[0] == found[i] for i in range(4)] == [True, False, False, True]
    assert len(set(found)) == 3
    assert conditioning_labels(None, None) is None


def far_apart(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Two features, of which labels explain most."""
    return rng.normal(size=(len(labels), 2)) + np.array([[4, 0], [-4, 1], [0, 4], [0, -9]])[labels]


@pytest.fixture
def everything() -> Gaussian:
    """Of all images of which the labels are so frequent."""
    labels = np.repeat(np.arange(4), (FREQUENCIES * 400_000).astype(int))
    return fit_gaussian(far_apart(fresh(9), labels))


def test_the_distance_of_infinitely_many_is_right_where_parts_have_labels_as_even(
    labels: np.ndarray, everything: Gaussian, rng: np.random.Generator
):
    sets = [far_apart(rng, labels) for _ in range(30)]
    blind, found = (
        np.array([frechet_infinity(each, everything, fresh(1), labels=given) for each in sets])
        for given in (None, labels)
    )
    assert abs(found.mean()) < 4 * found.std() / 30**0.5 + 5e-4
    assert blind.mean() < -5e-3


def test_the_interval_is_that_of_sets_with_the_same_labels(
    labels: np.ndarray, everything: Gaussian, rng: np.random.Generator
):
    sets = [far_apart(rng, labels) + 0.3 for _ in range(200)]
    scatter = np.diff(np.quantile([frechet_distance(everything, fit_gaussian(each)) for each in sets], [0.025, 0.975]))
    blind, known = (
        np.mean([np.diff(bootstrap_intervals(each, everything, 200, fresh(1), labels=given)[0]) for each in sets[:5]])
        for given in (None, labels)
    )
    assert known == pytest.approx(scatter[0], rel=0.25)
    assert blind > 1.5 * known
