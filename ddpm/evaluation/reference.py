"""What generated images are held against: the 60,000 training digits, and the floors that real digits score."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from ddpm.errors import DamagedFile
from ddpm.evaluation.frechet import Gaussian, fit_gaussian, frechet_distance
from ddpm.files import load_arrays, save_arrays
from ddpm.seeds import numpy_generator

# A single draw of 10,000 training digits varies by a third; the mean of this many is steady.
FLOOR_DRAWS = 10
INCEPTION_FLOOR_IMAGES = 10_000


@dataclass(frozen=True)
class MnistReference:
    """Features of the shipped classifier: train float32 [60000, 128], test float32 [10000, 128].

    test_probabilities: float32 [10000, 10], the classifier's verdict on the test digits; test_labels: uint8 [10000].
    """

    train: np.ndarray
    test: np.ndarray
    test_probabilities: np.ndarray
    test_labels: np.ndarray

    def save(self, path: Path) -> None:
        """Store as npz. Raises OSError."""
        save_arrays(path, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> "MnistReference":
        """Read what `save` wrote. Raises MissingFile or DamagedFile."""
        return cls(**_fields(path, cls))


@dataclass(frozen=True)
class InceptionReference:
    """Mean float64 [2048] and covariance float64 [2048, 2048] of the training images' Inception features, their count,
    and the floors that `INCEPTION_FLOOR_IMAGES` real images score. weights_sha256 names the network's weights.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: np.ndarray
    floor: np.ndarray
    floor_test: np.ndarray
    weights_sha256: np.ndarray

    @property
    def gaussian(self) -> Gaussian:
        """What a set of images is measured against."""
        return Gaussian(self.mean, self.covariance, int(self.count))

    def save(self, path: Path) -> None:
        """Store as npz. Raises OSError."""
        save_arrays(path, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> "InceptionReference":
        """Read what `save` wrote. Raises MissingFile or DamagedFile."""
        return cls(**_fields(path, cls))


def make_inception_reference(train: np.ndarray, test: np.ndarray, weights_sha256: str, seed: int) -> InceptionReference:
    """From Inception features of the training and the test images, float32 [n, 2048]."""
    everything = fit_gaussian(train, "the training set")
    floor, floor_test = floors(train, test, INCEPTION_FLOOR_IMAGES, seed)
    return InceptionReference(
        everything.mean,
        everything.covariance,
        np.array(everything.count),
        np.array(floor),
        np.array(floor_test),
        np.array(weights_sha256),
    )


def floors(train: np.ndarray, test: np.ndarray, count: int, seed: int) -> tuple[float, float]:
    """Distances that real images score against all of ``train``: features [n, d] of training and test images.

    Returns (mean over draws of ``count`` random training images, ``count`` random test images). Where there are fewer
    test images than that, all of them; of the training images at most half, as all of them would score nothing.
    """
    everything = fit_gaussian(train, "the training set")
    generator = numpy_generator(seed, "floor")
    drawn = min(count, len(train) // 2)
    draws = [
        frechet_distance(everything, fit_gaussian(train[generator.permutation(len(train))[:drawn]], "a floor draw"))
        for _ in range(FLOOR_DRAWS)
    ]
    held_out = test[generator.permutation(len(test))[:count]]
    return float(np.mean(draws)), frechet_distance(everything, fit_gaussian(held_out, "the test set"))


def _fields(path: Path, kind: type) -> dict[str, np.ndarray]:
    arrays = load_arrays(path)
    if set(arrays) != {field.name for field in fields(kind)}:
        raise DamagedFile(f"{path} holds {sorted(arrays)}, not the fields of {kind.__name__}")
    return arrays
