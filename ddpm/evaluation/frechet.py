"""The Fréchet distance between two sets of features, each taken as a Gaussian, with its bias and its uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ddpm.evaluation.even import StratifiedBootstrap, even_order
from ddpm.utils.errors import DdpmError
from ddpm.utils.threads import in_threads

_MANY_DIMENSIONS = 1024

Interval = tuple[float, float]  # its lower and its upper end


@dataclass(frozen=True)
class Gaussian:
    """mean: float64 [d]. covariance: float64 [d, d], unbiased. count: images it was estimated from."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @cached_property
    def factor(self) -> np.ndarray:
        """F [d, r] with F Fᵀ = Σ, r its rank."""
        values, vectors = np.linalg.eigh(self.covariance)
        there = _above_rounding(values)
        return vectors[:, there] * np.sqrt(values[there])


def fit_gaussian(features: np.ndarray, what: str = "the set") -> Gaussian:
    """Mean and unbiased covariance of features [n, d], in float64; ``what`` names the set in an error.

    Raises DdpmError for values that are not finite, and for n ≤ d, where the covariance would be singular.
    """
    if not np.isfinite(features).all():
        raise DdpmError(f"{what} has features that are not finite numbers.")
    count, dimensions = features.shape
    if count <= dimensions:
        raise DdpmError(
            f"{what} holds {count} images, too few for {dimensions} features: raise generate.num_images above "
            f"{dimensions}, or set fid.extractors to [] and fid.swd to on."
        )
    features = features.astype(np.float64)
    return Gaussian(features.mean(0), np.cov(features, rowvar=False), count)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), ≥ 0 up to rounding. Heusel et al. 2017, eq. 6.

    The trace of the root is that of the symmetric (Fᵀ Σ_b F)^½ with Σ_a = F Fᵀ, from eigenvalues alone: no complex
    numbers, no regularising offset, exact for singular covariances too.
    """
    values = np.linalg.eigvalsh(a.factor.T @ b.covariance @ a.factor)
    cross = np.sqrt(values[_above_rounding(values)]).sum()
    shift = a.mean - b.mean
    return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def costly(dimensions: int) -> bool:
    """Whether so many features allow few distances: each takes the eigenvalues of a d × d matrix.

    Those of 2048 features half a second, of 128 a millisecond.
    """
    return dimensions > _MANY_DIMENSIONS


def curves(dimensions: int) -> tuple[int, int]:
    """How many curves FD∞ is the mean of, and at how many numbers of images each is taken."""
    return (4, 5) if costly(dimensions) else (50, 10)


def floor_samples(dimensions: int) -> int:
    """Of how many samples a floor is the mean: one varies by a third with 128 features, by far less with 2048."""
    return 5 if costly(dimensions) else 40


def curve_sizes(count: int, dimensions: int) -> list[int]:
    """The numbers of images at which the distance of ``count`` is taken, to see where it leads: the last is ``count``.

    Empty where there are too few images for that, less than twice those that the covariance needs.
    """
    least, points = max(count // 5, dimensions + 1), curves(dimensions)[1]
    return [] if count < 2 * least else np.linspace(least, count, points).round().astype(int).tolist()


def frechet_infinity(
    features: np.ndarray,
    reference: Gaussian,
    generator: np.random.Generator,
    label: str = "",
    labels: np.ndarray | None = None,
) -> float | None:
    """FD∞: the distance that infinitely many images like features [n, d] would have, without the bias of a finite set.

    The distance falls with the number of images as FD∞ + c/n; a line through it over 1/n, at sizes from n/5 up, meets
    the axis in FD∞ (Chong & Forsyth 2020, "Effectively Unbiased FID"). The mean over random orders of the images, see
    `curves`, in which ``labels``, int64 [n], are spread as evenly as they are in all (`even_order`); None for images
    drawn independently. Of images like the reference's it may fall below 0. None where n is too small: see
    `curve_sizes`.
    """
    sizes = curve_sizes(*features.shape)
    if not sizes:
        return None
    count = curves(features.shape[1])[0]
    orders = (even_order(labels, len(features), generator) for _ in range(count))
    found = in_threads(
        lambda rows: _curve(features[rows], reference, sizes), orders, count, f"infinity, {label}", "curve"
    )
    return float(np.polyfit(1.0 / np.array(sizes), np.mean(found, 0), 1)[1])


def bootstrap_deviations(
    features: np.ndarray,
    reference: Gaussian,
    resamples: int,
    generator: np.random.Generator,
    label: str = "",
    labels: np.ndarray | None = None,
) -> Interval:
    """How far a set of images like features [n, d] scores below and above their mean distance: 95 % of all sets.

    (low, high) around 0, of other sets of n images from the same source, with the same ``labels`` (int64 [n]) where
    there are some: see `StratifiedBootstrap`. Each resample lies further from the reference than the sample that it
    came from, all by about the same, so it is their spread that is taken (Efron & Tibshirani 1993, ch. 10 and 13).
    FD∞ scatters as the distance does: what leads from one to the other, c/n, is common to all such sets. The random
    orders behind it add 1 % to the width, the few of 2048 features 6 %, which is not counted.
    """
    bootstrap = StratifiedBootstrap(labels, count := len(features))
    centre = features.mean(0, dtype=np.float64)
    centred = features - centre

    def distance(weights: np.ndarray) -> float:
        shift = weights @ centred / count
        covariance = ((weights * centred.T) @ centred - count * np.outer(shift, shift)) / (count - 1)
        return frechet_distance(reference, Gaussian(centre + shift, covariance, count))

    drawn = (bootstrap.weights(generator) for _ in range(resamples))
    found = np.array(in_threads(distance, drawn, resamples, f"bootstrap, {label}", "resample"))
    low, high = np.quantile(found, [0.025, 0.975]) - found.mean()
    return float(low), float(high)


def distance_influences(features: np.ndarray, reference: Gaussian) -> np.ndarray:
    """How much more of each image would move the distance of features [n, d] from ``reference``: float64 [n], mean 0.

    The distance's derivative by the weight of each image. The mean of a resample of them is, to first order, how far
    the distance of that resample lies from that of all (Efron & Tibshirani 1993, ch. 21): what `bootstrap_deviations`
    finds by a distance a resample, for the price of one. With the optimal transport T = Σ_r^½ (Σ_r^½ Σ Σ_r^½)^−½ Σ_r^½
    to the reference it is 2 (μ − μ_r)ᵀ(x − μ) + (x − μ)ᵀ(I − T)(x − μ), less its mean.
    """
    own = fit_gaussian(features)
    values, vectors = np.linalg.eigh(reference.factor.T @ own.covariance @ reference.factor)
    there = _above_rounding(values)
    centred = features - own.mean
    transported = centred @ (reference.factor @ (vectors[:, there] * values[there] ** -0.25))
    moved = 2 * centred @ (own.mean - reference.mean) + (centred**2).sum(1) - (transported**2).sum(1)
    return moved - moved.mean()


def _above_rounding(values: np.ndarray) -> np.ndarray:
    """Which eigenvalues [d] are more than rounding errors, whose roots would differ from machine to machine."""
    return values > values.max(initial=0.0) * len(values) * np.finfo(np.float64).eps


def _curve(features: np.ndarray, reference: Gaussian, sizes: Sequence[int]) -> np.ndarray:
    """Distances of the first n of features [N, d] for each n of increasing ``sizes``, their moments added up once."""
    centre = features.mean(0, dtype=np.float64)
    total, product = np.zeros_like(centre), np.zeros((len(centre), len(centre)))
    distances = []
    for start, end in zip([0, *sizes], sizes, strict=False):
        part = features[start:end] - centre
        total += part.sum(0)
        product += part.T @ part
        mean = total / end
        covariance = (product - end * np.outer(mean, mean)) / (end - 1)
        distances.append(frechet_distance(reference, Gaussian(mean + centre, covariance, end)))
    return np.array(distances)
