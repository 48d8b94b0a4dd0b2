"""What stands beside every number: with what, on what and by which versions it was measured."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ddpm.evaluation.inception import inception_features, load_inception
from ddpm.evaluation.reference import InceptionReference, make_inception_reference
from ddpm.files import sha256


def embed_real_inception(
    weights: Path, train: np.ndarray, test: np.ndarray, seed: int, device: torch.device
) -> tuple[InceptionReference, nn.Module]:
    """Measure the real images, uint8 [n, 28, 28], by the weights in this file; returns the network too."""
    network = load_inception(weights, device)
    features = [inception_features(network, images, label) for images, label in ((train, "train"), (test, "test"))]
    return make_inception_reference(features[0], features[1], sha256(weights), seed), network


def versions() -> dict[str, str]:
    """The releases of the libraries that a number depends on."""
    return {name: version(name) for name in ("torch", "numpy", "pillow", "pytorch-fid")}
