"""Nearest neighbours: fidelity and diversity of a set of images, and whether training images were memorized.

Distances are Euclidean. They are computed a strip at a time, so that memory does not limit the number of images; time
grows with its square.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

PRECISION_NEIGHBOURS = 3
COVERAGE_NEIGHBOURS = 5
_STRIP = 500
_NUMBERS = 100_000_000  # of points, or of distances, at a time: 400 or 800 MB


@dataclass(frozen=True, eq=False)
class Points:
    """Features [n, d] of a set of images; ``label`` names the progress bar."""

    features: np.ndarray
    label: str = ""

    @property
    def tensor(self) -> Tensor:
        """float64 [n, d]."""
        return torch.from_numpy(self.features.astype(np.float64))

    @cached_property
    def radii(self) -> tuple[Tensor, Tensor]:
        """The distance of each to its third and to its fifth nearest other: two float64 [n]."""
        return _radii(self.tensor, (PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS), f"radii, {self.label}")


def manifold(real: Points, generated: Points) -> dict[str, np.ndarray]:
    """Fidelity and diversity of generated features [n, d] beside real ones [m, d]; n = m makes the numbers comparable.

    An image's radius is the distance to the k-th nearest of its own set: k = 3 for precision and recall (Kynkäänniemi
    et al. 2019, eq. 1 and 2), k = 5 for density and coverage (Naeem et al. 2020, eq. 3 and 5).

    Returns one value an image, whose means are the metrics of the same names. precision: bool [n], whether a generated
    image lies within the radius of any real one. recall: bool [m], whether a real image lies within that of any
    generated one. density: float64 [n], in how many radii of real images a generated one lies, over k. coverage: bool
    [m], whether any generated image lies within the radius of a real one.
    """
    real_radii, real_radii_wide = real.radii
    generated_radii, _ = generated.radii
    recall = torch.zeros(len(real_radii), dtype=torch.bool)
    nearest = torch.full((len(real_radii),), torch.inf, dtype=torch.float64)
    precision, density = [], []
    for strip, distance in _strips(generated.tensor, real.tensor, f"neighbours, {generated.label}"):
        precision.append((distance <= real_radii).any(1))
        density.append((distance <= real_radii_wide).sum(1).double() / COVERAGE_NEIGHBOURS)
        recall |= (distance <= generated_radii[strip, None]).any(0)
        nearest = torch.minimum(nearest, distance.amin(0))
    found = {"precision": torch.cat(precision), "recall": recall, "density": torch.cat(density)}
    found["coverage"] = nearest <= real_radii_wide
    return {name: values.numpy() for name, values in found.items()}


def nearest(
    queries: np.ndarray,
    points: np.ndarray,
    label: str = "",
    convert: Callable[[np.ndarray], np.ndarray] = lambda part: part,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of ``points`` [m, …] to each of ``queries`` [n, …]: (index int64 [n], distance float64 [n]).

    convert: makes some of either floating-point points [·, d]; it is called with a part at a time, so that a data set
    need not fit into memory. The nearest is found in float32, where two are equal to seven digits perhaps the second;
    its distance is exact.
    """
    step = max(1, _NUMBERS // points[0].size)
    centre = convert(points[:step]).mean(0, dtype=np.float64)

    def centred(part: np.ndarray) -> Tensor:
        found = np.empty((len(part), len(centre)), np.float32)
        for values, some in zip(_parts(found), _parts(part), strict=True):
            values[:] = convert(some) - centre
        return torch.from_numpy(found)

    index, least = torch.zeros(len(queries), dtype=torch.int64), torch.full((len(queries),), torch.inf)
    with tqdm(total=len(queries) * len(points), desc=f"nearest, {label}", unit="pair", unit_scale=True) as progress:
        for start in range(0, len(points), step):
            some = centred(points[start : start + step])
            norms = torch.cat([(part**2).sum(1) for part in some.split(_STRIP)])
            for first in range(0, len(queries), _STRIP):
                rows = slice(first, first + _STRIP)
                distances = torch.addmm(norms, centred(queries[rows]), some.T, alpha=-2.0)
                found = distances.argmin(1)
                value = distances.gather(1, found[:, None])[:, 0]
                closer = value < least[rows]
                index[rows] = torch.where(closer, start + found, index[rows])
                least[rows] = torch.where(closer, value, least[rows])
                progress.update(distances.numel())
            del some  # before the next are made
    exact = []
    for part, others in zip(_parts(queries), _parts(index.numpy()), strict=True):
        x, y = (convert(each).astype(np.float64) for each in (part, points[others]))
        exact.append(np.sqrt(((x - y) ** 2).sum(1)))
    return index.numpy(), np.concatenate(exact)


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    return (array[start : start + _STRIP] for start in range(0, len(array), _STRIP))


def nearest_auc(distances: np.ndarray, held_out: np.ndarray) -> float:
    """Probability that an image lies closer to the training set than a held-out one does, ties counting half.

    distances and held_out: distances to the nearest training image, [n] and [m]. 0.5 for images from the same source,
    1 for copies; the statistic of Mann and Whitney, as in Meehan et al. 2020, "A Non-Parametric Test to Detect
    Data-Copying", without its cells.
    """
    ordered = np.sort(held_out)
    less, not_more = (np.searchsorted(ordered, distances, side) for side in ("left", "right"))
    return float(1.0 - (less + not_more).mean() / (2 * len(ordered)))


def memorized_fraction(distances: np.ndarray, held_out: np.ndarray) -> float:
    """Fraction of images closer to the training set than 99 % of the held-out ones; about 0.01 without memorization.

    distances and held_out: see `nearest_auc`. The quantile is the one below which another image lies with probability
    0.01, for any number m of held-out ones (Hyndman & Fan 1996, type 6); of fewer than 99, their least: 1/(m + 1).
    """
    return float((distances < np.quantile(held_out, 0.01, method="weibull")).mean())


def _radii(features: Tensor, k: tuple[int, int], label: str) -> tuple[Tensor, Tensor]:
    """Distance of each of features [n, d] to its k-th nearest other, for both k: two float64 [n]."""
    found = []
    for strip, distance in _strips(features, features, label):
        distance[torch.arange(len(distance)), torch.arange(strip.start, strip.stop)] = torch.inf
        found.append(distance.topk(min(max(k), len(features) - 1), largest=False).values)
    ordered = torch.cat(found)
    first, second = (ordered[:, min(each, ordered.shape[1]) - 1] for each in k)
    return first, second


def _strips(rows: Tensor, columns: Tensor, label: str) -> Iterator[tuple[slice, Tensor]]:
    """Yield (slice, distances float64 [rows of it, m]), strip by strip."""
    with tqdm(total=len(rows), desc=label, unit="image") as progress:
        size = min(_STRIP, max(1, _NUMBERS // len(columns)))
        for start in range(0, len(rows), size):
            strip = slice(start, min(start + size, len(rows)))
            yield strip, torch.cdist(rows[strip], columns, compute_mode="use_mm_for_euclid_dist")
            progress.update(strip.stop - strip.start)
