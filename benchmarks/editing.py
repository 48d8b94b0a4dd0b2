"""Whether edits are right: `python -m benchmarks.editing --help`. Needs `dvc repro fetch_mnist`.

A half of real test digits is erased and painted again by the shipped model; the classifier of `ddpm.evaluation` reads
the result. The visible half is unambiguous where the ten training digits whose same half is nearest to it, pixel by
pixel, are all of one class, whichever that is. Beside it the round-trip error of the inversion. With --pictures it
writes those of docs/use.md.
"""

from pathlib import Path

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
ERASED = {"left": _COLUMN < 14, "right": _COLUMN >= 14, "top": _ROW < 14, "bottom": _ROW >= 14}


def of_each_class(images: ImageSet, count: int) -> ImageSet:
    """The first ``count`` images of every class, one class after the other in turn."""
    rows = [np.flatnonzero(images.labels == label)[:count] for label in range(images.classes)]
    return images.take(np.stack(rows, 1).ravel())


def unambiguous(digits: ImageSet, training: ImageSet, erased: np.ndarray) -> np.ndarray:
    """Whether the nearest training digits by the visible pixels are of one class: bool [n]."""
    visible = torch.from_numpy(~erased.ravel())
    queries, points = (torch.from_numpy(x.images).flatten(1)[:, visible].float() for x in (digits, training))
    nearest = torch.cdist(queries, points).topk(NEIGHBOURS, largest=False).indices.numpy()
    classes = training.labels[nearest]
    return (classes == classes[:, :1]).all(1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--digits", type=int, default=8, help="of each class (default 8)")
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
    ways = {
        "label": {"labels": digits.labels},
        "no_label": {},
        "no_label_no_resampling": {"resamplings": 1},
    }
    right = {name: np.zeros((len(ERASED), len(digits)), bool) for name in ways}
    clear = np.stack([unambiguous(digits, training, mask) for mask in ERASED.values()])
    for name, options in tqdm(ways.items(), desc="in-painting", unit="way"):
        for row, mask in enumerate(ERASED.values()):
            painted = np.asarray(model.inpaint(digits.images, mask, **options))
            assert np.array_equal(painted[..., ~mask], digits.images[..., ~mask])
            read = classifier.features(painted, name).probabilities
            assert read is not None
            right[name][row] = read.argmax(1) == digits.labels
    rows = []
    for name, chosen in {**{side: [row] for row, side in enumerate(ERASED)}, "all": [0, 1, 2, 3]}.items():
        cases = clear[chosen]
        numbers = {"erased": name, "digits": int(cases.size), "unambiguous": int(cases.sum())}
        rows.append(numbers | {way: float(found[chosen][cases].mean()) for way, found in right.items()})
        rows[-1]["no_label_any_digit"] = float(right["no_label"][chosen].mean())
    error = model.invert(digits.images, labels=digits.labels).error
    inversion = {"mean": float(error.mean()), "largest": float(error.max())}
    show(rows)
    save(rows, given.json, {"model": "mnist", "neighbours": NEIGHBOURS, "inversion_error": inversion})


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
