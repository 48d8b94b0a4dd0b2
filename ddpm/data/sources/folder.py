"""A folder of one's own images: what is read of it, with which labels, and which images are for the test.

The folder may lie anywhere. Its path is a dependency of the stage, so that DVC sees when its contents change.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddpm.data.decoding import SUFFIXES, Colour, decode, parse_colour
from ddpm.data.image_set import MAP_ABOVE, ImageSet, read_image_set, write_image_set
from ddpm.data.sources import SOURCES
from ddpm.data.split import classes_lacking, stratified_split
from ddpm.utils.errors import DamagedFile, DdpmError, first_of
from ddpm.utils.files import atomic_folder, scratch_array, write_csv, write_json
from ddpm.utils.images import to_grey
from ddpm.utils.runtime import worker_count

PARTS = ("train", "test")
_NO_TABLE = ("auto", "folders", "none")
_PARTS_ELSEWHERE = {"train", "training", "val", "valid", "validation", "test", "testing"}
_AT_ONCE = 256
_NAMED = 5  # files that a message names
MOST_CLASSES = 10_000  # that a checkpoint may name
_LEAST_TEST = 2  # images: of fewer there are no statistics


class Folder:
    """See `ddpm.data.sources.Source`."""

    def fetch(
        self,
        folder: Path,
        path: str,
        labels: str,
        image_size: int,
        channels: int | str,
        resize: str,
        background: str,
        broken_fraction: float,
        test_fraction: float,
        test_seed: int,
    ) -> str:
        """Read the PNG, JPEG and WebP files below ``path``; make train.npz and test.npz in ``folder``.

        labels: `folders` (a file's class is the uppermost folder below ``path`` that it lies in), `none`, the name of a
        table in ``path`` with the columns ``file`` and ``label``, or `auto`: the folders where there are two or more
        and all files lie in some, else none. channels: 1, 3, or `auto`, which is 1 where all images are grey.
        image_size, resize, background: see `ddpm.data.decoding.decode`. Where ``path`` holds the folders `train` and
        `test` alone, they are the parts, and the classes lie in them; else ``test_fraction`` of each class, chosen by
        ``test_seed``, is the test set.

        Also writes files.csv (each file that was read, in the order of the images' indices) and report.json, and prints
        the report. Raises DdpmError where more than ``broken_fraction`` of the files cannot be read, or none can, for
        folders of other parts, such as `val`, for fewer than two test images, for a class without a training image, and
        for more than ``MOST_CLASSES`` classes.
        """
        root, colour = Path(path), parse_colour(background)
        if not root.is_dir():
            raise DdpmError(f"data.path={path} is no folder: name the one that holds your images.")
        everything, links = _walk(root)
        files = [file for file in everything if file.suffix.lower() in SUFFIXES]
        has_parts = _has_parts(path, {file.parts[0] for file in files if len(file.parts) > 1})
        classes, absent = _classes(root, files, labels, 1 if has_parts else 0)
        wanted = files if classes is None else [file for file in files if file in classes]
        found = _read(root, wanted, folder.parent, image_size, channels, resize, colour)
        found.broken |= {str(file): f"is named in {labels}, but {_why_absent(root, file)}" for file in absent}
        others = _kinds(set(everything) - set(wanted))
        _refuse_too_many(path, found.broken, len(wanted) + len(absent), broken_fraction, others)

        labelled = [classes[file] for file in found.files] if classes else []
        names = tuple(sorted(set(labelled), key=_natural))
        if len(names) > MOST_CLASSES:
            raise DdpmError(
                f"data.path={path} holds {len(names):,} classes, and there may be {MOST_CLASSES:,}: set data.labels to "
                "none, or join some."
            )
        number = {name: label for label, name in enumerate(names)}
        numbers = np.array([number[name] for name in labelled] or [0] * len(found.files), np.int64)
        images = ImageSet(found.images, numbers, np.arange(len(numbers)), len(names), "folder", names)
        if has_parts:
            in_test = np.array([file.parts[0] == "test" for file in found.files])
            _refuse_parts(path, labels, numbers, names, in_test)
        else:
            in_test = _test_images(numbers, names, test_fraction, test_seed)
        report = found.report(images, in_test, others, links)
        with atomic_folder(folder) as new:
            for part, chosen in zip(PARTS, (~in_test, in_test), strict=True):
                write_image_set(new / f"{part}.npz", images.take(np.flatnonzero(chosen)))
            write_csv(new / "files.csv", ("file", "label", "part"), _rows(found.files, images, in_test))
            write_json(new / "report.json", report)
        tqdm.write("\n".join(_lines(report)))
        return f"{len(images)} images of {path}"

    def load(self, folder: Path, part: str) -> ImageSet:
        """Read the "train" or the "test" images. Raises MissingFile, DamagedFile."""
        return read_image_set(folder / f"{part}.npz")


FOLDER = SOURCES.register("folder")(Folder())


@dataclass
class _Found:
    """images: uint8 [n, c, h, w], of ``files``. sizes: how many files are so wide and high. broken: why, by file.

    alike: the files of each digest of pixels.
    """

    images: np.ndarray
    files: list[Path] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)
    alike: dict[bytes, list[str]] = field(default_factory=dict)

    def report(
        self, images: ImageSet, in_test: np.ndarray, others: dict[str, int], links: Sequence[Path]
    ) -> dict[str, Any]:
        """What was read, as plain values."""
        counts = np.bincount(images.labels, minlength=images.classes)[: images.classes].tolist()
        by_area = sorted(self.sizes, key=lambda size: (size[0] * size[1], size))
        sizes = {"smallest": by_area[0], "most_frequent": self.sizes.most_common(1)[0][0], "largest": by_area[-1]}
        return {
            "images": len(images),
            "train": int((~in_test).sum()),
            "test": int(in_test.sum()),
            "pixels": images.spec.size,
            "channels": images.spec.channels,
            "sizes": {"different": len(self.sizes)} | {key: f"{w} × {h}" for key, (w, h) in sizes.items()},
            "classes": dict(zip(images.class_names, counts, strict=True)),
            "alike": sorted(names for names in self.alike.values() if len(names) > 1),
            "broken": self.broken,
            "other_files": others,
            "links": [str(folder) for folder in links],
        }


def _walk(root: Path) -> tuple[list[Path], list[Path]]:
    """The files below ``root``, and the folders there that are links, relative to it; but for what is hidden.

    What lies in a linked folder is not among the files: DVC's hash of ``root`` leaves it out, too. Raises OSError for a
    folder that cannot be read: else a class would be missing without a word; and DdpmError for a name that no table can
    hold, as old archives bring them.
    """
    files: list[Path] = []
    links: list[Path] = []
    for place, folders, names in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = Path(place).relative_to(root)
        files += [within / name for name in names if not name.startswith(".")]
        links += [within / name for name in folders if Path(place, name).is_symlink()]
    for name in map(os.fsencode, [*files, *links]):
        if (shown := name.decode(errors="replace")).encode() != name:
            raise DdpmError(f"data.path={root} holds {shown}, a name that is not in UTF-8: rename it, as convmv does.")
    return sorted(files), sorted(links)


def _raise(error: OSError) -> None:
    raise error


def _has_parts(path: str, folders: set[str]) -> bool:
    """Whether the uppermost folders are the parts `train` and `test`. Raises DdpmError where they are other parts."""
    names = {name.lower() for name in folders}
    if folders == set(PARTS):
        return True
    if names and (names <= _PARTS_ELSEWHERE or names >= set(PARTS)):
        raise DdpmError(
            f"data.path={path} holds the folders {', '.join(sorted(folders))}: let them be train and test, with the "
            "images for validation in train, or set it to one of them."
        )
    return False


def _classes(root: Path, files: Sequence[Path], labels: str, depth: int) -> tuple[dict[Path, str] | None, list[Path]]:
    """The class of each file, None for no labels; and the files that a table names but that are not there.

    depth: how many folders lie above those of the classes. Raises DdpmError.
    """
    if labels not in _NO_TABLE:
        return _table(root, files, labels)
    classes = {file: file.parts[depth] for file in files if len(file.parts) > depth + 1}
    if labels == "auto" and (len(classes) < len(files) or len(set(classes.values())) < 2):
        labels = "none"
    if labels == "folders" and len(classes) < len(files):
        alone = next(file for file in files if file not in classes)
        raise DdpmError(
            f"data.labels=folders, but {root / alone} lies in no folder of a class: move it, or set it to none."
        )
    return (None if labels == "none" else classes), []


def _table(root: Path, files: Sequence[Path], name: str) -> tuple[dict[Path, str], list[Path]]:
    # Imported here: every data source is imported with the settings, and no other one reads a table.
    import pandas as pd

    if _leads_out(Path(name)):
        raise DdpmError(
            f"data.labels={name} lies outside of data.path, where DVC does not see its changes: move the table into "
            "data.path, and name it from there."
        )
    try:
        # Without an index, a comma at the end of every row moves no column.
        how = {"index_col": False, "usecols": lambda column: column in ("file", "label")}
        table = pd.read_csv(root / name, dtype=str, keep_default_na=False, **how)
        rows = list(zip(table["file"].str.strip(), table["label"].str.strip(), strict=True))
    except (OSError, KeyError, ValueError) as error:
        raise DdpmError(
            f"data.labels={name}: {root / name} is no table with the columns file and label "
            f"({' '.join(str(error).split())}): choose auto, folders, none, or name a table in data.path."
        ) from error
    if not rows:
        raise DdpmError(f"data.labels={name} names no file: {root / name} has no row below its header.")
    labelled: dict[Path, str] = {}
    for file, label in rows:
        if not file or not label:
            raise DdpmError(
                f'data.labels={name}: the row "{file},{label}" names no file or no label: add it, or take the row out.'
            )
        if (other := labelled.setdefault(Path(file), label)) != label:
            raise DdpmError(f"data.labels={name} names {file} twice, as {other} and as {label}: take one of them out.")
    there = set(files)
    return labelled, sorted(file for file in labelled if file not in there)


def _leads_out(path: Path) -> bool:
    return path.is_absolute() or ".." in path.parts


def _why_absent(root: Path, file: Path) -> str:
    if _leads_out(file):
        return "is not named from data.path"
    return "is no PNG, JPEG or WebP file, or lies in a linked folder" if (root / file).exists() else "is not there"


def _read(
    root: Path,
    files: Sequence[Path],
    scratch: Path,
    size: int,
    channels: int | str,
    resize: str,
    background: Colour,
) -> _Found:
    found = _Found(scratch_array((len(files), 1 if channels == 1 else 3, size, size), scratch, MAP_ABOVE))

    def one(file: Path) -> tuple[np.ndarray, tuple[int, int]] | str:
        try:
            return decode(root / file, size, resize, background)
        except (DamagedFile, OSError) as error:
            return getattr(error, "strerror", None) or str(error)

    grey = True
    with (
        ThreadPoolExecutor(worker_count("auto")) as pool,
        tqdm(total=len(files), desc="read", unit="image") as progress,
    ):
        for start in range(0, len(files), _AT_ONCE):
            some = files[start : start + _AT_ONCE]
            for file, result in zip(some, pool.map(one, some), strict=True):
                if isinstance(result, str):
                    found.broken[str(file)] = result
                    continue
                pixels, full = result
                grey = grey and bool((pixels == pixels[:1]).all())
                found.images[len(found.files)] = to_grey(pixels[None])[0] if channels == 1 else pixels
                found.files.append(file)
                found.sizes[full] += 1
                digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
                found.alike.setdefault(digest, []).append(str(file))
            progress.update(len(some))
    found.images = found.images[: len(found.files), : 1 if grey and channels == "auto" else None]
    return found


def _kinds(files: Iterable[Path]) -> dict[str, int]:
    """How many files there are of each suffix."""
    return dict(sorted(Counter(file.suffix.lower() or "no suffix" for file in files).items()))


def _refuse_too_many(path: str, broken: dict[str, str], count: int, fraction: float, others: dict[str, int]) -> None:
    named = first_of([f"{file}: {reason}" for file, reason in broken.items()], _NAMED, "; ")
    if count == len(broken):
        of_others = f", but {first_of(_counted(others), _NAMED)}" if others else ""
        reason = named or f"no PNG, JPEG or WebP file is there{of_others}; linked folders are not followed"
        raise DdpmError(f"data.path={path} holds no image that can be read ({reason}).")
    if len(broken) > fraction * count:
        raise DdpmError(
            f"data.path={path}: {len(broken)} of {count} images cannot be read ({named}), more than "
            f"data.broken_fraction={fraction}: repair or remove them, or raise it."
        )


def _refuse_parts(path: str, labels: str, numbers: np.ndarray, names: Sequence[str], in_test: np.ndarray) -> None:
    """Raises DdpmError where the folders `train` and `test` hold too few images, or `train` none of a class."""
    count, table = int(in_test.sum()), "" if labels in _NO_TABLE else labels
    named = f" and is named in {table}" if table else ""
    if count < _LEAST_TEST:
        or_name = f", or name more of test in {table}" if table else ""
        raise DdpmError(
            f"data.path={path}: test holds {_images(count)} that can be read{named}, but at least {_LEAST_TEST} are "
            f"needed: move more there from train{or_name}."
        )
    if in_test.all():
        or_name = f", or name some of train in {table}" if table else ""
        raise DdpmError(
            f"data.path={path}: train holds no image that can be read{named}: move some there from test{or_name}."
        )
    if lacking := classes_lacking(numbers[~in_test], names):
        alike = f"a class alike everywhere in {table}" if table else "the folder of a class alike in both"
        raise DdpmError(
            f"data.path={path}: train holds no image that can be read of the {lacking}, which test holds: "
            f"name {alike}, or move some of its images to train."
        )


def _test_images(labels: np.ndarray, names: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    try:
        test = stratified_split(labels, 1.0 - fraction, seed)[1]
    except DdpmError as error:
        raise DdpmError(
            f"data.test_fraction={fraction} leaves no image for the test, or none but those: choose another."
        ) from error
    if len(test) < _LEAST_TEST:
        raise DdpmError(
            f"data.test_fraction={fraction} leaves {_images(len(test))} for the test, which needs at least "
            f"{_LEAST_TEST}: raise it, or add images."
        )
    in_test = np.isin(np.arange(len(labels)), test)
    if lacking := classes_lacking(labels[~in_test], names):
        raise DdpmError(
            f"data.test_fraction={fraction} leaves no training image of the {lacking}: lower it, or add such images."
        )
    return in_test


def _images(count: int) -> str:
    return f"{count or 'no'} image{'s' * (count > 1)}"


def _natural(name: str) -> tuple[int, int, str]:
    """Sorts names, those that are numbers by their value."""
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)


def _rows(files: Sequence[Path], images: ImageSet, in_test: np.ndarray) -> Iterator[tuple[str, str, str]]:
    for file, label, test in zip(files, images.labels.tolist(), in_test.tolist(), strict=True):
        yield file.as_posix(), images.class_names[label] if images.classes else "", PARTS[test]


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for the eye: what is long is cut."""
    sizes, alike, broken = report["sizes"], report["alike"], report["broken"]
    yield f"{report['images']} images, {report['train']} for training and validation, {report['test']} for the test"
    yield (
        f"their sizes: {sizes['different']} different, most often {sizes['most_frequent']}, from {sizes['smallest']} "
        f"to {sizes['largest']}; they become {report['pixels']} × {report['pixels']}, {report['channels']} channels"
    )
    classes = _counted(report["classes"])
    yield f"{len(classes)} classes: {_some(classes)}" if classes else "no labels"
    if alike:
        yield f"{len(alike)} groups of images with the same pixels: {_some([' = '.join(names) for names in alike])}"
    if broken:
        yield f"{len(broken)} left out: {_some([f'{file} ({reason})' for file, reason in broken.items()])}"
    if others := report["other_files"]:
        yield f"{sum(others.values())} other files left out: {_some(_counted(others))}"
    if links := report["links"]:
        yield f"{len(links)} linked folders left out, as DVC does not look into them: {_some(links)}"


def _counted(counts: dict[str, int]) -> list[str]:
    return [f"{name} ({count})" for name, count in counts.items()]


def _some(items: Sequence[str]) -> str:
    shown = 4 * _NAMED
    return first_of(items, shown) + " (all in data/raw/report.json)" * (len(items) > shown)
