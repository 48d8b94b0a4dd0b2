"""Whether edits are right: `python -m benchmarks.editing --help`. Needs `dvc repro fetch_mnist`.

A half of real test digits is erased and painted again by the shipped model; the classifier of `ddpm.evaluation` reads
the result. The visible half is unambiguous where the ten training digits whose same half is nearest to it, pixel by
pixel, are all of one class, whichever that is. Beside it the round-trip error of the inversion. With --pictures it
writes those of docs/use.md.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import ddpm
from benchmarks.common import arguments, run, save, show
from ddpm.api import Model
from ddpm.data.image_set import ImageSet
from ddpm.data.sources.mnist import MNIST
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.utils.errors import DdpmError
from ddpm.utils.images import enlarge, tile, write_png
from stages.paths import RAW

NEIGHBOURS = 10
PICTURES = Path("docs/images")
_ROW, _COLUMN = np.mgrid[:28, :28]
WAYS: dict[str, Callable[[ImageSet], dict[str, Any]]] = {
    "auto": lambda digits: {},
    "label": lambda digits: {"labels": digits.labels},
    "no_label_no_resampling": lambda digits: {"labels": None, "resamplings": 1},
    "no_label": lambda digits: {"labels": None},
}
ERASED = {"left": _COLUMN < 14, "right": _COLUMN >= 14, "top": _ROW < 14, "bottom": _ROW >= 14}


def of_each_class(images: ImageSet, count: int) -> ImageSet:
    """The first ``count`` images of every class, one class after the other in turn."""
    rows = [np.flatnonzero(images.labels == label)[:count] for label in range(images.classes)]
    return images.take(np.stack(rows, 1).ravel())


def neighbours(digits: ImageSet, training: ImageSet, erased: np.ndarray) -> np.ndarray:
    """The classes of the training digits nearest by the visible pixels: int64 [n, NEIGHBOURS]."""
    visible = torch.from_numpy(~erased.ravel())
    queries, points = (torch.from_numpy(x.images).flatten(1)[:, visible].float() for x in (digits, training))
    return training.labels[torch.cdist(queries, points).topk(NEIGHBOURS, largest=False).indices.numpy()]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--digits", type=int, default=25, help="of each class (default 25)")
    parser.add_argument("--pictures", action="store_true", help=f"write {PICTURES}/*.png, and measure nothing")
    given = parser.parse_args()
    model, test = ddpm.load(), MNIST.load(RAW, "test")
    if given.pictures:
        draw(model, of_each_class(test, 3))
        return
    if given.digits < 1:
        raise DdpmError(f"--digits {given.digits}: at least 1.")
    digits, training = of_each_class(test, given.digits), MNIST.load(RAW, "train")
    classifier = MnistExtractor(torch.device("cpu"))
    error = model.invert(digits.images[:80], labels=digits.labels[:80]).error
    inversion = {"mean": float(error.mean()), "largest": float(error.max())}
    metadata = {"model": "mnist", "neighbours": NEIGHBOURS, "inversion_error": inversion}
    nearest = {side: neighbours(digits, training, mask) for side, mask in ERASED.items()}
    clear = {side: np.flatnonzero((classes == classes[:, :1]).all(1)) for side, classes in nearest.items()}
    right = {"neighbours": {side: (nearest[side][:, 0] == digits.labels)[rows] for side, rows in clear.items()}}
    for name, labels in tqdm(WAYS.items(), desc="in-painting", unit="way"):
        right[name] = {}
        for side, mask in ERASED.items():
            halves = digits.take(clear[side])
            painted = np.asarray(model.inpaint(halves.images, mask, **labels(halves)))
            assert np.array_equal(painted[..., ~mask], halves.images[..., ~mask])
            read = classifier.features(painted, name).probabilities
            assert read is not None
            right[name][side] = read.argmax(1) == halves.labels
        rows = [row(len(digits), {way: found[side] for way, found in right.items()}, side) for side in ERASED]
        together = {way: np.concatenate(list(found.values())) for way, found in right.items()}
        rows.append(row(len(ERASED) * len(digits), together, "all"))
        save(rows, given.json, metadata)
    show(rows)


def row(halves: int, right: dict[str, np.ndarray], name: str) -> dict[str, float | int | str]:
    """How often each way was right, with the standard error of the one without a label."""
    fractions = {way: float(found.mean()) for way, found in right.items()}
    count, auto = len(right["auto"]), fractions["auto"]
    error = (auto * (1.0 - auto) / count) ** 0.5
    return {"erased": name, "halves": halves, "unambiguous": count} | fractions | {"auto_standard_error": error}


def draw(model: Model, digits: ImageSet) -> None:
    """The pictures: in-painting, interpolation and variations, of three test digits of each class."""
    erased = ERASED["right"]
    shown = digits.images[:10]
    holes = np.where(erased, 96, shown).astype(np.uint8)
    completions = [np.asarray(model.inpaint(shown, erased, seed=seed)) for seed in (0, 1)]
    told = np.asarray(model.inpaint(shown, erased, labels=digits.labels[:10]))
    _write("inpainting", np.concatenate([shown, holes, *completions, told]), 10)
    pairs = [(0, 11), (3, 18), (7, 12), (14, 9)]
    images, labels = digits.images, digits.labels.tolist()
    paths = [model.interpolate(images[a], images[b], 11, labels=(labels[a], labels[b])) for a, b in pairs[:2]]
    paths += [model.interpolate(images[a], images[b], 11, labels=(labels[a], labels[b]), seed=1) for a, b in pairs[2:]]
    _write("interpolation", np.concatenate([np.asarray(path) for path in paths]), 11)
    strengths = np.linspace(0.0, 1.0, 11).tolist()
    rows = [(12, 2), (13, 3), (13, 8), (14, 9)]
    grid = [np.asarray(model.vary(images[i], strength, labels=label)) for i, label in rows for strength in strengths]
    _write("variations", np.concatenate(grid), 11)


def _write(name: str, images: np.ndarray, columns: int) -> None:
    write_png(PICTURES / f"{name}.png", enlarge(tile(images, columns, background=64), 2))


if __name__ == "__main__":
    run(main)
