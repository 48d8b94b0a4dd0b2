"""What generated images are held against: the 60,000 training digits, and what real digits score."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from ddpm.data.split import ImageSet
from ddpm.evaluation.features.classifier import Classifier, classify
from ddpm.evaluation.features.inception import inception_features, load_inception
from ddpm.evaluation.frechet import Gaussian, fit_gaussian, frechet_distance
from ddpm.evaluation.neighbours import nearest
from ddpm.utils.errors import DamagedFile
from ddpm.utils.files import load_arrays, save_arrays, sha256
from ddpm.utils.seeds import numpy_generator

# A single draw of 10,000 training digits varies by a third; the mean of this many is steady.
FLOOR_DRAWS = 10
INCEPTION_SAMPLE = 10_000


@dataclass(frozen=True)
class RealFeatures:
    """What features of one network are held against.

    everything: of all training images. train: features [m, d] of some or all of them, of which random ones are taken
    where single images are compared. test: features [k, d]. floor: (n) -> the Fréchet distance that n random training
    images score.
    """

    everything: Gaussian
    train: np.ndarray
    test: np.ndarray
    floor: Callable[[int], float]


@dataclass(frozen=True)
class MnistReference:
    """Features of the shipped classifier: train float32 [60000, 128], test float32 [10000, 128].

    test_probabilities: float32 [10000, 10], the classifier's verdict on the test digits. train_labels, test_labels:
    uint8. test_nearest and test_nearest_pixel: float64 [10000], the distance of each test digit to the nearest training
    digit, by features and by pixels (see `pixels`).
    """

    train: np.ndarray
    test: np.ndarray
    test_probabilities: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray
    test_nearest: np.ndarray
    test_nearest_pixel: np.ndarray

    def real(self, seed: int) -> RealFeatures:
        """What a set of images is measured against; ``seed`` decides the draws of the floor."""
        everything = fit_gaussian(self.train, "the training set")
        return RealFeatures(everything, self.train, self.test, lambda count: frechet_floor(self.train, count, seed))

    def save(self, path: Path) -> None:
        """Store as npz. Raises OSError."""
        save_arrays(path, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> "MnistReference":
        """Read what `save` wrote. Raises MissingFile or DamagedFile."""
        return cls(**_fields(path, cls))


@dataclass(frozen=True)
class InceptionReference:
    """Inception features of the real digits, by the weights of this SHA-256.

    mean float64 [d], covariance float64 [d, d], count: of all training images. train float32 [10000, d]: of a random
    tenth thousand of them. test float32 [10000, d]. floor: the Fréchet distance of that many random training images.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: np.ndarray
    train: np.ndarray
    test: np.ndarray
    floor: np.ndarray
    weights_sha256: np.ndarray

    @property
    def real(self) -> RealFeatures:
        """What a set of images is measured against; the floor is that of `INCEPTION_SAMPLE` images, however many."""
        everything = Gaussian(self.mean, self.covariance, int(self.count))
        return RealFeatures(everything, self.train, self.test, lambda _: float(self.floor))

    def save(self, path: Path) -> None:
        """Store as npz. Raises OSError."""
        save_arrays(path, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> "InceptionReference":
        """Read what `save` wrote. Raises MissingFile or DamagedFile."""
        return cls(**_fields(path, cls))


def pixels(images: np.ndarray) -> np.ndarray:
    """uint8 images [n, 28, 28] as points for distances: float32 [n, 784] in [0, 1]."""
    return images.reshape(len(images), -1) / np.float32(255)


def make_mnist_reference(classifier: Classifier, train: ImageSet, test: ImageSet) -> MnistReference:
    """Measure the real digits, images of 28 × 28 pixels."""
    train_features, _ = classify(classifier, train.images, "train")
    test_features, test_probabilities = classify(classifier, test.images, "test")
    _, by_features = nearest(test_features, train_features, "test, features")
    _, by_pixels = nearest(pixels(test.images), pixels(train.images), "test, pixels")
    return MnistReference(
        train_features, test_features, test_probabilities, train.labels, test.labels, by_features, by_pixels
    )


def make_inception_reference(
    weights: Path, dimensions: int, train: np.ndarray, test: np.ndarray, seed: int, device: torch.device
) -> InceptionReference:
    """Measure the real digits, uint8 [n, 28, 28], by the weights in this file: see `load_inception`."""
    network = load_inception(weights, dimensions, device)
    train_features, test_features = (
        inception_features(network, images, label) for images, label in ((train, "train"), (test, "test"))
    )
    return summarize_inception(train_features, test_features, sha256(weights), seed)


def summarize_inception(train: np.ndarray, test: np.ndarray, weights_sha256: str, seed: int) -> InceptionReference:
    """From Inception features of all training and test images, float32 [n, d]."""
    everything = fit_gaussian(train, "the training set")
    chosen = numpy_generator(seed, "inception sample").permutation(len(train))[:INCEPTION_SAMPLE]
    return InceptionReference(
        everything.mean,
        everything.covariance,
        np.array(everything.count),
        train[np.sort(chosen)],
        test,
        np.array(frechet_floor(train, INCEPTION_SAMPLE, seed)),
        np.array(weights_sha256),
    )


def frechet_floor(train: np.ndarray, count: int, seed: int) -> float:
    """The Fréchet distance that ``count`` random images of the training set's features [n, d] score against all of it.

    The mean over `FLOOR_DRAWS` draws. At most half of the images are drawn, as all of them would score nothing.
    """
    everything = fit_gaussian(train, "the training set")
    generator = numpy_generator(seed, "floor")
    drawn = min(count, len(train) // 2)
    draws = [
        frechet_distance(everything, fit_gaussian(train[generator.permutation(len(train))[:drawn]], "a floor draw"))
        for _ in range(FLOOR_DRAWS)
    ]
    return float(np.mean(draws))


def _fields(path: Path, kind: type) -> dict[str, np.ndarray]:
    arrays = load_arrays(path)
    if set(arrays) != {field.name for field in fields(kind)}:
        raise DamagedFile(f"{path} holds {sorted(arrays)}, not the fields of {kind.__name__}")
    return arrays
