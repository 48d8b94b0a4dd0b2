"""What nearest neighbours tell: whether images look real, whether all kinds are there, and whether they were copied.

Distances are Euclidean. Matrices of them are made a strip at a time: no set is too large for the memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

PRECISION_NEIGHBOURS = 3
COVERAGE_NEIGHBOURS = 5
_STRIP = 500


@dataclass(frozen=True)
class Manifold:
    """One value an image, whose means are the metrics of the same names.

    precision: bool [n], whether a generated image lies within the reach of any real one. recall: bool [m], whether a
    real image lies within that of any generated one. density: float64 [n], how many real images reach a generated one,
    over k. coverage: bool [m], whether a real image reaches any generated one.
    """

    precision: np.ndarray
    recall: np.ndarray
    density: np.ndarray
    coverage: np.ndarray


def manifold(real: np.ndarray, generated: np.ndarray, label: str) -> Manifold:
    """Fidelity and diversity of features [n, d] beside real ones [m, d]; n = m makes the numbers comparable.

    An image's reach is the distance to its k-th nearest of its own set: k = 3 for precision and recall (Kynkäänniemi et
    al. 2019, eq. 1 and 2), k = 5 for density and coverage (Naeem et al. 2020, eq. 3 and 5).
    """
    real_t, generated_t = (torch.from_numpy(part.astype(np.float64)) for part in (real, generated))
    k = (PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS)
    real_reach, real_reach_wide = _reaches(real_t, k, f"reach, real, {label}")
    generated_reach, _ = _reaches(generated_t, k, f"reach, {label}")
    recall = torch.zeros(len(real), dtype=torch.bool)
    nearest = torch.full((len(real),), torch.inf, dtype=torch.float64)
    precision, density = [], []
    for strip, distance in _strips(generated_t, real_t, f"neighbours, {label}"):
        precision.append((distance <= real_reach).any(1))
        density.append((distance <= real_reach_wide).sum(1).double() / COVERAGE_NEIGHBOURS)
        recall |= (distance <= generated_reach[strip, None]).any(0)
        nearest = torch.minimum(nearest, distance.amin(0))
    return Manifold(
        torch.cat(precision).numpy(),
        recall.numpy(),
        torch.cat(density).numpy(),
        (nearest <= real_reach_wide).numpy(),
    )


def nearest(queries: np.ndarray, points: np.ndarray, label: str) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of ``points`` [m, d] to each of ``queries`` [n, d]: (index int64 [n], distance float64 [n]).

    The nearest is found in float32, where two are equal to seven digits perhaps the second; its distance is exact.
    """
    centre = points.mean(0, dtype=np.float64)
    q, p = (torch.from_numpy((part - centre).astype(np.float32)) for part in (queries, points))
    norms = (p**2).sum(1)
    index = []
    with tqdm(total=len(q), desc=f"nearest, {label}", unit="image") as progress:
        for strip in q.split(_STRIP):
            index.append(torch.addmm(norms, strip, p.T, alpha=-2.0).argmin(1))
            progress.update(len(strip))
    found = torch.cat(index).numpy()
    return found, np.sqrt(((queries.astype(np.float64) - points[found].astype(np.float64)) ** 2).sum(1))


def closer_share(distances: np.ndarray, held_out: np.ndarray) -> float:
    """The chance that an image lies closer to the training set than a held-out digit does, ties counting half.

    distances and held_out: distances to the nearest training image, [n] and [m]. 0.5 for images from the same source,
    1 for copies; the statistic of Mann and Whitney, as in Meehan et al. 2020, "A Non-Parametric Test to Detect
    Data-Copying", without its cells.
    """
    ordered = np.sort(held_out)
    less, not_more = (np.searchsorted(ordered, distances, side) for side in ("left", "right"))
    return float(1.0 - (less + not_more).mean() / (2 * len(ordered)))


def copied_share(distances: np.ndarray, held_out: np.ndarray) -> float:
    """Share of images closer to the training set than 99 % of the held-out digits are; about 0.01 where none is copied.

    distances and held_out: distances to the nearest training image, [n] and [m].
    """
    return float((distances < np.quantile(held_out, 0.01)).mean())


def _reaches(features: Tensor, k: tuple[int, int], label: str) -> tuple[Tensor, Tensor]:
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
        for start in range(0, len(rows), _STRIP):
            strip = slice(start, min(start + _STRIP, len(rows)))
            yield strip, torch.cdist(rows[strip], columns, compute_mode="use_mm_for_euclid_dist")
            progress.update(strip.stop - strip.start)
