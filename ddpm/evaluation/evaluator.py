"""Images in, numbers out: the feature networks together with the real images by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from ddpm.data.image_set import ImageSet
from ddpm.evaluation.features import FeatureExtractor
from ddpm.evaluation.measure import alike, measure_classes, measure_features, measure_memorization
from ddpm.evaluation.protocol import extractor_protocol, versions
from ddpm.evaluation.reference import Reference, pixels
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

    Class probabilities are those of the first network that gives some; distances between single images' features are
    measured with the first one that has the features of all training images.
    """

    networks: Sequence[tuple[FeatureExtractor, Reference]]
    skipped: dict[str, str]
    seed: int

    def measure(
        self, images: np.ndarray, labels: np.ndarray | None, bootstrap: int, label: str, alone: bool = False
    ) -> Measurement:
        """All metrics of uint8 images [n, c, h, w].

        labels: int64 [n], the class label each was conditioned on, or None. bootstrap: resamples of the intervals, 0
        for none. alone: leaves out what real images score. ``label`` names the progress bars. Raises DdpmError for too
        few images.
        """
        numbers: dict[str, float] = {"images": len(images), "reference_images": self.networks[0][1].count}
        protocol: dict[str, Any] = {}
        features: dict[str, np.ndarray] = {}
        classes = pd.DataFrame()
        for network, real in self.networks:
            found = network.features(images, label)
            stream = partial(numpy_generator, self.seed, "evaluation", network.name)
            keys = (network.name, network.frechet_key)
            numbers |= measure_features(*keys, found.values, real, bootstrap, stream, alone)
            if found.probabilities is not None and classes.empty:
                of_classes, classes = measure_classes(
                    network.frechet_key, found.values, found.probabilities, labels, real, bootstrap, stream, alone
                )
                numbers |= of_classes
            features[network.name] = found.values
            protocol[network.name] = extractor_protocol(network, images.shape, real)
        skipped = {name: f"skipped: {reason}" for name, reason in self.skipped.items()}
        return Measurement(numbers, protocol | skipped | {"versions": versions()}, classes, features)

    def memorization(
        self, images: np.ndarray, features: dict[str, np.ndarray], train: ImageSet, test_nearest_pixel: np.ndarray
    ) -> tuple[dict[str, float], pd.DataFrame]:
        """`measure_memorization` of uint8 images [n, c, h, w], by pixels and by their features (`Measurement`).

        test_nearest_pixel: see `ddpm.evaluation.reference.nearest_pixels`.
        """
        spaces = {"pixel": (pixels(alike(images, train.spec)), pixels(train.images), test_nearest_pixel)}
        for network, real in self.networks:
            if real.complete:
                spaces["feature"] = (features[network.name], real.train, real.test_nearest)
                break
        return measure_memorization(spaces)
