"""EMNIST Balanced: 112,800 + 18,800 handwritten digits and letters, 28 × 28 pixels, grey, 47 classes of equal size.

Cohen et al. 2017. Letters whose upper and lower case look alike are one class. In the published files an image lies on
its side.
"""

from pathlib import Path
from typing import Any

from ddpm.data.sources import SOURCES
from ddpm.data.torchvision_source import Read, TorchvisionSource, digits


def _read(loader: Any, root: Path, part: str) -> Read:  # noqa: ANN401
    images, labels, names = digits(loader, root, part, split="balanced")
    return images.swapaxes(2, 3), labels, names


SOURCES.register("emnist_balanced")(
    TorchvisionSource("emnist_balanced", "EMNIST", lambda loader: {"gzip.zip": loader.md5}, "EMNIST/raw", _read)
)
