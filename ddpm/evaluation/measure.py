"""The numbers of the `fid` stage, for images from anywhere."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ddpm.errors import DamagedFile, MissingFile
from ddpm.evaluation.classifier import CLASSES
from ddpm.evaluation.frechet import Gaussian, bootstrap_interval, fit_gaussian, frechet_distance
from ddpm.evaluation.reference import MnistReference, floors
from ddpm.files import write_csv

SURE = 0.9  # a digit counts as sure where the classifier gives one class at least this probability
MNIST_SIZE = 28


@dataclass(frozen=True)
class MnistMeasure:
    """numbers: flat metrics. class_shares: float64 [10, 2], the share of each digit (generated, real test set)."""

    numbers: dict[str, float]
    class_shares: np.ndarray


def to_mnist(images: np.ndarray) -> np.ndarray:
    """RGB uint8 images [n, h, w, 3] as the classifier takes them: uint8 [n, 28, 28].

    Grey images keep their value exactly; colours become luma (ITU-R 601), other sizes are resized bicubically.
    """
    grey = images[..., 0]
    if not (images == grey[..., None]).all():
        grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    if grey.shape[1:] == (MNIST_SIZE, MNIST_SIZE):
        return np.ascontiguousarray(grey)
    size = (MNIST_SIZE, MNIST_SIZE)
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in grey])


def measure_mnist(
    features: np.ndarray,
    probabilities: np.ndarray,
    asked: np.ndarray | None,
    reference: MnistReference,
    bootstrap: int,
    seed: int,
) -> MnistMeasure:
    """Everything the shipped classifier says of images, beside what it says of real ones.

    features: float32 [n, 128]; probabilities: float32 [n, 10]; asked: int64 [n], the digit each image was to show, or
    None where no digit was asked for; bootstrap: resamples of the interval, 0 for none.
    Raises DdpmError for too few images or values that are not finite.
    """
    everything = fit_gaussian(reference.train, "the training set")
    distance = frechet_distance(everything, fit_gaussian(features, "the generated set"))
    floor, floor_test = floors(reference.train, reference.test, len(features), seed)
    numbers = {"fd_mnist": distance}
    if bootstrap:
        low, high = bootstrap_interval(features, everything, bootstrap, seed, "mnist")
        numbers |= {"fd_mnist_low": low, "fd_mnist_high": high}
    numbers |= {
        "fd_mnist_floor": floor,
        "fd_mnist_floor_test": floor_test,
        "fd_mnist_over_floor": distance / floor,
        "sure_share": sure_share(probabilities),
        "sure_share_real": sure_share(reference.test_probabilities),
    }
    if asked is not None:
        numbers |= {
            "label_agreement": label_agreement(probabilities, asked),
            "label_agreement_real": label_agreement(reference.test_probabilities, reference.test_labels),
        }
    shares = np.stack([class_shares(probabilities), class_shares(reference.test_probabilities)], 1)
    numbers |= {"rarest_class_share": float(shares[:, 0].min()), "commonest_class_share": float(shares[:, 0].max())}
    return MnistMeasure(numbers, shares)


def measure_inception(features: np.ndarray, reference: Gaussian, bootstrap: int, seed: int) -> dict[str, float]:
    """FID of Inception features float32 [n, 2048] against the reference, with its interval."""
    numbers = {"fid_inception": frechet_distance(reference, fit_gaussian(features, "the generated set"))}
    if bootstrap:
        low, high = bootstrap_interval(features, reference, bootstrap, seed, "inception")
        numbers |= {"fid_inception_low": low, "fid_inception_high": high}
    return numbers


def sure_share(probabilities: np.ndarray) -> float:
    """Share of images given one class with probability ≥ `SURE`, from probabilities [n, 10]."""
    return float((probabilities.max(1) >= SURE).mean())


def label_agreement(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose likeliest class, from probabilities [n, 10], is their label, from integers [n]."""
    return float((probabilities.argmax(1) == labels).mean())


def class_shares(probabilities: np.ndarray) -> np.ndarray:
    """Share of images whose likeliest class is each digit: float64 [10], from probabilities [n, 10]."""
    return np.bincount(probabilities.argmax(1), minlength=CLASSES) / len(probabilities)


def read_labels(path: Path, count: int) -> np.ndarray | None:
    """The column ``digit`` of a table with one row for each of ``count`` images: int64 [n]; None where it has no rows.

    Raises MissingFile, or DamagedFile for what is no such table.
    """
    try:
        labels = pd.read_csv(path, dtype={"digit": np.int64})["digit"].to_numpy()
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is missing") from error
    except (KeyError, ValueError) as error:
        raise DamagedFile(f"{path} is no table of digits ({' '.join(str(error).split())})") from error
    if len(labels) not in (0, count):
        raise DamagedFile(f"{path} has {len(labels)} rows for {count} images")
    return labels if len(labels) else None


def write_class_shares(path: Path, shares: np.ndarray) -> None:
    """Write shares float64 [10, 2] (generated, real) as a table: digit, set, share. Raises OSError."""
    rows = [
        (digit, name, share)
        for digit, pair in enumerate(shares.tolist())
        for name, share in zip(("generated", "real"), pair, strict=True)
    ]
    write_csv(path, ("digit", "set", "share"), rows)
