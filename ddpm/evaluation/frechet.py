"""The Fréchet distance between two sets of features, each taken as a Gaussian, with its uncertainty."""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ddpm.errors import DdpmError
from ddpm.seeds import numpy_generator


@dataclass(frozen=True)
class Gaussian:
    """mean: float64 [d]. covariance: float64 [d, d], unbiased. count: images it was estimated from."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def fit_gaussian(features: np.ndarray, what: str = "the set") -> Gaussian:
    """Mean and unbiased covariance of features [n, d], in float64; ``what`` names the set in an error.

    Raises DdpmError for values that are not finite, and for n ≤ d: the covariance would be singular and the distance
    say more about the number of images than about them.
    """
    if not np.isfinite(features).all():
        raise DdpmError(f"{what} has features that are no finite numbers.")
    count, dimensions = features.shape
    if count <= dimensions:
        raise DdpmError(
            f"{what} holds {count} images, too few for {dimensions} features: "
            f"raise generate.num_images above {dimensions}."
        )
    features = features.astype(np.float64)
    return Gaussian(features.mean(0), np.cov(features, rowvar=False), count)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), ≥ 0 up to rounding. Heusel et al. 2017, eq. 6.

    The trace of the root is that of the symmetric (Σ_a^½ Σ_b Σ_a^½)^½, from eigenvalues alone: no complex numbers,
    no regularising offset, exact for singular covariances too.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root_a = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root_a @ b.covariance @ root_a).clip(min=0)).sum()
    shift = a.mean - b.mean
    return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def bootstrap_interval(
    features: np.ndarray, reference: Gaussian, resamples: int, seed: int, label: str
) -> tuple[float, float]:
    """95 % interval of the distance of features [n, d] from ``reference``, over resamplings of the n images.

    It is where another set of n images from the same source would score. Each resample lies further from the reference
    than the sample it came from, all by about the same, so their spread is taken and centred on the sample's own
    distance (Efron & Tibshirani 1993, ch. 10 and 13).
    """
    generator = numpy_generator(seed, f"bootstrap {label}")
    estimate = frechet_distance(reference, fit_gaussian(features, label))
    distances = [
        frechet_distance(
            reference, fit_gaussian(features[generator.integers(len(features), size=len(features))], label)
        )
        for _ in tqdm(range(resamples), desc=f"bootstrap, {label}", unit="resample")
    ]
    low, high = np.quantile(distances, [0.025, 0.975]) - np.mean(distances) + estimate
    return float(max(0.0, low)), float(high)
