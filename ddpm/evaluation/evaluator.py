"""The feature networks together with the real digits by them: what any set of images is measured by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from ddpm.evaluation.classes import ByClass
from ddpm.evaluation.features.classifier import Classifier, classify
from ddpm.evaluation.features.inception import inception_features, load_inception
from ddpm.evaluation.measure import measure_features, measure_mnist, to_mnist
from ddpm.evaluation.protocol import inception_protocol, mnist_protocol, versions
from ddpm.evaluation.reference import InceptionReference, MnistReference, make_inception_reference
from ddpm.utils.files import sha256


@dataclass(frozen=True)
class Measurement:
    """numbers: flat metrics. protocol: what stands behind them. by_class: some of them digit by digit.

    digits: uint8 [n, 28, 28], the images as the classifier took them; features: float32 [n, 128], its own.
    """

    numbers: dict[str, float]
    protocol: dict[str, Any]
    by_class: ByClass
    digits: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class Inception:
    """pytorch-fid's network with the real digits by it."""

    network: nn.Module
    known: InceptionReference

    @classmethod
    def load(
        cls,
        weights: Path,
        dimensions: int,
        stored: Path | None,
        real: tuple[np.ndarray, np.ndarray],
        seed: int,
        device: torch.device,
    ) -> Self:
        """The network of ``weights``, on ``device``, and its reference, read from ``stored`` or made anew.

        It is made where ``stored`` is None, not there, or of other weights. real: training and test images, uint8
        [n, 28, 28]. Raises DdpmError for weights that do not fit, DamagedFile.
        """
        known = InceptionReference.load(stored) if stored and stored.exists() else None
        if known is None or known.weights_sha256 != sha256(weights) or len(known.mean) != dimensions:
            known = make_inception_reference(weights, dimensions, *real, seed, device)
        return cls(load_inception(weights, dimensions, device), known)


@dataclass(frozen=True)
class Yardstick:
    """classifier and known: the shipped classifier and the real digits by it. inception: or why it is left out."""

    classifier: Classifier
    known: MnistReference
    inception: Inception | str

    def measure(
        self, images: np.ndarray, asked: np.ndarray | None, bootstrap: int, seed: int, label: str, alone: bool = False
    ) -> Measurement:
        """All numbers of uint8 images [n, h, w, 3].

        asked: int64 [n], the digit each was to show, or None. bootstrap: resamples of the intervals, 0 for none. alone:
        leaves out what real digits score. ``label`` names the progress bars. Raises DdpmError for too few images.
        """
        digits = to_mnist(images)
        features, probabilities = classify(self.classifier, digits, label)
        found = measure_mnist(features, probabilities, asked, self.known, bootstrap, seed, alone)
        count = len(images)
        numbers = {"images": count, "reference_images": len(self.known.train), **found.numbers}
        protocol: dict[str, Any] = {
            "mnist": mnist_protocol(images.shape[1:3], count, len(self.known.train)),
            "inception": self.inception,
            "versions": versions(),
        }
        if isinstance(self.inception, Inception):
            known = self.inception.known
            by_inception = inception_features(self.inception.network, images, label)
            names = ("fid_inception", "inception")
            numbers |= measure_features(names, by_inception, known.real, bootstrap, seed, alone)
            protocol["inception"] = inception_protocol(
                len(known.mean), str(known.weights_sha256), count, int(known.count)
            )
        return Measurement(numbers, protocol, found.by_class, digits, features)
