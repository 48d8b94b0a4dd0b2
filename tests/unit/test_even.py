from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from ddpm.data.load import GivenLabels
from ddpm.evaluation.even import Resampling, even_order
from ddpm.evaluation.frechet import (
    Gaussian,
    bootstrap_intervals,
    fit_gaussian,
    frechet_distance,
    frechet_infinity,
)
from ddpm.evaluation.measure import mean_interval
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
    resampling = Resampling(labels, COUNT)
    drawn = np.array([resampling.draw(fresh(seed)) for seed in range(400)])
    assert (np.sort(labels[drawn]) == np.sort(labels)).all()
    often = np.array([np.bincount(rows, minlength=COUNT) for rows in drawn])
    assert np.abs(often.mean(0) - 1).max() < 5 * (1 / 400) ** 0.5
    assert resampling.widening == pytest.approx((1000 / 996) ** 0.5)


def test_labels_of_fewer_than_two_images_on_average_are_joined_with_those_that_follow():
    labels = np.array([5, 0, 9, 1, 5, 9, 9, 7, 1, 3, 12])
    resampling = Resampling(labels, len(labels))
    drawn = np.array([resampling.draw(fresh(seed)) for seed in range(500)])
    often = np.array([[(rows == image).sum() for image in range(len(labels))] for rows in drawn])
    # In pairs, in order of labels: 0 with 1, 3 with 5, 7 with 9, and 12 by itself.
    for members in ([1, 3, 8], [9, 0, 4], [7, 2, 5, 6], [10]):
        assert (often[:, members].sum(1) == len(members)).all()
        assert (often[:, members].mean(0) > 0.8).all()
    assert resampling.widening == pytest.approx((11 / 7) ** 0.5)
    # With two images each on average every label is by itself, one of a single image too.
    pairs = Resampling(np.array([0, 1, 1, 1]), 4)
    assert all((pairs.draw(fresh(seed)) == 0).sum() == 1 for seed in range(50))
    single = Resampling(np.array([4]), 1)
    assert single.draw(fresh(0)).tolist() == [0]
    assert single.widening == 1


def test_images_without_labels_are_drawn_independently():
    assert np.array_equal(even_order(None, 50, fresh(1)), fresh(1).permutation(50))
    assert np.array_equal(Resampling(None, 50).draw(fresh(1)), fresh(1).integers(50, size=50))
    assert Resampling(None, 50).widening == 1


def test_a_conditioning_label_is_a_class_and_a_cluster():
    found = GivenLabels(np.array([1, 0, 1, 1]), np.array([0, 1, 5, 0])).conditioning
    assert found is not None
    assert [found[0] == found[i] for i in range(4)] == [True, False, False, True]
    assert len(set(found)) == 3
    assert GivenLabels().conditioning is None


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


@pytest.mark.parametrize("images", [2, 3, 10])
def test_intervals_are_right_where_hundreds_of_labels_have_a_few_images_each(rng: np.random.Generator, images: int):
    frequencies = rng.uniform(0.5, 1.5, 2000 // images)
    labels = balanced_labels(range(1, 2001), frequencies)
    places = rng.normal(size=(len(frequencies), 3)) * [6, 2, 0]
    everything = fit_gaussian(places[rng.choice(len(places), 200_000, p=frequencies / frequencies.sum())])
    everything = replace(everything, covariance=everything.covariance + np.eye(3))

    def one_set() -> np.ndarray:
        return places[labels] + rng.normal(size=(2000, 3)) + 0.2

    def width(values: Iterable[float]) -> float:
        return float(np.diff(np.quantile(list(values), [0.025, 0.975]))[0])

    sets = [one_set() for _ in range(400)]
    distances = width(frechet_distance(everything, fit_gaussian(each)) for each in sets)
    leads_to = width(frechet_infinity(each, everything, fresh(1), labels=labels) or np.nan for each in sets[:100])
    found = [bootstrap_intervals(each, everything, 400, fresh(1), 0.0, labels=labels) for each in sets[:5]]
    assert np.mean([own[1] - own[0] for own, _ in found]) == pytest.approx(distances, rel=0.2)
    assert np.mean([own[1] - own[0] for _, own in found if own]) == pytest.approx(leads_to, rel=0.3)
    means = np.mean([np.diff(mean_interval(each[:, 0], 400, fresh(1), labels)) for each in sets[:5]])
    assert means == pytest.approx(2 * 1.96 / 2000**0.5, rel=0.1)


def test_the_interval_of_a_fraction_stays_a_fraction():
    rare = np.arange(1000) == 7
    low, high = mean_interval(rare, 200, fresh(1), np.arange(1000) // 2)
    assert low == 0 < high < 0.01
