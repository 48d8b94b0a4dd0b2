"""Which label each image is conditioned on, and which class a label names."""

from collections.abc import Sequence

import numpy as np


def class_number(label: object, names: Sequence[str]) -> int | None:
    """The place in ``names`` of the class that a label means: its name or, where no name is a number, this place.

    None for no class. Folders of images may be called 1, 2 and 03: a number, typed in a shell, in YAML or in Python,
    then is such a name, by its value. But NumPy's integers, as which labels come out of a data set or a model, always
    are places.
    """
    wanted = str(label)
    if wanted in names and not isinstance(label, np.integer):
        return names.index(wanted)
    if not wanted.isdecimal():
        return None
    values = [int(name) if name.isdecimal() else None for name in names]
    if isinstance(label, np.integer) or not any(name.isdecimal() for name in names):
        return int(wanted) if int(wanted) < len(names) else None
    return values.index(int(wanted)) if int(wanted) in values else None


def known_classes(names: Sequence[str]) -> str:
    """The classes that `class_number` finds, for messages: "the class labels 0 to 1, called shirt, bag"."""
    numbers = tuple(map(str, range(len(names))))
    if tuple(names) != numbers and any(name.isdecimal() for name in names):
        return f"the classes {', '.join(names)}"
    called = "" if tuple(names) == numbers else f", called {', '.join(names)}"
    return f"the class labels 0 to {len(names) - 1}{called}"


def balanced_labels(numbers: Sequence[int], frequencies: Sequence[float] | np.ndarray) -> np.ndarray:
    """The label of each image number: int64 [n], each label as often as its frequency, in any run of numbers.

    Number i takes its place of `golden_places` in the unit interval divided among the labels; numbers count from 1.
    """
    places = golden_places(numbers)
    edges = np.cumsum(np.asarray(frequencies, np.float64) / np.sum(frequencies))
    return np.searchsorted(edges[:-1], places, side="right")


def golden_places(numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """A place in [0, 1) for each number i, float64 [n]: frac(i · 0.618…), spread evenly for any run of numbers.

    The additive recurrence of the golden ratio.
    """
    return np.modf(np.asarray(numbers, np.float64) * ((5**0.5 - 1) / 2))[0]
