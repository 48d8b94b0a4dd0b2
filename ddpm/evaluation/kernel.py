"""The kernel distance: it compares features like the Fréchet distance, but assumes no Gaussian and has no bias."""

import numpy as np
from tqdm import tqdm

from ddpm.utils.seeds import numpy_generator

SUBSETS = 100
SUBSET_SIZE = 1000


def kernel_distances(generated: np.ndarray, real: np.ndarray, seed: int, label: str) -> np.ndarray:
    """Squared maximum mean discrepancy of ``SUBSETS`` random pairs of subsets of features [n, d] and [m, d].

    With the kernel (x·y/d + 1)³ and the unbiased estimate (Bińkowski et al. 2018, "Demystifying MMD GANs", §4 and
    appendix). Subsets hold `SUBSET_SIZE` images, or as many as there are. Returns float64 [SUBSETS]: their mean is the
    distance, ≈ 0 for two sets from one source, and may be negative.
    """
    generator = numpy_generator(seed, f"kernel {label}")
    size = min(SUBSET_SIZE, len(generated), len(real))
    found = []
    for _ in tqdm(range(SUBSETS), desc=f"kernel, {label}", unit="subset"):
        x, y = (part[generator.permutation(len(part))[:size]].astype(np.float64) for part in (generated, real))
        found.append(_unbiased_mmd2(x, y))
    return np.array(found)


def kernel_interval(distances: np.ndarray, count: int) -> tuple[float, float]:
    """95 % interval (low, high) of the mean of ``distances``, for ``count`` images in all.

    The variance of a subset's estimate falls as one over its images or faster: that of all images is taken as the
    subsets' own, scaled by the ratio of their sizes.
    """
    half = 1.96 * distances.std(ddof=1) * np.sqrt(min(1.0, SUBSET_SIZE / count))
    return float(distances.mean() - half), float(distances.mean() + half)


def _unbiased_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    n, d = x.shape
    xx, yy, xy = ((a @ b.T / d + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2.0 * xy.mean())
