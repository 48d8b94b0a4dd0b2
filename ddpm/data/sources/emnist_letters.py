"""EMNIST Letters: 124,800 + 20,800 handwritten letters, 28 × 28 pixels, grey, 26 classes without regard to case.

Cohen et al. 2017. In the published files an image lies on its side, and the labels count from 1.
"""

from pathlib import Path
from typing import Any

from ddpm.data.sources import SOURCES
from ddpm.data.torchvision_source import Read, TorchvisionSource, digits


def _read(loader: Any, root: Path, part: str) -> Read:  # noqa: ANN401
    images, labels, names = digits(loader, root, part, split="letters")
    return images.swapaxes(2, 3), labels - 1, names[1:]


SOURCES.register("emnist_letters")(
    TorchvisionSource("emnist_letters", "EMNIST", lambda loader: {"gzip.zip": loader.md5}, "EMNIST/raw", _read)
)
