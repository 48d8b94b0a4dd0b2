import numpy as np
import pytest
from scipy.stats import entropy

from ddpm.evaluation.classes import (
    ambiguous,
    class_distances,
    class_fractions,
    class_kl,
    classifier_score,
    confident,
)
from ddpm.evaluation.frechet import fit_gaussian, frechet_distance


def test_fractions_by_hand():
    probabilities = np.eye(10)[[3, 3, 3, 7]] * 0.95 + 0.005
    probabilities[2] = [0.1] * 3 + [0.2] + [0.1] * 5 + [0.1]
    assert class_fractions(probabilities).tolist() == [0, 0, 0, 0.75, 0, 0, 0, 0.25, 0, 0]
    assert confident(probabilities).tolist() == [True, True, False, True]
    assert ambiguous(probabilities).tolist() == [False, False, True, False]


def test_the_divergence_is_scipys(rng: np.random.Generator):
    fractions, real = rng.dirichlet(np.ones(10)), rng.dirichlet(np.ones(10))
    assert class_kl(fractions, real) == pytest.approx(entropy(fractions, real), rel=1e-12)
    assert class_kl(np.eye(10)[4], np.full(10, 0.1)) == pytest.approx(np.log(10))
    assert class_kl(real, real) == 0


def test_the_classifier_score_counts_the_classes_it_distinguishes():
    assert classifier_score(np.eye(10)[np.arange(50) % 10]) == pytest.approx(10, rel=1e-6)
    assert classifier_score(np.eye(10)[np.arange(50) % 2]) == pytest.approx(2, rel=1e-6)
    assert classifier_score(np.full((50, 10), 0.1)) == pytest.approx(1, rel=1e-6)


def test_each_class_is_compared_with_that_class(rng: np.random.Generator):
    labels = np.arange(2000) % 10
    train, test, generated = (rng.normal(size=(2000, 3)) + labels[:, None] * shift for shift in (1.0, 1.0, 1.2))
    predicted = np.where(labels == 7, 6, labels)  # no image is classified as a 7
    found = class_distances(generated, predicted, train, labels, 10)
    expected = frechet_distance(fit_gaussian(train[labels == 9]), fit_gaussian(generated[labels == 9]))
    assert found[9] == pytest.approx(expected, rel=1e-12)
    assert found[9] > 3 * class_distances(test, labels, train, labels, 10)[9]
    assert np.isnan(found[7])
