import numpy as np
import pytest
from scipy.stats import entropy

from ddpm.evaluation.classes import (
    class_divergence,
    class_score,
    class_shares,
    label_agreement,
    measure_by_class,
    sure_share,
    unsure_share,
)
from ddpm.evaluation.frechet import fit_gaussian, frechet_distance


def test_shares_by_hand():
    probabilities = np.eye(10)[[3, 3, 3, 7]] * 0.95 + 0.005
    probabilities[2] = [0.1] * 3 + [0.2] + [0.1] * 5 + [0.1]
    assert class_shares(probabilities).tolist() == [0, 0, 0, 0.75, 0, 0, 0, 0.25, 0, 0]
    assert sure_share(probabilities) == 0.75
    assert unsure_share(probabilities) == 0.25


def test_label_agreement_by_hand():
    assert label_agreement(np.eye(10)[[3, 3, 5, 7]], np.array([3, 4, 5, 8])) == 0.5


def test_the_divergence_is_scipys(rng: np.random.Generator):
    shares, real = rng.dirichlet(np.ones(10)), rng.dirichlet(np.ones(10))
    assert class_divergence(shares, real) == pytest.approx(entropy(shares, real), rel=1e-12)
    assert class_divergence(np.eye(10)[4], np.full(10, 0.1)) == pytest.approx(np.log(10))
    assert class_divergence(real, real) == 0


def test_the_class_score_counts_the_classes_that_are_told_apart():
    assert class_score(np.eye(10)[np.arange(50) % 10]) == pytest.approx(10, rel=1e-6)
    assert class_score(np.eye(10)[np.arange(50) % 2]) == pytest.approx(2, rel=1e-6)
    assert class_score(np.full((50, 10), 0.1)) == pytest.approx(1, rel=1e-6)


def test_each_digit_is_held_against_that_digit(rng: np.random.Generator):
    labels = np.arange(2000) % 10
    train, test, drawn = (rng.normal(size=(2000, 3)) + labels[:, None] * shift for shift in (1.0, 1.0, 1.2))
    probabilities = np.eye(10)[labels]
    probabilities[labels == 7] = np.eye(10)[6]  # no image reads as a 7
    found = measure_by_class(drawn, probabilities, (train, labels), (test, labels))
    expected = frechet_distance(fit_gaussian(train[labels == 9]), fit_gaussian(drawn[labels == 9]))
    assert found.distances[9, 0] == pytest.approx(expected, rel=1e-12)
    assert found.distances[9, 0] > 3 * found.distances[9, 1]
    assert np.isnan(found.distances[7, 0])
    np.testing.assert_allclose(found.shares.sum(0), 1)
    rows = found.rows()
    assert len(rows) == 20
    assert rows[14] == (7, "generated", 0.0, None)
    assert rows[13][:3] == (6, "real", 0.1)
