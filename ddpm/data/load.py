"""Images from anywhere, a folder, an npz or an IDX file, and their labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm.data.idx import read_idx
from ddpm.utils.errors import DamagedFile, MissingFile
from ddpm.utils.files import load_arrays
from ddpm.utils.image_files import read_images

_ROUNDING = 1e-6  # by which values may miss their range
_OF_IMAGES = ("file", "image")  # columns that say which image a row is of


def load_images(path: Path, workers: int) -> np.ndarray:
    """Read images as uint8 [n, c, h, w], c = 1 where all are grey.

    path: a folder of PNG files, or of those of `generate.format: npz`; an npz file whose array ``images``, or only
    array, holds them as [n, h, w], [n, h, w, c] or [n, c, h, w] with c = 1 or 3; or an IDX file of images, gzipped or
    not. Floating-point values must lie in [0, 1], or in [-1, 1] where some are negative. Raises MissingFile,
    DamagedFile.
    """
    if path.is_dir():
        return read_images(path, workers)
    if not path.is_file():
        raise MissingFile(f"{path} is missing")
    if path.suffix != ".npz":
        try:
            return as_images(read_idx(path), str(path))
        except DamagedFile as error:
            raise DamagedFile(f"{error}: a folder of PNG files, an npz file or an IDX file is read") from error
    arrays = load_arrays(path)
    if "images" not in arrays and len(arrays) != 1:
        raise DamagedFile(f"{path} holds {sorted(arrays)}, none of them named images")
    return as_images(arrays["images"] if "images" in arrays else next(iter(arrays.values())), str(path))


def as_images(array: np.ndarray, name: str) -> np.ndarray:
    """Any of the shapes and ranges of `load_images` as uint8 [n, c, h, w]. Raises DamagedFile that names ``name``."""
    images = array[:, None] if array.ndim == 3 else array
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
        raise DamagedFile(f"{name} holds an array of shape {array.shape}, not of images")
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DamagedFile(f"{name} holds values of type {images.dtype}; uint8 or floating point is wanted")
    broken = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))
    if len(broken):
        raise DamagedFile(f"{name}: image {broken[0]} (counted from 0; {len(broken)} in all) holds NaN or infinity")
    low, high = float(images.min()), float(images.max())
    if low < -1 - _ROUNDING or high > 1 + _ROUNDING:
        raise DamagedFile(f"{name} holds values from {low:g} to {high:g}; [0, 1] or [-1, 1] is wanted")
    unit = (images + 1) / 2 if low < -_ROUNDING else images
    return (unit.clip(0, 1) * 255).round().astype(np.uint8)


@dataclass(frozen=True, eq=False)
class GivenLabels:
    """What each of n images was conditioned on: its class label and the cluster of that class, int64 [n], or None."""

    classes: np.ndarray | None = None
    clusters: np.ndarray | None = None

    @property
    def conditioning(self) -> np.ndarray | None:
        """One label an image, int64 [n], for each combination of those given; None for no label."""
        known = [part for part in (self.classes, self.clusters) if part is not None]
        return np.unique(np.stack(known, 1), axis=0, return_inverse=True)[1].ravel() if known else None

    def __str__(self) -> str:
        """Which there are, as a protocol says it: "class and cluster"."""
        names = {"class": self.classes, "cluster": self.clusters}
        return " and ".join(name for name, part in names.items() if part is not None) or "none"


def read_labels(path: Path, count: int, files: Sequence[str] = ()) -> GivenLabels:
    """The columns ``label`` and ``cluster`` of a table with one row for each of ``count`` images.

    files: the names of the images' files, where they have some. A column ``file`` or ``image`` says which image a row
    is of: by that name or the number in it, or where images have no files by a number from 0 or from 1; where there are
    both, the first that does so for each. Without one, rows are in the order of the images. None for a column that is
    not there, or has no rows. Raises MissingFile, or DamagedFile for another kind of file, or for rows of other images.
    """
    # Imported here: to read images needs no tables.
    import pandas as pd

    try:
        # Without an index, a comma at the end of every row moves no column. As text, `true` is no number.
        wanted = ("label", "cluster", *_OF_IMAGES)
        table = pd.read_csv(path, index_col=False, dtype=str, usecols=lambda column: column in wanted)
        known = [name for name in ("label", "cluster") if name in table] or ["label"]
        found = {name: table[name].astype(np.int64).to_numpy() for name in known}
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is missing") from error
    except (KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DamagedFile(f"{path} has no whole numbers in a column `label` or `cluster` ({reason})") from error
    if len(table) not in (0, count):
        raise DamagedFile(f"{path} has {len(table)} rows for {count} images")
    if not len(table):
        return GivenLabels()
    columns = [name for name in _OF_IMAGES if name in table]
    orders = [_rows(table[name].fillna("").str.strip().tolist(), files) for name in columns]
    fitting = [order for order in orders if order is not None]
    if columns and not fitting:
        how = "the name of its file or the number in that" if files else "a number from 0 or from 1"
        raise DamagedFile(
            f"{path}: its column {' or '.join(f'`{name}`' for name in columns)} does not name each of the {count} "
            f"images once, by {how}: correct it, or leave it out where the rows have the order of the images"
        )
    if fitting:
        found = {name: values[fitting[0]] for name, values in found.items()}
    return GivenLabels(found.get("label"), found.get("cluster"))


def _rows(named: Sequence[str], files: Sequence[str]) -> np.ndarray | None:
    """The row of each image, int64 [n], in a table whose rows name one each; None where they do not."""
    keys: list[Callable[[str], object]] = [lambda name: Path(name).name, lambda name: int(Path(name).stem)]
    for key in keys:
        try:
            found = {key(name): row for row, name in enumerate(named)}
            wanted = [key(name) for name in files] if files else sorted(found)  # type: ignore[type-var]
        except ValueError:  # a name that is no number
            continue
        numbered = files or wanted in ([*range(len(named))], [*range(1, len(named) + 1)])
        if numbered and len(found) == len(named) and set(found) == set(wanted):
            return np.array([found[one] for one in wanted], np.int64)
    return None
