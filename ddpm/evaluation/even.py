"""Random orders and resamples of images whose labels were spread evenly, as those of a model's samples are.

Drawn independently, parts of such a set and resamples of it have labels less even than its own, and lie further from
the training images by that alone. Labels are int64 [n], any numbers; None for images without, which are drawn
independently.
"""

from collections.abc import Sequence

import numpy as np

from ddpm.sampling.labels import golden_places


def even_order(labels: np.ndarray | None, count: int, generator: np.random.Generator) -> np.ndarray:
    """A random order of ``count`` images, int64 [count]: its first n have each label as often as n samples would.

    The images of a label are in random order; the labels take turns as those of `balanced_labels` do.
    """
    if labels is None:
        return generator.permutation(count)
    return _in_turn(_by_label(labels, generator), generator)


class StratifiedBootstrap:
    """Random weights of ``count`` images, as often as a resample has each; each label keeps its weight.

    An image is replaced by one of its own label (Davison & Hinkley 1997, §3.2), or of its own and the next one where
    one of them has no other image (collapsed strata: Cochran 1977, §5A.12; rather too much scatter than too little).
    Among so few images the variance of a mean would be (n_h − 1) / n_h of what it should be: so deviations from a
    weight of 1 are √(n_h / (n_h − 1)) times as large (Rao & Wu 1988), and weights may be negative. Without labels
    weights are whole numbers.
    """

    def __init__(self, labels: np.ndarray | None, count: int) -> None:
        self._order, self._count = np.arange(count), count
        self._start, self._end, self._scale = np.zeros((), np.int64), np.array(count), np.ones(())
        if labels is not None:
            self._order = np.argsort(labels, kind="stable")
            sizes = np.array(_stratum_sizes(np.unique(labels, return_counts=True)[1].tolist()))
            ends = np.cumsum(sizes)
            self._start, self._end = np.repeat(ends - sizes, sizes), np.repeat(ends, sizes)
            self._scale = np.repeat(np.sqrt(sizes / np.maximum(1, sizes - 1)), sizes)

    def weights(self, generator: np.random.Generator) -> np.ndarray:
        """Those of one resample: float64 [count], 1 on average."""
        drawn = np.bincount(generator.integers(self._start, self._end, size=self._count), minlength=self._count)
        found = np.empty(self._count)
        found[self._order] = 1.0 + self._scale * (drawn - 1.0)
        return found


def _stratum_sizes(counts: Sequence[int]) -> list[int]:
    """How many images replace one another, from those of each label: no label that has but one is left alone."""
    sizes: list[int] = []
    for count in counts:
        if sizes and sizes[-1] == 1:
            sizes[-1] += count
        else:
            sizes.append(count)
    return [*sizes[:-2], sizes[-2] + 1] if sizes[1:] and sizes[-1] == 1 else sizes


def _by_label(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Images in order of their labels, those of one label in random order: int64 [n]."""
    shuffled = generator.permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def _in_turn(by_label: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Images in order of their labels [n], such that labels are even from the first image on."""
    places = golden_places(generator.integers(2**20) + np.arange(len(by_label)))
    return by_label[places.argsort().argsort()]
