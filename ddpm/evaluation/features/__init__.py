"""The feature networks by name."""

from typing import Any

from ddpm.utils.registry import Registry

EXTRACTORS: Registry[Any] = Registry("feature extractor", __name__)
