"""Images with their labels, what they have in common, the one file they are stored in, and their form as x_0."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from mmap import mmap
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ddpm.utils.errors import DamagedFile
from ddpm.utils.files import load_arrays, save_arrays, scratch_array

# The data set of files that name none: older ones, and to this day MNIST's, which so keep their bits.
_UNNAMED = "mnist"
# Images of more bytes are mapped from their file: memory then holds those in use, as the system sees fit.
MAP_ABOVE = 256 * 2**20
_STRIP = 1024


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
    name, class_names: see `ImageSpec`. Images of more than `MAP_ABOVE` bytes are mapped from a file.
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
        images = _rows(self.images, positions)
        return replace(self, images=images, labels=self.labels[positions], indices=self.indices[positions])

    def sample(self, count: int, random: np.random.Generator) -> "ImageSet":
        """At most so many of the images, at random, in the order that they have: it may be that of their classes."""
        return self.take(np.sort(random.permutation(len(self))[:count]))

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: images that are mapped from a file are mapped there again, not sent."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return _restore, (_in_file(self.images), parts if _in_file(self.images) is None else parts | {"images": None})

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
    arrays = load_arrays(path, MAP_ABOVE)
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


def _rows(images: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """``images[positions]``; of those mapped from a file a strip at a time, into another file where they are many."""
    if not isinstance(images, np.memmap):
        return images[positions]
    taken = scratch_array((len(positions), *images.shape[1:]), Path(images.filename or ".").parent, MAP_ABOVE)
    for start in range(0, len(positions), _STRIP):
        taken[start : start + _STRIP] = images[positions[start : start + _STRIP]]
    return taken


def _in_file(images: np.ndarray) -> tuple[Path, int, tuple[int, ...]] | None:
    """Which part of which file whole images are mapped from: path, offset and shape; None for others."""
    if not isinstance(images, np.memmap) or not isinstance(images.base, mmap):
        return None
    path = Path(images.filename or "")
    return (path, images.offset, images.shape) if path.is_file() else None


def _restore(in_file: tuple[Path, int, tuple[int, ...]] | None, parts: dict[str, Any]) -> ImageSet:
    if in_file is None:
        return ImageSet(**parts)
    path, offset, shape = in_file
    return ImageSet(**parts | {"images": np.memmap(path, np.uint8, "c", offset, shape)})


def _names_of(classes: int, names: Sequence[str]) -> tuple[str, ...]:
    """A name for each class. Raises ValueError for names of another number of classes, or for two alike."""
    found = tuple(names) or tuple(map(str, range(classes)))
    if len(found) != classes or len(set(found)) != classes:
        raise ValueError(f"{len(found)} class names, {len(set(found))} of them different, for {classes} classes")
    return found
