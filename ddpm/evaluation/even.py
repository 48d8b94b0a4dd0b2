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
    shuffled = generator.permutation(count)
    if labels is None:
        return shuffled
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    places = golden_places(generator.integers(2**20) + np.arange(count))
    return by_label[places.argsort().argsort()]


class StratifiedBootstrap:
    """Random weights of ``count`` images, by how often a resample has each, among those of its own label.

    A label of n_h images has n_h − 1 of them in a resample, drawn with replacement and with a weight of
    n_h / (n_h − 1), so that a mean scatters as it should however few they are (Rao & Wu 1988). The image of a label
    that has no other is taken together with the next label (collapsed strata: Cochran 1977, §5A.12), from which it may
    differ in more than chance: the scatter then is too large. Without labels it is the plain bootstrap.
    """

    def __init__(self, labels: np.ndarray | None, count: int) -> None:
        self._order = np.arange(count) if labels is None else np.argsort(labels, kind="stable")
        sizes = np.array([count] if labels is None else _stratum_sizes(np.unique(labels, return_counts=True)[1]))
        draws = sizes if labels is None else np.maximum(1, sizes - 1)
        ends = np.cumsum(sizes)
        self._start, self._end = (np.repeat(edges, draws) for edges in (ends - sizes, ends))
        self._weight = np.repeat(sizes / draws, sizes)

    def weights(self, generator: np.random.Generator) -> np.ndarray:
        """Those of one resample: float64 [count], 1 on average."""
        found = np.empty(len(self._order))
        drawn = np.bincount(generator.integers(self._start, self._end), minlength=len(found))
        found[self._order] = self._weight * drawn
        return found


def _stratum_sizes(counts: np.ndarray) -> list[int]:
    """How many images replace one another, from those of each label, int64 [labels]: a single one joins the next."""
    sizes: list[int] = []
    for count in counts.tolist():
        if sizes and sizes[-1] == 1:
            sizes[-1] += count
        else:
            sizes.append(count)
    return [*sizes[:-2], sizes[-2] + 1] if sizes[1:] and sizes[-1] == 1 else sizes
