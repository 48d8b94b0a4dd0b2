"""A seeded, stratified train/validation split, and the one file a split is stored in."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm.errors import DamagedFile, DdpmError
from ddpm.files import load_arrays, save_arrays
from ddpm.seeds import numpy_generator


@dataclass(frozen=True)
class ImageSet:
    """Images with what is known of each.

    images: uint8 [n, height, width], 0 is black. labels: uint8 [n]. indices: int64 [n], the place in the original file.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def take(self, positions: np.ndarray) -> "ImageSet":
        """The images at ``positions`` (int64 [k]), in that order."""
        return ImageSet(self.images[positions], self.labels[positions], self.indices[positions])


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
    if not len(parts[0]) or not len(parts[1]):
        raise DdpmError(
            f"split.train_fraction={train_fraction} leaves one side of the split empty: choose one nearer to 0.9."
        )
    return parts


def write_image_set(path: Path, image_set: ImageSet) -> None:
    """Store a split: see `save_arrays`."""
    save_arrays(path, images=image_set.images, labels=image_set.labels, indices=image_set.indices)


def read_image_set(path: Path) -> ImageSet:
    """Read what `write_image_set` wrote. Raises MissingFile or DamagedFile."""
    arrays = load_arrays(path)
    try:
        images, labels, indices = arrays["images"], arrays["labels"], arrays["indices"]
    except KeyError as error:
        raise DamagedFile(f"{path} holds no {error}") from error
    kinds = [(part.dtype, part.ndim) for part in (images, labels, indices)]
    if kinds != [(np.uint8, 3), (np.uint8, 1), (np.int64, 1)] or not len(images) == len(labels) == len(indices):
        raise DamagedFile(f"{path} holds arrays of other types or shapes than a split")
    return ImageSet(images, labels, indices)
