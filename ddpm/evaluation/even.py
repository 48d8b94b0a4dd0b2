"""Random orders and resamples of images whose labels were spread evenly, as those of a model's samples are.

Drawn independently, parts of such a set and resamples of it have labels less even than its own, and lie further from
the training images by that alone. Labels are int64 [n], any numbers; None for images without, which are drawn
independently.
"""

import numpy as np

from ddpm.sampling.labels import golden_places

_GROUP = 20  # images of alike labels that replace one another; drawn within so few, a variance is 1/20 too small


def conditioning_labels(*labels: np.ndarray | None) -> np.ndarray | None:
    """One label an image, int64 [n], for each combination of those given, each int64 [n] or None; None for no label."""
    known = [part for part in labels if part is not None]
    return np.unique(np.stack(known, 1), axis=0, return_inverse=True)[1].ravel() if known else None


def even_order(labels: np.ndarray | None, count: int, generator: np.random.Generator) -> np.ndarray:
    """A random order of ``count`` images, int64 [count]: its first n have each label as often as n samples would.

    The images of a label are in random order; the labels take turns as those of `balanced_labels` do.
    """
    if labels is None:
        return generator.permutation(count)
    return _in_turn(_by_label(labels, generator), generator)


def even_resample(labels: np.ndarray | None, count: int, generator: np.random.Generator) -> np.ndarray:
    """As many of ``count`` images, drawn with replacement, in such an order: int64 [count].

    Each takes the place of one of the same label, or of those next to it where a label has few: a stratified bootstrap
    (Davison & Hinkley 1997, §3.2). Strata of `_GROUP` images of one label give what the label as a whole would.
    """
    if labels is None:
        return generator.integers(count, size=count)
    start = np.arange(count) // _GROUP * _GROUP
    drawn = generator.integers(start, np.minimum(start + _GROUP, count))
    return _in_turn(_by_label(labels, generator)[drawn], generator)


def _by_label(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Images in order of their labels, those of one label in random order: int64 [n]."""
    shuffled = generator.permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def _in_turn(by_label: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Images in order of their labels [n], such that labels are even from the first image on."""
    places = golden_places(generator.integers(2**20) + np.arange(len(by_label)))
    return by_label[places.argsort().argsort()]
