"""A seeded, stratified train/validation split."""

from collections.abc import Sequence

import numpy as np

from ddpm.utils.errors import DdpmError, first_of
from ddpm.utils.seeds import numpy_generator


def stratified_split(labels: np.ndarray, train_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the positions of ``labels`` so that every class keeps its share.

    Returns (train, validation): sorted int64 positions, disjoint, together all of them; of each class
    round(train_fraction · count) go to train. 0 < train_fraction < 1. Raises DdpmError where either part is empty.
    """
    generator = numpy_generator(seed, "split")
    train, validation = [], []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        cut = round(train_fraction * len(members))
        train.append(members[:cut])
        validation.append(members[cut:])
    parts = np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))
    for part, name, how in zip(parts, ("training", "validation"), ("raise", "lower"), strict=True):
        if not len(part):
            raise DdpmError(f"split.train_fraction={train_fraction} leaves no image for {name}: {how} it.")
    return parts


def classes_lacking(labels: np.ndarray, names: Sequence[str]) -> str:
    """The classes of these names that no image of ``labels``, int64 [n], is of, for a message: "class a", or ""."""
    counts = np.bincount(labels, minlength=len(names))
    lacking = [name for name, count in zip(names, counts, strict=False) if not count]  # unlabelled images have no names
    return f"class{'es' * (len(lacking) > 1)} {first_of(lacking, 5)}" if lacking else ""
