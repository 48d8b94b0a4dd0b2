"""Random orders and resamples of images whose labels were spread evenly, as those of a model's samples are.

Drawn independently, parts of such a set and resamples of it have labels less even than its own, and lie further from
the training images by that alone. Labels are int64 [n], any numbers; None for images without, which are drawn
independently.
"""

import numpy as np

from ddpm.sampling.labels import golden_places


def even_order(labels: np.ndarray | None, count: int, generator: np.random.Generator) -> np.ndarray:
    """A random order of ``count`` images, int64 [count]: its first n have each label as often as n samples would.

    The images of a label are in random order; the labels take turns as those of `balanced_labels` do.
    """
    if labels is None:
        return generator.permutation(count)
    return _in_turn(_by_label(labels, generator), generator)


class Resampling:
    """Random choices of ``count`` images among as many, with replacement, in which each label is as frequent.

    A stratified bootstrap (Davison & Hinkley 1997, §3.2): an image is replaced by one of its own label. Where labels
    have fewer than two images on average, some of them that follow one another count as one. widening: by what
    deviations of resamples are to be multiplied, √(n / (n − labels)): among the n_h images of a label the variance is
    (n_h − 1) / n_h of what it should be, and those of each label are taken to scatter alike. 1 without labels.
    """

    def __init__(self, labels: np.ndarray | None, count: int) -> None:
        self._count, self._strata, self._sizes = count, None, np.empty(0, np.int64)
        if labels is not None:
            ranks = np.unique(labels, return_inverse=True)[1].ravel()
            together = -(-2 * (ranks.max() + 1) // count)
            self._strata = ranks // together
            self._sizes = np.bincount(self._strata)
        free = count - len(self._sizes)
        self.widening = (count / free) ** 0.5 if free else 1.0

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Which images come in place of all: int64 [count], in an order as that of `even_order`."""
        if self._strata is None:
            return generator.integers(self._count, size=self._count)
        ends = np.cumsum(self._sizes)
        start, end = (np.repeat(edge, self._sizes) for edge in (ends - self._sizes, ends))
        return _in_turn(_by_label(self._strata, generator)[generator.integers(start, end)], generator)

    def widened(self, values: np.ndarray) -> np.ndarray:
        """Numbers of resamples, [resamples, …], with deviations from their mean as large as they should be."""
        mean = np.mean(values, 0)
        return mean + self.widening * (values - mean)


def _by_label(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Images in order of their labels, those of one label in random order: int64 [n]."""
    shuffled = generator.permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def _in_turn(by_label: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Images in order of their labels [n], such that labels are even from the first image on."""
    places = golden_places(generator.integers(2**20) + np.arange(len(by_label)))
    return by_label[places.argsort().argsort()]
