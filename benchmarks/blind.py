"""Broken digits, found by readers who do not know which are real: `python -m benchmarks.blind --help`.

With --pages it writes the images of each NAME=PATH and as many real test digits, shuffled, as numbered pages. A reader
writes the numbers of those that are broken into a text file. With --broken, and otherwise the same arguments, it tells
what each reader found among the real digits and among the others; and what needs no reader: how many digits the shipped
classifier takes for none, and how many strokes are torn.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import label
from scipy.stats import fisher_exact

from benchmarks.common import REAL, arguments, evaluator, real_and_named, run, save, show
from ddpm.evaluation.classes import ambiguous
from ddpm.figures.grids import numbered
from ddpm.utils.errors import DdpmError
from ddpm.utils.seeds import numpy_generator

INK, SPECK = 0.3, 4  # a pixel of a stroke is brighter than this part of white; fewer pixels together are a speck
COLUMNS, ROWS, SCALE = 20, 10, 3


def torn(images: np.ndarray) -> np.ndarray:
    """Whether the stroke, specks aside, has more than one part: bool [n], from uint8 [n, 1, h, w].

    Pixels that touch at a corner are of one part. Some digits are written in two strokes, most of all fives, so
    compare with real ones.
    """
    sizes = (np.bincount(label(image > INK * 255, np.ones((3, 3)))[0].flat)[1:] for image in images[:, 0])
    return np.array([(size >= SPECK).sum() > 1 for size in sizes])


def shuffled(sets: dict[str, np.ndarray], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images of each set in one random order, and the name of each one's set: uint8 [n, 1, h, w], str [n]."""
    generator = numpy_generator(seed, "blind")
    chosen = {name: images[generator.permutation(len(images))[:count]] for name, images in sets.items()}
    order = generator.permutation(sum(len(images) for images in chosen.values()))
    names = np.concatenate([np.full(len(images), name, dtype=object) for name, images in chosen.items()])
    return np.concatenate(list(chosen.values()))[order], names[order]


def numbers(path: Path, count: int) -> np.ndarray:
    """The image numbers, from 1, in a reader's file. Raises DdpmError for what is no number of an image."""
    found = path.read_text(encoding="utf-8").replace(",", " ").split()
    if wrong := [each for each in found if not each.isdecimal() or not 1 <= int(each) <= count]:
        raise DdpmError(f"{path}: {wrong[0]} is no number of an image, 1 to {count}.")
    return np.unique([int(each) for each in found]).astype(int)


def numbers_of(files: Sequence[Path], count: int) -> dict[str, np.ndarray]:
    """The `numbers` in each reader's file, by the name of the file. Raises DdpmError for two files of one name."""
    places: dict[str, Path] = {}
    for path in files:
        if places.setdefault(path.stem, path) is not path:
            raise DdpmError(f"{places[path.stem]} and {path} name the same reader: rename one of them.")
    return {reader: numbers(path, count) for reader, path in places.items()}


def by_readers(names: np.ndarray, found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row for each reader and set: how many of its images were found broken, and the p-value of as many as real ones.

    names: of the set of each image. found: the image numbers that each reader wrote down. p: of Fisher's exact test,
    two-sided, that the set's images and the real ones are broken as often.
    """
    rows = []
    for reader, given in found.items():
        broken = np.isin(np.arange(1, len(names) + 1), given)
        table = {
            name: (int(broken[names == name].sum()), int((~broken[names == name]).sum()))
            for name in dict.fromkeys(names)
        }
        for name, (bad, good) in sorted(table.items(), key=lambda item: item[0] != REAL):
            row = {
                "reader": reader,
                "images": name,
                "count": bad + good,
                "broken": bad,
                "broken_fraction": bad / (bad + good),
            }
            rows.append(row | {"p": "–" if name == REAL else float(fisher_exact([table[REAL], (bad, good)]).pvalue)})
    return rows


def by_program(images: np.ndarray) -> dict[str, float]:
    """Fractions of uint8 images [n, 1, h, w] without a clear class, and with a torn stroke."""
    probabilities = evaluator()[0].features(images, "measure").probabilities
    assert probabilities is not None
    return {"ambiguous_fraction": float(ambiguous(probabilities).mean()), "torn_fraction": float(torn(images).mean())}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("images", nargs="+", metavar="NAME=PATH", help="such as default=data/generated")
    parser.add_argument("--count", type=int, default=1000, help="of each set that a reader sees (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and its order; keep it from the readers")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--pages", type=Path, metavar="FOLDER", help="write the pages for the readers")
    either.add_argument("--broken", type=Path, nargs="+", default=[], metavar="FILE", help="a reader's numbers")
    given = parser.parse_args()
    sets = real_and_named(given.images)
    images, names = shuffled(sets, given.count, given.seed)
    if given.pages:
        given.pages.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(images), COLUMNS * ROWS):
            page = given.pages / f"page_{first // (COLUMNS * ROWS) + 1:02}.png"
            numbered(page, images[first : first + COLUMNS * ROWS], first + 1, COLUMNS, SCALE)
            print(page)
        return
    found = numbers_of(given.broken, len(images))
    rows = by_readers(names, found)
    programs = [{"images": name, "count": len(each)} | by_program(each) for name, each in sets.items()]
    if rows:
        show(rows)
    show(programs)
    written = {reader: each.tolist() for reader, each in found.items()}
    save(rows, given.json, {"count": given.count, "seed": given.seed, "numbers": written, "programs": programs})


if __name__ == "__main__":
    run(main)
