"""Images in, numbers out: the feature networks together with the real images by them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ddpm.data.image_set import ImageSet
from ddpm.data.load import GivenLabels
from ddpm.evaluation.classes import AMBIGUOUS, CONFIDENT
from ddpm.evaluation.features import FeatureExtractor, open_extractors
from ddpm.evaluation.features.classifier import ClassifierExtractor
from ddpm.evaluation.frechet import curves
from ddpm.evaluation.kernel import SUBSETS, subset_size
from ddpm.evaluation.measure import RealImages, alike, in_order, measure_classes, measure_features, measure_patches
from ddpm.evaluation.neighbours import (
    COVERAGE_NEIGHBOURS,
    PRECISION_NEIGHBOURS,
    memorized_fraction,
    nearest,
    nearest_auc,
)
from ddpm.evaluation.patches import DIRECTIONS, IMAGES, PATCH, PATCHES
from ddpm.evaluation.reference import Reference, find_reference, pixels
from ddpm.utils.files import arrays_sha256
from ddpm.utils.seeds import numpy_generator


@dataclass(frozen=True)
class Measurement:
    """numbers: flat metrics. protocol: how they were measured. classes: some of them class by class.

    features: by name of the network, float32 [n, d].
    """

    numbers: dict[str, float]
    protocol: dict[str, Any]
    classes: pd.DataFrame
    features: dict[str, np.ndarray]


@dataclass(frozen=True)
class Evaluator:
    """networks: each with the real images by it. skipped: of those left out, why. seed: of the random choices.

    real: the training and the test images, where images are compared with them patch by patch, without a network.
    device: of the networks. beside: what so many images have been compared with, by each network.

    Class probabilities are those of the first network that gives some; distances between single images' features are
    measured with the first one that has the features of all training images.
    """

    networks: Sequence[tuple[FeatureExtractor, Reference]]
    skipped: dict[str, str]
    seed: int
    real: tuple[ImageSet, ImageSet] | None = None
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    beside: dict[tuple[str, int], RealImages] = field(default_factory=dict, init=False, repr=False)

    def measure(
        self,
        images: np.ndarray,
        labels: GivenLabels,
        bootstrap: int,
        name: str,
        alone: bool = False,
    ) -> Measurement:
        """All metrics of uint8 images [n, c, h, w], conditioned on ``labels``.

        bootstrap and alone: see `measure_features`. ``name`` is that of the progress bars. Raises DdpmError for too few
        images.
        """
        count = self.networks[0][1].count if self.networks else len(self.real[0]) if self.real else 0
        numbers: dict[str, float] = {"images": len(images), "reference_images": count}
        protocol: dict[str, Any] = {"labels": str(labels)}
        features: dict[str, np.ndarray] = {}
        classes = pd.DataFrame(columns=["label", "set", "fraction"])
        for network, real in self.networks:
            found = network.features(images, name)
            stream = partial(numpy_generator, self.seed, "evaluation", network.name)
            beside = self.beside.get(key := (network.name, len(images)))
            if beside is None:
                beside = self.beside[key] = RealImages.for_images(len(images), real, network.name, stream)
            keys = (network.name, network.frechet_key)
            numbers |= measure_features(*keys, found.values, beside, bootstrap, stream, alone, labels)
            if found.probabilities is not None and classes.empty:
                of_classes, classes = measure_classes(
                    network.frechet_key, found.values, found.probabilities, labels, real, bootstrap, stream, alone
                )
                numbers |= of_classes
            features[network.name] = found.values
            protocol[network.name] = _protocol(network, images.shape, real)
        if self.real:
            stream = partial(numpy_generator, self.seed, "evaluation", "swd")
            numbers |= measure_patches(images, *self.real, bootstrap, stream, alone)
            protocol["swd"] = _patch_protocol(images.shape, self.real[0])
        protocol |= {name: f"skipped: {reason}" for name, reason in self.skipped.items()}
        protocol["versions"] = {name: version(name) for name in ("torch", "numpy", "pillow", "pytorch-fid")}
        if self.device.type != "cpu":
            protocol["device"] = _device_protocol(self.device)
        return Measurement(numbers, protocol, classes, features)

    def memorization(
        self, images: np.ndarray, features: dict[str, np.ndarray], train: ImageSet, test_nearest_pixel: np.ndarray
    ) -> tuple[dict[str, float], pd.DataFrame]:
        """Whether uint8 images [n, c, h, w] lie closer to the training images than held-out images do.

        By pixels and, where all training images have some, by features (`Measurement`). test_nearest_pixel: see
        `ddpm.evaluation.reference.nearest_pixels`. Real: one half of the held-out images beside the other.

        Returns flat metrics and one row an image: its number from 1 as in the PNGs, and pixel_index (from 0) and
        pixel_distance of its nearest training image, likewise by feature.
        """
        spaces: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]]
        spaces = {"pixel": (alike(images, train.spec), train.images, test_nearest_pixel, pixels)}
        for network, real in self.networks:
            if real.complete:
                spaces["feature"] = (features[network.name], real.train, real.test_nearest, lambda part: part)
                break
        numbers: dict[str, float] = {}
        table: dict[str, np.ndarray] = {"image": np.arange(1, len(images) + 1)}
        for name, (queries, points, held_out, convert) in spaces.items():
            index, distance = nearest(queries, points, f"training images, {name}s", convert)
            table |= {f"{name}_index": index, f"{name}_distance": distance}
            for suffix, measured, beside in (("", distance, held_out), ("_real", held_out[1::2], held_out[::2])):
                numbers |= {
                    f"nearest_{name}{suffix}": float(measured.mean()),
                    f"nearest_auc_{name}{suffix}": nearest_auc(measured, beside),
                    f"memorized_fraction_{name}{suffix}": memorized_fraction(measured, beside),
                }
        return in_order(numbers), pd.DataFrame(table)


def _protocol(extractor: FeatureExtractor, shape: Sequence[int], reference: Reference) -> dict[str, object]:
    """How the numbers of one network came about, for images of this shape (n, c, h, w)."""
    count, _, height, width = shape
    compared = min(count, len(reference.train))
    orders, points = curves(extractor.dimensions)
    found: dict[str, object] = {
        "features": extractor.dimensions,
        "weights_sha256": extractor.weights_sha256,
        "preprocessing": f"{width} × {height} pixels; {extractor.preprocessing}",
        "images": count,
        "reference_images": reference.count,
        "kernel": f"cubic, {SUBSETS} pairs of subsets of {subset_size(count, compared)}",
        "precision, recall": f"k = {PRECISION_NEIGHBOURS}, against {compared} random training images",
        "density, coverage": f"k = {COVERAGE_NEIGHBOURS}, against {compared} random training images",
        "intervals": "bootstrap within each label, by n − 1 of its n images",
        "infinity": f"{points} sizes from a fifth up, {orders} random orders, labels as even as in all",
    }
    if reference.test_probabilities.shape[1]:
        found["confident"] = f"one class at {CONFIDENT} or more; ambiguous: none at {AMBIGUOUS}"
    return found | getattr(extractor, "remarks", {})


def _device_protocol(device: torch.device) -> str:
    """What decides how a device that is no CPU rounds: a remark, as runs of two devices may well be compared."""
    if device.type != "cuda":
        return device.type
    tf32 = torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32
    name, cudnn = torch.cuda.get_device_name(device), torch.backends.cudnn.version()
    return f"{name}, cuDNN {cudnn}, TF32 {'on' if tf32 else 'off'}"


def _patch_protocol(shape: Sequence[int], train: ImageSet) -> dict[str, object]:
    """The same of the patches."""
    count, _, height, width = shape
    spec = train.spec
    colours = "in grey" if spec.channels == 1 else "in RGB"
    return {
        "patches": f"{PATCHES} of {PATCH} × {PATCH} pixels an image and level, every channel normalized",
        "projections": DIRECTIONS,
        "preprocessing": f"{width} × {height} pixels; 8 bit; compared {colours}, {spec.size} × {spec.size}",
        "images": min(IMAGES, count, len(train) // 2),
        "reference_images": len(train),
        "reference_sha256": arrays_sha256(train.images),
    }


def open_evaluator(
    settings: Any,  # noqa: ANN401
    train: ImageSet,
    test: ImageSet,
    seed: int,
    device: torch.device,
    features: Path,
    classifier: Path,
    processes: int = 1,
) -> Evaluator:
    """What a data set is measured by, as the settings say (`fid` in params.yaml).

    features: folder with the real images' features, measured where they are not there. classifier, processes: see
    `open_extractors`. With ``settings.swd`` "auto", images are compared by patches where no classifier measures.
    Raises DdpmError.
    """
    networks, skipped = open_extractors(settings, train, device, classifier, processes)
    known = [(x, find_reference(features / f"{x.name}.npz", x, train, test, seed)) for x in networks]
    classified = any(isinstance(network, ClassifierExtractor) for network in networks)
    by_patches = settings.swd == "on" or (settings.swd == "auto" and not classified)
    return Evaluator(known, skipped, seed, (train, test) if by_patches else None, device)
