"""The feature networks by name: one module each, which registers a function that opens the network."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

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
