"""The metrics of a set of images, as functions of feature arrays, each beside what real images score.

A ``stream`` gives the random generator of a purpose: stream("bootstrap"), stream("interval", "recall").
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from tqdm import tqdm

from ddpm.data.image_set import ImageSet, ImageSpec
from ddpm.data.load import GivenLabels
from ddpm.evaluation.classes import ambiguous, class_distances, class_fractions, class_kl, classifier_score, confident
from ddpm.evaluation.even import StratifiedBootstrap, even_order
from ddpm.evaluation.frechet import (
    bootstrap_deviations,
    costly,
    distance_influences,
    fit_gaussian,
    frechet_distance,
    frechet_infinity,
)
from ddpm.evaluation.kernel import kernel_distances, kernel_interval, subset_size
from ddpm.evaluation.neighbours import Points, manifold
from ddpm.evaluation.patches import IMAGES, REPEATS, compare_patches, level_sizes
from ddpm.evaluation.reference import Reference
from ddpm.utils.errors import DdpmError, first_of
from ddpm.utils.images import resize, to_grey, to_rgb

Stream = Callable[..., np.random.Generator]
_ENDS = ("", "_low", "_high", "_replicates_mean", "_replicates_std", "_real", "_floor", "_over_floor", "_subset_std")


def refuse_constant(images: np.ndarray, name: Callable[[int], str]) -> None:
    """Raise DdpmError where all of images [n, c, h, w] have one value everywhere: a training or sampling that failed.

    Some may be as they should be, as data may have blank images: they are counted in a line that names the first.
    """
    flat = images.reshape(len(images), -1)
    empty = np.flatnonzero((flat == flat[:, :1]).all(1))
    if len(empty) == len(images):
        raise DdpmError(f"all {len(images)} images are blank: train again, or look at what made them.")
    if len(empty):
        some = first_of([name(int(i)) for i in empty], 3)
        tqdm.write(f"{len(empty)} of {len(images)} images are blank ({some}): right only if the data has such images")


@dataclass(frozen=True, eq=False)
class RealImages:
    """What so many generated images are compared with: as many random ones of the training and of the test set.

    train [m, d], test [k, d]: features. Sets of as many images share it, as they have these neighbours in common.
    """

    reference: Reference
    train: Points
    test: Points

    @classmethod
    def for_images(cls, count: int, reference: Reference, name: str, stream: Stream) -> Self:
        """Beside ``count`` images, by the network of this name."""
        pick = stream("pick")
        train, test = (part[pick.permutation(len(part))[:count]] for part in (reference.train, reference.test))
        return cls(reference, Points(train, f"{name}, training images"), Points(test, f"{name}, real"))


def measure_features(
    name: str,
    frechet_key: str,
    features: np.ndarray,
    beside: RealImages,
    bootstrap: int,
    stream: Stream,
    alone: bool,
    labels: GivenLabels,
) -> dict[str, float]:
    """Fréchet and kernel distance, precision, recall, density and coverage of features [n, d], with intervals.

    name: of the feature network. bootstrap: resamples of the intervals, 0 for none. alone: leaves out what real images
    score. Parts of the images and resamples have ``labels`` as evenly as all, see `ddpm.evaluation.even`; the images of
    the floor have the same class labels, of a model of clusters alone as frequent ones. There are no numbers of fewer
    than n real images where these depend on how many they are (Fréchet distance, recall, coverage), and no floor where
    `Reference` has none. Of `costly` features FD∞ has, alone, no value.
    Raises DdpmError for too few images.
    """
    infinity_key, kernel_key = f"{frechet_key}_infinity", f"kd_{name}"
    of_images = f"precision_{name}", f"density_{name}"  # the other means are over real images
    reference, sample = beside.reference, beside.train.features
    real, few_distances = reference.gaussian, costly(features.shape[1])
    given, classes, known = labels.conditioning, labels.classes, reference.train_labels
    numbers: dict[str, float] = {}
    for points, suffix in ((Points(features, f"{name}, generated"), ""), (beside.test, "_real"))[: 1 if alone else 2]:
        values, what = points.features, points.label
        infinity = None
        if not (few_distances and alone):
            own = None if suffix else given
            infinity = frechet_infinity(values, real, stream("orders", suffix), what, own)
        as_many = len(values) == len(features)
        if as_many:  # first, as it refuses too few images in words
            numbers[frechet_key + suffix] = frechet_distance(real, fit_gaussian(values, f"the {what} set"))
        found = manifold(beside.train, points)
        comparable = found if as_many else {key: found[key] for key in ("precision", "density")}
        means = {f"{key}_{name}": value.astype(np.float64) for key, value in comparable.items()}
        if infinity is not None:
            numbers[infinity_key + suffix] = infinity
        if not suffix or subset_size(len(values), len(sample)) > 1:
            kernel = kernel_distances(values, sample, stream("subsets", suffix), what)
            numbers[kernel_key + suffix] = float(kernel.mean())
        numbers |= {key + suffix: float(value.mean()) for key, value in means.items()}
        if suffix or alone:
            continue
        if classes is None and given is not None:
            classes = known[even_order(known, len(known), stream("floor"))[: len(features)]]
        if not np.isnan(floor := reference.frechet_floor(len(features), classes)):
            numbers[f"{frechet_key}_floor"] = floor
            if floor:
                numbers[f"{frechet_key}_over_floor"] = numbers[frechet_key] / floor
        numbers[f"{kernel_key}_subset_std"] = float(kernel.std(ddof=1))
        if bootstrap:
            ends = {kernel_key: kernel_interval(kernel, len(values), len(sample))}
            if few_distances:
                moves = mean_interval(distance_influences(values, real), bootstrap, stream("bootstrap"), given)
            else:
                moves = bootstrap_deviations(values, real, bootstrap, stream("bootstrap"), what, given)
            ends[frechet_key] = _moved(numbers[frechet_key], moves)
            if infinity is not None:
                ends[infinity_key] = infinity + moves[0], infinity + moves[1]
            for key, value in means.items():
                own = given if key in of_images else None
                ends[key] = mean_interval(value, bootstrap, stream("interval", key), own)
            numbers |= _named(ends)
    return in_order(numbers)


def measure_classes(
    frechet_key: str,
    features: np.ndarray,
    probabilities: np.ndarray,
    labels: GivenLabels,
    reference: Reference,
    bootstrap: int,
    stream: Stream,
    alone: bool,
) -> tuple[dict[str, float], pd.DataFrame]:
    """What class probabilities say of images: (flat metrics, a table with one row a class and set).

    features: float32 [n, d]; probabilities: float32 [n, c]; labels, bootstrap and alone: see `measure_features`; alone
    leaves out the least and the greatest fraction too, which are not averaged over sets. Columns of the table: label,
    set ("generated", "real"), fraction and ``frechet_key`` (NaN: too few images).
    """
    classes = probabilities.shape[1]
    # A class that training images lack counts as half an image: the divergence stays finite.
    counts = np.bincount(reference.train_labels, minlength=classes)
    train_fractions = np.maximum(counts, 0.5) / len(reference.train_labels)
    numbers: dict[str, float] = {}
    fractions, distances = {}, {}
    sets = {"generated": (features, probabilities, labels.classes)}
    if not alone:
        chosen = np.sort(stream("pick").permutation(len(reference.test))[: len(features)])
        test = (reference.test, reference.test_probabilities, reference.test_labels)
        sets["real"] = (test[0][chosen], test[1][chosen], test[2][chosen])
    for name, (values, given, truth) in sets.items():
        suffix = "_real" if name == "real" else ""
        as_many = len(values) == len(features)
        fractions[name] = class_fractions(given)
        distances[name] = (
            class_distances(values, given.argmax(1), reference.train, reference.train_labels, classes)
            if as_many
            else np.full(classes, np.nan)
        )
        numbers |= {
            f"confident_fraction{suffix}": float(confident(given).mean()),
            f"ambiguous_fraction{suffix}": float(ambiguous(given).mean()),
            f"mean_confidence{suffix}": float(given.max(1).mean()),
            f"classifier_score{suffix}": classifier_score(given) if as_many else float("nan"),
            f"class_kl{suffix}": class_kl(fractions[name], train_fractions) if as_many else float("nan"),
            f"{frechet_key}_per_class{suffix}": float(distances[name].mean()),
        }
        if labels.classes is not None and truth is not None:
            numbers[f"label_accuracy{suffix}"] = float((given.argmax(1) == truth).mean())
    if bootstrap:
        means = {"confident_fraction": confident(probabilities), "ambiguous_fraction": ambiguous(probabilities)}
        if labels.classes is not None:
            means["label_accuracy"] = probabilities.argmax(1) == labels.classes
        own = labels.conditioning
        numbers |= _named({key: mean_interval(x, bootstrap, stream("interval", key), own) for key, x in means.items()})
    if not alone:
        numbers["min_class_fraction"] = float(fractions["generated"].min())
        numbers["max_class_fraction"] = float(fractions["generated"].max())
    known = {key: value for key, value in numbers.items() if not np.isnan(value)}
    rows = [(label, name, fractions[name][label], distances[name][label]) for label in range(classes) for name in sets]
    return in_order(known), pd.DataFrame(rows, columns=["label", "set", "fraction", frechet_key])


def measure_patches(
    images: np.ndarray, train: ImageSet, test: ImageSet, bootstrap: int, stream: Stream, alone: bool
) -> dict[str, float]:
    """The sliced Wasserstein distance of the images' patches from those of as many random training images, × 10³.

    images: uint8 [n, c, h, w], compared at the size and in the channels of the data set. Of each level and, as ``swd``,
    their mean; at most `IMAGES` of the images, and as many as half of the training images. The floor is the mean
    distance of `REPEATS` random sets of the other training images from the same ones, each by its part of the
    directions. Fewer test images than that are left out: they would score more. bootstrap, alone: see
    `measure_features`.
    """
    count = min(IMAGES, len(images), len(train) // 2)
    known, others = np.split(stream("pick").permutation(len(train)), [count])
    real = train.images[known]
    keys = [*(f"swd_{size}" for size in level_sizes(train.spec.size)), "swd"]

    def named(distances: Sequence[float], suffix: str = "") -> dict[str, float]:
        values = [*distances, float(np.mean(distances))]
        return {key + suffix: 1e3 * value for key, value in zip(keys, values, strict=True)}

    def some(part: np.ndarray) -> np.ndarray:
        return part[stream("pick").permutation(len(part))[:count]]

    distances, moved = compare_patches(
        alike(some(images), train.spec), real, stream, bool(bootstrap), label="generated"
    )
    numbers = named(distances)
    if bootstrap:
        for key, influence in zip(keys, [*moved, np.mean(moved, 0)], strict=True):
            moves = mean_interval(1e3 * influence, bootstrap, stream("interval", key))
            numbers |= _named({key: _moved(numbers[key], moves)})
    if alone:
        return numbers
    if len(test) >= count:
        numbers |= named(compare_patches(some(test.images), real, stream, label="real")[0], "_real")
    floors = []
    for repeat in range(REPEATS):
        further = train.images[stream("floor", repeat).permutation(others)[:count]]
        floors.append(compare_patches(further, real, stream, repeat=repeat, label="floor")[0])
    numbers |= named(np.mean(floors, 0).tolist(), "_floor")
    over = {f"{key}_over_floor": numbers[key] / floor for key in keys if (floor := numbers[f"{key}_floor"])}
    return in_order(numbers | over)


def alike(images: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Images [n, c, h, w] with the size and the channels of a data set: see `to_grey`, `to_rgb` and `resize`."""
    return resize(to_grey(images) if spec.channels == 1 else to_rgb(images), spec.size)


def mean_interval(
    values: np.ndarray, resamples: int, generator: np.random.Generator, labels: np.ndarray | None = None
) -> tuple[float, float]:
    """95 % bootstrap interval (low, high) of the mean of values [n], one an image (Efron & Tibshirani 1993, ch. 13).

    labels: int64 [n], those of the images, see `StratifiedBootstrap`.
    """
    bootstrapped = StratifiedBootstrap(labels, len(values))
    means = [bootstrapped.weights(generator) @ values / len(values) for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _moved(distance: float, moves: tuple[float, float]) -> tuple[float, float]:
    """The interval of a distance that moves by so much: never below 0."""
    return max(0.0, distance + moves[0]), distance + moves[1]


def over_replicates(first: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean and standard deviation over several sets of images of one model, of the numbers that all of them have.

    Counts, which are whole numbers, are no measure of a set.

    Returns NAME_replicates_mean and NAME_replicates_std (n − 1 below the root); nothing for no others.
    """
    found: dict[str, float] = {}
    for name in first if others else ():
        if isinstance(first[name], float) and all(name in other for other in others):
            values = np.array([first[name], *(other[name] for other in others)])
            found |= {f"{name}_replicates_mean": float(values.mean())}
            found |= {f"{name}_replicates_std": float(values.std(ddof=1))}
    return found


def _named(intervals: dict[str, tuple[float, float]]) -> dict[str, float]:
    return {f"{key}_{end}": pair[i] for key, pair in intervals.items() for i, end in enumerate(("low", "high"))}


def in_order(numbers: dict[str, float]) -> dict[str, float]:
    """The same numbers, those of one name together: NAME, _low, _high, _real, and what else there is of it."""
    stems = [key for key in numbers if not key.endswith(_ENDS[1:])]
    ordered = [stem + end for stem in stems for end in _ENDS if stem + end in numbers]
    return {key: numbers[key] for key in [*ordered, *(key for key in numbers if key not in ordered)]}
