"""What the shipped classifier's verdicts say of a set of images: which digits, and how surely they are digits."""

from dataclasses import dataclass

import numpy as np

from ddpm.evaluation.features.classifier import CLASSES
from ddpm.evaluation.frechet import fit_gaussian, frechet_distance

SURE = 0.9  # a digit counts as sure where the classifier gives one class at least this probability
UNSURE = 0.7  # and as unsure where it gives none this much


def sure_share(probabilities: np.ndarray) -> float:
    """Share of images given one class with probability ≥ `SURE`, from probabilities [n, 10]."""
    return float((probabilities.max(1) >= SURE).mean())


def unsure_share(probabilities: np.ndarray) -> float:
    """Share of images given no class with probability ≥ `UNSURE`, from probabilities [n, 10]."""
    return float((probabilities.max(1) < UNSURE).mean())


def label_agreement(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose likeliest class, from probabilities [n, 10], is their label, from integers [n]."""
    return float((probabilities.argmax(1) == labels).mean())


def class_shares(probabilities: np.ndarray) -> np.ndarray:
    """Share of images whose likeliest class is each digit: float64 [10], from probabilities [n, 10]."""
    return np.bincount(probabilities.argmax(1), minlength=CLASSES) / len(probabilities)


def class_divergence(shares: np.ndarray, real: np.ndarray) -> float:
    """Kullback-Leibler divergence, in nats, of class shares [10] from ``real`` ones, all of which are above 0."""
    there = shares > 0
    return float((shares[there] * np.log(shares[there] / real[there])).sum())


def class_score(probabilities: np.ndarray) -> float:
    """Exp E KL(p(y|x) ‖ p(y)), in [1, 10]: the Inception Score (Salimans et al. 2016, §4) with digits as classes."""
    p = probabilities.astype(np.float64).clip(1e-12)
    return float(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))


@dataclass(frozen=True)
class ByClass:
    """One row a digit, generated and real: shares float64 [10, 2], distances float64 [10, 2].

    A distance is the Fréchet distance of the images read as that digit from the training images of it; that of the
    real column is scored by the test images. NaN where there are too few images for one.
    """

    shares: np.ndarray
    distances: np.ndarray

    def rows(self) -> list[tuple[int, str, float, float | None]]:
        """A table: digit, set, share, fd_mnist (None for NaN)."""
        return [
            (digit, name, float(self.shares[digit, column]), None if np.isnan(distance) else float(distance))
            for digit in range(CLASSES)
            for column, name in enumerate(("generated", "real"))
            for distance in [self.distances[digit, column]]
        ]


def measure_by_class(
    features: np.ndarray,
    probabilities: np.ndarray,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> ByClass:
    """Divide images by the classifier's verdict and hold each digit's against that digit.

    features: float32 [n, 128]; probabilities: float32 [n, 10]; train: features and labels of real images; test:
    features and verdicts.
    """
    verdict = probabilities.argmax(1)
    distances = np.full((CLASSES, 2), np.nan)
    for digit in range(CLASSES):
        known = fit_gaussian(train[0][train[1] == digit], f"the training images of {digit}")
        for column, (values, labels) in enumerate(((features, verdict), test)):
            chosen = values[labels == digit]
            if len(chosen) > chosen.shape[1]:
                distances[digit, column] = frechet_distance(known, fit_gaussian(chosen))
    real = np.bincount(test[1], minlength=CLASSES) / len(test[1])
    return ByClass(np.stack([class_shares(probabilities), real], 1), distances)
