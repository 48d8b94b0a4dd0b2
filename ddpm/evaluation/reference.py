"""What generated images are compared with: the features of the real ones by one network."""

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from ddpm.data.image_set import ImageSet
from ddpm.evaluation.features import FeatureExtractor
from ddpm.evaluation.frechet import Gaussian, fit_gaussian, floor_samples, frechet_distance
from ddpm.evaluation.neighbours import nearest
from ddpm.utils.errors import DamagedFile
from ddpm.utils.files import arrays_sha256, load_arrays, save_arrays
from ddpm.utils.seeds import numpy_generator

FLOOR_IMAGES = 10_000
# Features of all training images are kept up to this many numbers (80 MB), else those of a random sample.
_KEPT_NUMBERS = 10_000 * 2048


@dataclass(frozen=True)
class Reference:
    """Features of the real images, of dimension d, by the network with these weights.

    mean float64 [d], covariance float64 [d, d], count: of all training images. train float32 [m, d], train_labels int64
    [m]: of all of them, or of a random sample. test float32 [k, d], test_labels int64 [k], test_probabilities float32
    [k, c], c = 0 for a network that gives none. test_nearest float64 [k]: distance of each test image to the nearest
    training image; empty where ``train`` is a sample. floor: the Fréchet distance of `FLOOR_IMAGES` random training
    images, NaN where there are none, see `frechet_floor`. seed: of the random choices. images_sha256: of the images and
    labels that were measured.
    """

    weights_sha256: str
    seed: int
    mean: np.ndarray
    covariance: np.ndarray
    count: int
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    test_probabilities: np.ndarray
    test_nearest: np.ndarray
    floor: float
    images_sha256: str = ""

    @cached_property
    def gaussian(self) -> Gaussian:
        """Of all training images."""
        return Gaussian(self.mean, self.covariance, self.count)

    @property
    def complete(self) -> bool:
        """Whether ``train`` holds all training images."""
        return len(self.train) == self.count

    def frechet_floor(self, count: int, labels: np.ndarray | None = None) -> float:
        """The Fréchet distance of ``count`` random training images, of the class ``labels``, int64 [count], if given.

        NaN where ``train`` has too few images, see `frechet_floor`. Where it is a sample, labels are not seen.
        """
        if self.complete and labels is not None:
            given = self.train_labels, labels
        elif count == FLOOR_IMAGES:
            return self.floor
        else:
            given = None
        return frechet_floor(self.train, self.gaussian, count, _stream(self.seed, "floor"), given)

    def save(self, path: Path) -> None:
        """Store as npz. Raises OSError."""
        save_arrays(path, **{key: np.asarray(value) for key, value in asdict(self).items()})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises MissingFile or DamagedFile."""
        arrays: dict[str, Any] = load_arrays(path)
        if set(arrays) | {"images_sha256"} != {field.name for field in fields(cls)}:  # which older files lack
            raise DamagedFile(f"{path} holds {sorted(arrays)}, not the features of real images")
        return cls(**{key: value.item() if value.ndim == 0 else value for key, value in arrays.items()})


def make_reference(extractor: FeatureExtractor, train: ImageSet, test: ImageSet, seed: int) -> Reference:
    """Measure the real images. Raises DdpmError for fewer training images than feature dimensions."""
    everything, held_out = (extractor.features(part.images, name) for part, name in ((train, "train"), (test, "test")))
    sets = (everything.values, train.labels), (held_out.values, test.labels)
    return reference_of(extractor.weights_sha256, *sets, held_out.probabilities, seed, real_sha256(train, test))


def reference_of(
    weights_sha256: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    test_probabilities: np.ndarray | None,
    seed: int,
    images_sha256: str = "",
) -> Reference:
    """From features and labels of all training and test images: see `Reference`."""
    features, labels = train
    gaussian = fit_gaussian(features, "the training set")
    kept = min(len(features), _KEPT_NUMBERS // features.shape[1])
    chosen = np.sort(_stream(seed, "sample").permutation(len(features))[:kept])
    complete = kept == len(features)
    return Reference(
        weights_sha256,
        seed,
        gaussian.mean,
        gaussian.covariance,
        gaussian.count,
        features[chosen],
        labels[chosen],
        *test,
        np.empty((len(test[0]), 0), np.float32) if test_probabilities is None else test_probabilities,
        nearest(test[0], features, "test, features")[1] if complete else np.empty(0),
        frechet_floor(features, gaussian, FLOOR_IMAGES, _stream(seed, "floor")),
        images_sha256,
    )


def find_reference(path: Path, extractor: FeatureExtractor, train: ImageSet, test: ImageSet, seed: int) -> Reference:
    """The reference stored at ``path``, or a new one where none is there, or one of other images, weights or seed.

    Raises MissingFile, DamagedFile, and what `make_reference` does.
    """
    if path.exists():
        stored = Reference.load(path)
        wanted = (extractor.weights_sha256, extractor.dimensions, seed, real_sha256(train, test))
        if (stored.weights_sha256, len(stored.mean), stored.seed, stored.images_sha256) == wanted:
            return stored
    return make_reference(extractor, train, test, seed)


def real_sha256(train: ImageSet, test: ImageSet) -> str:
    """SHA-256 of the images and the labels of a data set."""
    return arrays_sha256(train.images, train.labels, test.images, test.labels)


def pixels(images: np.ndarray) -> np.ndarray:
    """uint8 images [n, c, h, w] as points for distances: float32 [n, c·h·w] in [0, 1]."""
    return images.reshape(len(images), -1) / np.float32(255)


def nearest_pixels(train: ImageSet, test: ImageSet) -> np.ndarray:
    """Distance of each test image to the nearest training image, by pixels in [0, 1]: float64 [k]."""
    return nearest(test.images, train.images, "test, pixels", pixels)[1]


def find_nearest_pixels(path: Path, train: ImageSet, test: ImageSet) -> np.ndarray:
    """`nearest_pixels` as stored at ``path``; measured, and stored there, where nothing is, or that of other images.

    Raises DamagedFile, OSError.
    """
    digest = real_sha256(train, test)
    stored = load_arrays(path) if path.exists() else {}
    if str(stored.get("images_sha256")) != digest:
        stored = {"test_nearest": nearest_pixels(train, test), "images_sha256": np.asarray(digest)}
        save_arrays(path, **stored)
    return stored["test_nearest"]


def frechet_floor(
    train: np.ndarray,
    everything: Gaussian,
    count: int,
    generator: np.random.Generator,
    labels: tuple[np.ndarray, np.ndarray] | None = None,
) -> float:
    """The Fréchet distance that ``count`` random ones of features [n, d] score against all of them.

    labels: int64 [n] and [count], of the features and those that each sample shall have; None for any. The mean over
    `floor_samples` samples. NaN for more than half of the images, as all of them would score nothing, and where those
    of a label are too few.
    """
    groups = [(np.arange(len(train)), count)]
    if labels is not None:
        wanted = zip(*np.unique(labels[1], return_counts=True), strict=True)
        groups = [(np.flatnonzero(labels[0] == label), int(number)) for label, number in wanted]
    if count > len(train) // 2 or any(number > len(members) for members, number in groups):
        return float("nan")

    def distance() -> float:
        chosen = [members[generator.permutation(len(members))[:number]] for members, number in groups]
        return frechet_distance(everything, fit_gaussian(train[np.concatenate(chosen)], "a floor sample"))

    return float(np.mean([distance() for _ in range(floor_samples(train.shape[1]))]))


def _stream(seed: int, purpose: str) -> np.random.Generator:
    return numpy_generator(seed, "reference", purpose)
