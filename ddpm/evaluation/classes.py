"""What class probabilities say of a set of images: which classes there are, and how clearly."""

import numpy as np

from ddpm.evaluation.frechet import fit_gaussian, frechet_distance

CONFIDENT = 0.9  # an image is confident where the classifier gives one class at least this probability
AMBIGUOUS = 0.7  # and ambiguous where it gives none this much


def confident(probabilities: np.ndarray) -> np.ndarray:
    """Whether one class has probability ≥ `CONFIDENT`: bool [n], from probabilities [n, c]."""
    return probabilities.max(1) >= CONFIDENT


def ambiguous(probabilities: np.ndarray) -> np.ndarray:
    """Whether no class has probability ≥ `AMBIGUOUS`: bool [n], from probabilities [n, c]."""
    return probabilities.max(1) < AMBIGUOUS


def class_fractions(probabilities: np.ndarray) -> np.ndarray:
    """Fraction of images whose most probable class is each one: float64 [c], from probabilities [n, c]."""
    count, classes = probabilities.shape
    return np.bincount(probabilities.argmax(1), minlength=classes) / count


def class_kl(fractions: np.ndarray, real: np.ndarray) -> float:
    """Kullback-Leibler divergence, in nats, of class fractions [c] from ``real`` ones, all of which are above 0."""
    there = fractions > 0
    return float((fractions[there] * np.log(fractions[there] / real[there])).sum())


def classifier_score(probabilities: np.ndarray) -> float:
    """Exp E KL(p(y|x) ‖ p(y)), in [1, c]: the Inception Score (Salimans et al. 2016, §4) with this classifier."""
    p = probabilities.astype(np.float64).clip(1e-12)
    return float(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))


def class_distances(
    features: np.ndarray, predicted: np.ndarray, train: np.ndarray, train_labels: np.ndarray, classes: int
) -> np.ndarray:
    """Fréchet distance of the images of each predicted class from the training images of it: float64 [classes].

    features: [n, d]; predicted: int64 [n]; train: [m, d]; train_labels: int64 [m]. NaN where either set is too small.
    """
    distances = np.full(classes, np.nan)
    for label in range(classes):
        chosen, known = features[predicted == label], train[train_labels == label]
        if min(len(chosen), len(known)) > features.shape[1]:
            distances[label] = frechet_distance(fit_gaussian(known), fit_gaussian(chosen))
    return distances
