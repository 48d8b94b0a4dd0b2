"""Which label each image is conditioned on, and which class a label names."""

from collections.abc import Sequence

import numpy as np


def class_number(label: object, names: Sequence[str]) -> int | None:
    """The place in ``names`` of the class that a label names, or else of which it is the number; None for neither.

    A folder of images may be called 2: so a number is a name first, be it typed in a shell, in YAML or in Python. But
    NumPy's integers, as which labels come out of a data set or a model, are numbers alone.
    """
    wanted, numbers = str(label), [str(number) for number in range(len(names))]
    for known in (numbers,) if isinstance(label, np.integer) else (names, numbers):
        if wanted in known:
            return known.index(wanted)
    return None


def balanced_labels(numbers: Sequence[int], frequencies: Sequence[float] | np.ndarray) -> np.ndarray:
    """The label of each image number: int64 [n], each label as often as its frequency, in any run of numbers.

    Number i takes the place frac(i · 0.618…) of the unit interval divided among the labels (the additive recurrence of
    the golden ratio, whose first n places are spread evenly for every n); numbers count from 1.
    """
    places = np.modf(np.asarray(numbers, np.float64) * ((5**0.5 - 1) / 2))[0]
    edges = np.cumsum(np.asarray(frequencies, np.float64) / np.sum(frequencies))
    return np.searchsorted(edges[:-1], places, side="right")
