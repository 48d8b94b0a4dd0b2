"""The numbers of the `fid` stage, for images from anywhere.

Everything is flat: NAME, its 95 % interval NAME_low and NAME_high, and NAME_real, what the real test digits score, as
many as there are images to be measured. docs/metrics.md explains each.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ddpm.evaluation.classes import (
    SURE,
    ByClass,
    class_divergence,
    class_score,
    label_agreement,
    measure_by_class,
    sure_share,
    unsure_share,
)
from ddpm.evaluation.frechet import bootstrap_intervals, fit_gaussian, frechet_distance, frechet_limit
from ddpm.evaluation.kernel import kernel_distances, kernel_interval
from ddpm.evaluation.neighbours import closer_share, copied_share, manifold, nearest
from ddpm.evaluation.reference import MnistReference, RealFeatures, pixels
from ddpm.utils.errors import DdpmError
from ddpm.utils.images import resize
from ddpm.utils.seeds import numpy_generator

MNIST_SIZE = 28


@dataclass(frozen=True)
class MnistMeasure:
    """numbers: flat metrics. by_class: the same digit by digit."""

    numbers: dict[str, float]
    by_class: ByClass


@dataclass(frozen=True)
class Memorisation:
    """numbers: flat metrics. One row an image: the nearest training image (int64 [n]) and how far (float64 [n])."""

    numbers: dict[str, float]
    pixel_index: np.ndarray
    pixel_distance: np.ndarray
    feature_index: np.ndarray
    feature_distance: np.ndarray

    columns = ("image", "pixel_index", "pixel_distance", "feature_index", "feature_distance")

    def rows(self) -> Iterator[tuple[int, int, float, int, float]]:
        """A table with `columns`: images count from 1 as the PNGs do, training images from 0."""
        arrays = (self.pixel_index, self.pixel_distance, self.feature_index, self.feature_distance)
        return zip(range(1, len(self.pixel_index) + 1), *(array.tolist() for array in arrays), strict=True)


def refuse_constant(images: np.ndarray, name: Callable[[int], str]) -> None:
    """Raise DdpmError naming the images of uint8 [n, h, w, …] that have one value everywhere: they show nothing."""
    flat = images.reshape(len(images), -1)
    empty = np.flatnonzero((flat == flat[:, :1]).all(1))
    if len(empty):
        some = ", ".join(name(int(i)) for i in empty[:3]) + (", …" if len(empty) > 3 else "")
        raise DdpmError(f"{len(empty)} of {len(images)} images are blank ({some}): their distance would say nothing.")


def to_mnist(images: np.ndarray) -> np.ndarray:
    """RGB uint8 images [n, h, w, 3] as the classifier takes them: uint8 [n, 28, 28].

    Grey images keep their value exactly; colours become luma (ITU-R 601), other sizes are resized bicubically.
    """
    grey = images[..., 0]
    if not (images == grey[..., None]).all():
        grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    return np.ascontiguousarray(resize(grey, MNIST_SIZE))


def measure_features(
    names: tuple[str, str], features: np.ndarray, real: RealFeatures, bootstrap: int, seed: int, alone: bool = False
) -> dict[str, float]:
    """Fréchet and kernel distance, precision, recall, density and coverage of features [n, d], with intervals.

    names: of the Fréchet distance and of the feature network. bootstrap: resamples of the intervals, 0 for none. alone:
    leaves out what real images score. Raises DdpmError for too few images.
    """
    fd, network = names
    limit_name, kernel_name = f"{fd}_limit", f"kd_{network}"
    generator = numpy_generator(seed, f"measure {network}")
    sample = real.train[generator.permutation(len(real.train))[: len(features)]]
    test = real.test[generator.permutation(len(real.test))[: len(features)]]
    numbers: dict[str, float] = {}
    for values, suffix in ((features, ""), (test, "_real"))[: 1 if alone else 2]:
        what = f"{network}, {'real' if suffix else 'generated'}"
        distance = frechet_distance(real.everything, fit_gaussian(values, f"the {what} set"))
        limit = frechet_limit(values, real.everything, seed, what)
        kernel = kernel_distances(values, sample, seed, what)
        shape = manifold(sample, values, what)
        means = {
            f"{key}_{network}": getattr(shape, key).astype(np.float64)
            for key in ("precision", "recall", "density", "coverage")
        }
        numbers[fd + suffix] = distance
        if limit is not None:
            numbers[limit_name + suffix] = limit
        numbers[kernel_name + suffix] = float(kernel.mean())
        numbers |= {key + suffix: float(value.mean()) for key, value in means.items()}
        if suffix or alone:
            continue
        floor = real.floor(len(features))
        numbers[f"{fd}_floor"] = floor
        numbers[f"{fd}_over_floor"] = distance / floor
        numbers[f"{kernel_name}_std"] = float(kernel.std(ddof=1))
        if bootstrap:
            intervals = bootstrap_intervals(values, real.everything, bootstrap, seed, what, limit)
            found = {fd: intervals.distance, kernel_name: kernel_interval(kernel, len(values))}
            if intervals.limit:
                found[limit_name] = intervals.limit
            found |= {key: mean_interval(value, bootstrap, seed, key) for key, value in means.items()}
            numbers |= _ends(found)
    return in_order(numbers)


def measure_mnist(
    features: np.ndarray,
    probabilities: np.ndarray,
    asked: np.ndarray | None,
    reference: MnistReference,
    bootstrap: int,
    seed: int,
    alone: bool = False,
) -> MnistMeasure:
    """Everything the shipped classifier says of images, beside what it says of real ones.

    features: float32 [n, 128]; probabilities: float32 [n, 10]; asked: int64 [n], the digit each image was to show, or
    None where no digit was asked for; bootstrap: resamples of the intervals, 0 for none; alone: leaves out what real
    images score. Raises DdpmError for too few images or values that are not finite.
    """
    numbers = measure_features(("fd_mnist", "mnist"), features, reference.real(seed), bootstrap, seed, alone)
    by_class = measure_by_class(
        features,
        probabilities,
        (reference.train, reference.train_labels),
        (reference.test, reference.test_probabilities.argmax(1)),
    )
    train_shares = np.bincount(reference.train_labels, minlength=len(by_class.shares)) / len(reference.train_labels)
    columns = (("", probabilities, asked), ("_real", reference.test_probabilities, reference.test_labels))
    for column, (suffix, verdict, labels) in enumerate(columns[: 1 if alone else 2]):
        numbers |= {
            f"sure_share{suffix}": sure_share(verdict),
            f"unsure_share{suffix}": unsure_share(verdict),
            f"mean_confidence{suffix}": float(verdict.max(1).mean()),
            f"class_score{suffix}": class_score(verdict),
            f"class_divergence{suffix}": class_divergence(by_class.shares[:, column], train_shares),
            f"fd_mnist_per_class{suffix}": float(by_class.distances[:, column].mean()),
        }
        if asked is not None and labels is not None:
            numbers[f"label_agreement{suffix}"] = label_agreement(verdict, labels)
    if bootstrap:
        sure = {"sure_share": probabilities.max(1) >= SURE}
        if asked is not None:
            sure["label_agreement"] = probabilities.argmax(1) == asked
        numbers |= _ends({key: mean_interval(value, bootstrap, seed, key) for key, value in sure.items()})
    numbers |= {
        "rarest_class_share": float(by_class.shares[:, 0].min()),
        "commonest_class_share": float(by_class.shares[:, 0].max()),
    }
    return MnistMeasure(in_order({key: value for key, value in numbers.items() if not np.isnan(value)}), by_class)


def measure_memorisation(
    images: np.ndarray, features: np.ndarray, train_images: np.ndarray, reference: MnistReference
) -> Memorisation:
    """Whether images uint8 [n, 28, 28] lie closer to the training images than held-out digits do.

    features: float32 [n, 128], theirs. Real: one half of the test digits beside the other.
    """
    numbers: dict[str, float] = {}
    found: list[np.ndarray] = []
    for name, queries, points, held_out in (
        ("pixel", pixels(images), pixels(train_images), reference.test_nearest_pixel),
        ("feature", features, reference.train, reference.test_nearest),
    ):
        index, distance = nearest(queries, points, f"training images, {name}s")
        found += [index, distance]
        for suffix, measured, beside in (
            ("", distance, held_out),
            ("_real", held_out[1::2], held_out[::2]),
        ):
            numbers |= {
                f"nearest_{name}{suffix}": float(measured.mean()),
                f"closer_share_{name}{suffix}": closer_share(measured, beside),
                f"copied_share_{name}{suffix}": copied_share(measured, beside),
            }
    return Memorisation(in_order(numbers), *found)


def mean_interval(values: np.ndarray, resamples: int, seed: int, label: str) -> tuple[float, float]:
    """95 % bootstrap interval (low, high) of the mean of values [n], one an image (Efron & Tibshirani 1993, ch. 13)."""
    generator = numpy_generator(seed, f"interval {label}")
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _ends(intervals: dict[str, tuple[float, float]]) -> dict[str, float]:
    return {f"{key}_{end}": pair[i] for key, pair in intervals.items() for i, end in enumerate(("low", "high"))}


def in_order(numbers: dict[str, float]) -> dict[str, float]:
    """The same numbers, those of one name together: NAME, _low, _high, _real, and what else there is of it."""
    ends = ("", "_low", "_high", "_draws_mean", "_draws_deviation", "_real", "_floor", "_over_floor", "_std")
    stems = [key for key in numbers if not key.endswith(ends[1:])]
    ordered = [stem + end for stem in stems for end in ends if stem + end in numbers]
    return {key: numbers[key] for key in [*ordered, *(key for key in numbers if key not in ordered)]}
