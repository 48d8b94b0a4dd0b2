"""Which label each image is conditioned on."""

from collections.abc import Sequence

import numpy as np


def balanced_labels(numbers: Sequence[int], frequencies: Sequence[float] | np.ndarray) -> np.ndarray:
    """The label of each image number: int64 [n], each label as often as its frequency, in any run of numbers.

    Number i takes the place frac(i · 0.618…) of the unit interval divided among the labels (the additive recurrence of
    the golden ratio, whose first n places are spread evenly for every n); numbers count from 1.
    """
    places = np.modf(np.asarray(numbers, np.float64) * ((5**0.5 - 1) / 2))[0]
    edges = np.cumsum(np.asarray(frequencies, np.float64) / np.sum(frequencies))
    return np.searchsorted(edges[:-1], places, side="right")
