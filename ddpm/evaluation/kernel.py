"""The kernel distance: it compares features like the Fréchet distance, but assumes no Gaussian and has no bias."""

import numpy as np

from ddpm.utils.threads import in_threads

SUBSETS = 100
SUBSET_SIZE = 1000


def subset_size(generated: int, real: int) -> int:
    """Images in a subset: `SUBSET_SIZE`, and at most a quarter of either set, so that subsets differ."""
    return min(SUBSET_SIZE, generated // 4, real // 4)


def kernel_distances(
    generated: np.ndarray, real: np.ndarray, generator: np.random.Generator, label: str = ""
) -> np.ndarray:
    """Squared maximum mean discrepancy of `SUBSETS` random pairs of subsets of features [n, d] and [m, d].

    With the kernel (x·y/d + 1)³ and the unbiased estimate (Bińkowski et al. 2018, "Demystifying MMD GANs", §4 and
    appendix). Returns float64 [SUBSETS]: their mean is the distance, ≈ 0 for two sets from one source, and may be
    negative. n, m ≥ 8; ``label`` names the progress bar.
    """
    size = subset_size(len(generated), len(real))

    def distance(chosen: tuple[np.ndarray, np.ndarray]) -> float:
        x, y = (part[rows].astype(np.float64) for part, rows in zip((generated, real), chosen, strict=True))
        xx, yy, xy = (cubed(a @ b.T / x.shape[1] + 1.0) for a, b in ((x, x), (y, y), (x, y)))
        within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
        return float(within / (size * (size - 1)) - 2.0 * xy.mean())

    def cubed(x: np.ndarray) -> np.ndarray:
        return x * x * x  # the power of a negative number takes ten times as long

    def choose(part: np.ndarray) -> np.ndarray:
        return generator.permutation(len(part))[:size]

    pairs = ((choose(generated), choose(real)) for _ in range(SUBSETS))
    return np.array(in_threads(distance, pairs, SUBSETS, f"kernel, {label}", "subset"))


def kernel_interval(distances: np.ndarray, generated: int, real: int) -> tuple[float, float]:
    """95 % interval (low, high) of the mean of ``distances``, from so many images in all.

    f is the part of the smaller set that a subset holds. Subsets of one set overlap, so their variance s² is that of
    independent ones, v, less by the factor 1 − f. The variance of a subset's estimate falls as one over its images or
    faster: that of all images is at most f·v, to which comes s²/`SUBSETS` as only some of the subsets are taken.
    """
    fraction = subset_size(generated, real) / min(generated, real)
    variance = distances.var(ddof=1) * (fraction / (1 - fraction) + 1 / len(distances))
    half = 1.96 * np.sqrt(variance)
    return float(distances.mean() - half), float(distances.mean() + half)
