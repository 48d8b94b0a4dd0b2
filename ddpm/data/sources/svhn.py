"""SVHN: 73,257 + 26,032 digits cut out of photographs of house numbers, 32 × 32 pixels, RGB. Netzer et al. 2011."""

from pathlib import Path
from typing import Any

from ddpm.data.sources import SOURCES
from ddpm.data.torchvision_source import Read, TorchvisionSource


def _archives(loader: Any) -> dict[str, str]:  # noqa: ANN401
    return {file: md5 for _, file, md5 in (loader.split_list[part] for part in ("train", "test"))}


def _read(loader: Any, root: Path, part: str) -> Read:  # noqa: ANN401
    found = loader(root, split=part, download=True)
    return found.data, found.labels, "0123456789"


SVHN = SOURCES.register("svhn")(TorchvisionSource("svhn", "SVHN", _archives, "", _read))
