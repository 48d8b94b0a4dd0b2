"""The numbers of the `fid` stage, for images from anywhere."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm.evaluation.classifier import CLASSES
from ddpm.evaluation.frechet import Gaussian, bootstrap_interval, fit_gaussian, frechet_distance
from ddpm.evaluation.reference import MnistReference, floors
from ddpm.files import atomic_path

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
    features: np.ndarray, probabilities: np.ndarray, reference: MnistReference, bootstrap: int, seed: int
) -> MnistMeasure:
    """Everything the shipped classifier says of images, beside what it says of real ones.

    features: float32 [n, 128]; probabilities: float32 [n, 10]; bootstrap: resamples of the interval, 0 for none.
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


def class_shares(probabilities: np.ndarray) -> np.ndarray:
    """Share of images whose likeliest class is each digit: float64 [10], from probabilities [n, 10]."""
    return np.bincount(probabilities.argmax(1), minlength=CLASSES) / len(probabilities)


def write_class_shares(path: Path, shares: np.ndarray) -> None:
    """Write shares float64 [10, 2] (generated, real) as a table: digit, set, share. Raises OSError."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["digit", "set", "share"])
        for digit, (generated, real) in enumerate(shares.tolist()):
            table.writerows([[digit, "generated", generated], [digit, "real", real]])
