from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from ddpm.data.load import GivenLabels
from ddpm.evaluation.even import StratifiedBootstrap, even_order
from ddpm.evaluation.frechet import (
    Gaussian,
    bootstrap_deviations,
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


def drawn(labels: np.ndarray | None, count: int, resamples: int = 400) -> np.ndarray:
    """Weights of resamples: float64 [resamples, count]."""
    bootstrap = StratifiedBootstrap(labels, count)
    return np.array([bootstrap.weights(fresh(seed)) for seed in range(resamples)])


def test_a_resample_gives_each_label_and_on_average_each_image_its_weight(labels: np.ndarray):
    weights = drawn(labels, COUNT)
    of_labels = weights @ np.eye(4)[labels]
    np.testing.assert_allclose(of_labels, np.tile(np.bincount(labels), (400, 1)))
    assert np.abs(weights.mean(0) - 1).max() < 5 * (1 / 400) ** 0.5
    # As if drawn with replacement, and no less than independent images scatter.
    assert weights.std(0).mean() == pytest.approx(1, rel=0.02)


def test_a_label_of_a_single_image_is_joined_with_the_next_one():
    labels = np.array([5, 0, 9, 1, 5, 9, 9, 7, 1, 3, 12])
    weights = drawn(labels, len(labels))
    # In order of labels: 0 with both of 1; 3 with both of 5; 7 with all of 9 and with 12, which is the last.
    for members in ([1, 3, 8], [9, 0, 4], [7, 2, 5, 6, 10]):
        np.testing.assert_allclose(weights[:, members].sum(1), len(members))
        assert (weights[:, members].std(0) > 0.8).all()
    assert (drawn(np.array([4]), 1) == 1).all()
    assert drawn(np.array([4, 7]), 2).sum(1) == pytest.approx(2)


@pytest.mark.parametrize("images", [2, 3, 10])
def test_a_mean_scatters_as_it_does_where_each_label_has_its_own_deviation(rng: np.random.Generator, images: int):
    labels = np.arange(300 // images).repeat(images)
    values = rng.normal(size=len(labels)) * (1 + labels % 7)
    means = drawn(labels, len(labels), 4000) @ values / len(labels)
    deviations = values.reshape(-1, images).var(1, ddof=1)
    assert means.std() == pytest.approx((images * deviations.sum()) ** 0.5 / len(labels), rel=0.05)
    assert means.mean() == pytest.approx(values.mean(), abs=5 * means.std() / 4000**0.5)


def test_images_without_labels_are_drawn_independently():
    assert np.array_equal(even_order(None, 50, fresh(1)), fresh(1).permutation(50))
    chosen = fresh(1).integers(50, size=50)
    assert np.array_equal(StratifiedBootstrap(None, 50).weights(fresh(1)), np.bincount(chosen, minlength=50))


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
        np.mean([np.diff(bootstrap_deviations(each, everything, 200, fresh(1), labels=given)) for each in sets[:5]])
        for given in (None, labels)
    )
    assert known == pytest.approx(scatter[0], rel=0.25)
    assert blind > 1.5 * known


def width(values: Iterable[float]) -> float:
    return float(np.diff(np.quantile(list(values), [0.025, 0.975]))[0])


@pytest.mark.parametrize(("images", "most"), [(1, 4.5), (2, 2.2), (5, 1.25), (10, 1.2)])
def test_deviations_of_hundreds_of_labels_are_right_or_with_single_images_too_large(
    rng: np.random.Generator, images: int, most: float
):
    frequencies = rng.uniform(0.5, 1.5, 2000 // images)
    labels = balanced_labels(range(1, 2001), frequencies)
    places = rng.normal(size=(len(frequencies), 3)) * [6, 2, 0]
    everything = fit_gaussian(places[rng.choice(len(places), 200_000, p=frequencies / frequencies.sum())])
    everything = replace(everything, covariance=everything.covariance + np.eye(3))
    sets = [places[labels] + rng.normal(size=(2000, 3)) + 0.2 for _ in range(400)]
    scatter = width(frechet_distance(everything, fit_gaussian(each)) for each in sets)
    found, blind = (
        np.mean([np.diff(bootstrap_deviations(each, everything, 400, fresh(1), labels=given)) for each in sets[:5]])
        for given in (labels, None)
    )
    assert 0.85 * scatter < found < most * scatter
    assert found < 0.6 * blind or images == 1
    means = np.mean([np.diff(mean_interval(each[:, 2], 400, fresh(1), labels)) for each in sets[:5]])
    assert means == pytest.approx(2 * 1.96 / 2000**0.5, rel=0.1)


def test_deviations_of_few_images_a_feature_and_label_are_rather_too_large_but_smaller_than_without_labels(
    rng: np.random.Generator,
):
    labels, everything = np.arange(200).repeat(2), Gaussian(np.zeros(40), 2 * np.eye(40), 10_000)
    places = rng.normal(size=(200, 40))
    sets = [places[labels] + rng.normal(size=(400, 40)) for _ in range(200)]
    scatter = width(frechet_distance(everything, fit_gaussian(each)) for each in sets)
    found, blind = (
        np.mean([np.diff(bootstrap_deviations(each, everything, 200, fresh(1), labels=given)) for each in sets[:5]])
        for given in (labels, None)
    )
    assert 0.85 * scatter < found < 1.7 * scatter
    assert found < 0.75 * blind


def test_the_interval_of_a_fraction_stays_a_fraction():
    rare = np.arange(1000) == 7
    low, high = mean_interval(rare, 200, fresh(1), np.arange(1000) // 2)
    assert low == 0 < high < 0.01
