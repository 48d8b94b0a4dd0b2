"""Whether edits are right: `python -m benchmarks.editing --help`. Needs `dvc repro fetch_mnist`.

A half of real test digits is erased and painted again by the shipped model; the classifier of `ddpm.evaluation` reads
the result. Counted are the unambiguous halves: the ten training digits whose same half is nearest to it, pixel by
pixel, are all of one class, whichever that is. Ways: "auto", the class is found by the visible half; "label", it is
given; "no_label", there is none; "no_label_no_resampling", nor is any step repeated (RePaint's resampling). Beside it
the round-trip error of the inversion. With --pictures it writes those of docs/use.md.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import ddpm
from benchmarks.common import arguments, run, save, show
from ddpm import pretrained
from ddpm.api import Model
from ddpm.data.image_set import ImageSet
from ddpm.data.sources.mnist import MNIST
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import sha256
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
    parser.add_argument("--classes", action="store_true", help="paint nothing: how often the class of a half is found")
    given = parser.parse_args()
    model, test = ddpm.load(), MNIST.load(RAW, "test")
    if given.pictures:
        write_pictures(model, of_each_class(test, 3))
        return
    if given.digits < 1:
        raise DdpmError(f"--digits {given.digits}: at least 1.")
    digits, training = of_each_class(test, given.digits), MNIST.load(RAW, "train")
    nearest = {side: neighbours(digits, training, mask) for side, mask in ERASED.items()}
    clear = {side: np.flatnonzero((classes == classes[:, :1]).all(1)) for side, classes in nearest.items()}
    halves = {side: digits.take(rows) for side, rows in clear.items()}
    weights = sha256(pretrained.path_of("mnist"))
    metadata: dict[str, Any] = {"model": "mnist", "weights_sha256": weights, "neighbours": NEIGHBOURS}
    if given.classes:
        right = {
            "nearest_digit": {side: (nearest[side][:, 0] == digits.labels)[rows] for side, rows in clear.items()},
            "classify": {
                side: model.classify(halves[side].images, ERASED[side]) == halves[side].labels for side in tqdm(halves)
            },
        }
    else:
        right = {way: painted_right(model, halves, labels) for way, labels in tqdm(WAYS.items(), unit="way")}
        error = model.invert(digits.images[:80], labels=digits.labels[:80]).error
        metadata["inversion_error"] = {"mean": float(error.mean()), "largest": float(error.max())}
    rows = [row(side, len(digits), {way: found[side] for way, found in right.items()}) for side in ERASED]
    together = {way: np.concatenate(list(found.values())) for way, found in right.items()}
    rows.append(row("all", len(ERASED) * len(digits), together))
    show(rows)
    save(rows, given.json, metadata)


def painted_right(
    model: Model, halves: dict[str, ImageSet], labels: Callable[[ImageSet], Any]
) -> dict[str, np.ndarray]:
    """Whether each half, painted again, is read as the digit that was there."""
    classifier, right = MnistExtractor(torch.device("cpu")), {}
    for side, digits in halves.items():
        painted = np.asarray(model.inpaint(digits.images, ERASED[side], **labels(digits)))
        assert np.array_equal(painted[..., ~ERASED[side]], digits.images[..., ~ERASED[side]])
        read = classifier.features(painted, side).probabilities
        assert read is not None
        right[side] = read.argmax(1) == digits.labels
    return right


def row(erased: str, halves: int, right: dict[str, np.ndarray]) -> dict[str, float | int | str]:
    """The fractions, and the standard error of that for which the class is found: `auto`, or `classify`."""
    fractions = {way: float(found.mean()) for way, found in right.items()}
    found = next(found for way, found in right.items() if way in ("classify", "auto"))
    error = {"standard_error": float(found.std() / len(found) ** 0.5)}
    return {"erased": erased, "halves": halves, "unambiguous": len(found)} | fractions | error


def write_pictures(model: Model, digits: ImageSet) -> None:
    """The pictures: samples, a test digit; inpainting, interpolation and variations of three test digits a class."""
    _write("digits", np.asarray(model.sample(64)), 16)
    write_png(PICTURES / "digit.png", digits.images[3])
    erased = ERASED["right"]
    shown = digits.images[:10]
    holes = np.where(erased, 96, shown).astype(np.uint8)
    completions = [np.asarray(model.inpaint(shown, erased, seed=seed)) for seed in (0, 1)]
    labelled = np.asarray(model.inpaint(shown, erased, labels=digits.labels[:10]))
    _write("inpainting", np.concatenate([shown, holes, *completions, labelled]), 10)
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
