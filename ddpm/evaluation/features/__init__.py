"""The feature networks by name: one module each, which registers a function that opens the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ddpm.utils.errors import DdpmError
from ddpm.utils.registry import Registry


@dataclass(frozen=True)
class Features:
    """Of n images. values: float32 [n, d]. probabilities: float32 [n, c] of the classes, None where there are none."""

    values: np.ndarray
    probabilities: np.ndarray | None = None


class FeatureExtractor(Protocol):
    """A fixed network and all that a number measured with it depends on.

    name: in the metrics' keys (``kd_NAME``). frechet_key: the key of the Fréchet distance. weights_sha256: of its
    weights. dimensions: features of an image. preprocessing: what happens to an image first, in words.
    """

    name: str
    frechet_key: str
    weights_sha256: str
    dimensions: int
    preprocessing: str

    def features(self, images: np.ndarray, label: str) -> Features:
        """Features of uint8 images [n, c, h, w], c = 1 or 3; ``label`` names the progress bar."""
        ...


class UnavailableExtractor(Exception):
    """This network is not measured with here, and that is no error; the text says why."""


# An entry is called with ``device`` and with the settings that its parameters name (`fid` in params.yaml); it returns a
# FeatureExtractor, or raises UnavailableExtractor, or DdpmError where the network was required.
EXTRACTORS: Registry[Any] = Registry("feature extractor", __name__)


def open_extractors(
    names: Sequence[str], settings: object, device: torch.device
) -> tuple[list[FeatureExtractor], dict[str, str]]:
    """The feature networks of these names, and of those that cannot be had, why. Raises DdpmError for a required one.

    settings: an object with the attributes that the networks' functions name as parameters (`fid` in params.yaml).
    """
    networks: list[FeatureExtractor] = []
    skipped = {}
    for name in names:
        try:
            networks.append(EXTRACTORS.build(name, settings, device=device))
        except UnavailableExtractor as reason:
            skipped[name] = str(reason)
    if not networks:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise DdpmError(f"none of fid.extractors can be used here ({reasons}): add mnist to it.")
    return networks, skipped
