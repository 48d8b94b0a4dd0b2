"""Images with their labels, what they have in common, the one file they are stored in, and their form as x_0."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ddpm.utils.errors import DamagedFile
from ddpm.utils.files import load_arrays, save_arrays

# The data set of files that name none: older ones, and to this day MNIST's, which so keep their bits.
_UNNAMED = "mnist"


@dataclass(frozen=True)
class ImageSpec:
    """What all images of a data set share. size: pixels a side. channels: 1 grey, 3 RGB. classes: 0 if unlabelled.

    name: the data set's. class_names: what each class is called; where none are given, its number.
    """

    size: int
    channels: int
    classes: int
    name: str = ""
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", _names_of(self.classes, self.class_names))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (channels, height, width)."""
        return self.channels, self.size, self.size

    def to_file(self) -> dict[str, Any]:
        """Plain values for a file, without what `from_file` knows by itself: class names that are numbers, `mnist`."""
        implied = {"name": _UNNAMED, "class_names": _names_of(self.classes, ())}
        return {key: value for key, value in asdict(self).items() if value != implied.get(key)}

    @classmethod
    def from_file(cls, values: dict[str, Any]) -> Self:
        """What `to_file` gave. Raises TypeError and ValueError for other values."""
        return cls(**{"name": _UNNAMED} | values)


@dataclass(frozen=True)
class ImageSet:
    """images: uint8 [n, c, h, w], 0 is black. labels: int64 [n] in 0 … classes−1, all 0 for an unlabelled data set.

    indices: int64 [n], the place in the original file. classes: how many class labels the data set has, 0 for none.
    name, class_names: see `ImageSpec`.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    classes: int
    name: str = ""
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", _names_of(self.classes, self.class_names))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def spec(self) -> ImageSpec:
        """What the images share."""
        return ImageSpec(self.images.shape[-1], self.images.shape[1], self.classes, self.name, self.class_names)

    def take(self, positions: np.ndarray) -> "ImageSet":
        """The images at ``positions`` (int64 [k]), in that order."""
        images, labels, indices = (part[positions] for part in (self.images, self.labels, self.indices))
        return replace(self, images=images, labels=labels, indices=indices)

    def class_frequencies(self) -> list[float]:
        """How often each class occurs, summing to 1; empty for an unlabelled data set."""
        counts = np.bincount(self.labels, minlength=self.classes)[: self.classes]
        return [float(count) / len(self) for count in counts]


def normalize(images: Tensor) -> Tensor:
    """uint8 images [n, c, h, w] as x_0: float32 of the same shape in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def denormalize(x: Tensor) -> np.ndarray:
    """x_0 [n, c, h, w] in [-1, 1] (values outside are clipped) as uint8 images, rounded to nearest."""
    return ((x.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def write_image_set(path: Path, image_set: ImageSet) -> None:
    """Store as an npz, atomically. Raises OSError."""
    parts = {"images": image_set.images, "labels": image_set.labels, "indices": image_set.indices}
    described = image_set.spec.to_file()
    named = {key: np.array(described[key]) for key in ("name", "class_names") if key in described}
    save_arrays(path, **parts, classes=image_set.classes, **named)


def read_image_set(path: Path) -> ImageSet:
    """Read what `write_image_set` wrote. Raises MissingFile or DamagedFile."""
    arrays = load_arrays(path)
    try:
        images, labels, indices, classes = (arrays[name] for name in ("images", "labels", "indices", "classes"))
    except KeyError as error:
        raise DamagedFile(f"{path} holds no {error}") from error
    kinds = [(part.dtype, part.ndim) for part in (images, labels, indices, classes)]
    if kinds != [(np.uint8, 4), (np.int64, 1), (np.int64, 1), (np.int64, 0)]:
        raise DamagedFile(f"{path} holds arrays of other types or shapes than an image set")
    if not 0 < len(images) == len(labels) == len(indices) or images.shape[2] != images.shape[3]:
        raise DamagedFile(f"{path} holds arrays of lengths or sides that do not agree")
    if labels.min() < 0 or labels.max() >= max(1, int(classes)):
        raise DamagedFile(f"{path} holds labels outside of its {classes} classes")
    name, class_names = arrays.get("name", np.array(_UNNAMED)), arrays.get("class_names", np.array([], np.str_))
    if [(part.dtype.kind, part.ndim) for part in (name, class_names)] != [("U", 0), ("U", 1)]:
        raise DamagedFile(f"{path} holds names of other types or shapes than an image set")
    try:
        return ImageSet(images, labels, indices, int(classes), str(name), tuple(class_names.tolist()))
    except ValueError as error:
        raise DamagedFile(f"{path} holds {error}") from error


def _names_of(classes: int, names: Sequence[str]) -> tuple[str, ...]:
    """A name for each class. Raises ValueError for names of another number of classes, or for two alike."""
    found = tuple(names) or tuple(map(str, range(classes)))
    if len(found) != classes or len(set(found)) != classes:
        raise ValueError(f"{len(found)} class names, {len(set(found))} of them different, for {classes} classes")
    return found
