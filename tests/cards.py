"""What the model cards in ddpm/pretrained claim, and how far from it a sample may lie."""

import re

from ddpm import pretrained

_ERRORS = 4  # standard errors: beyond them lie 6 of 100,000 samples


def figure(name: str, key: str) -> float:
    """What the card of the model ``name`` says of a metric."""
    card = (pretrained.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"(\d[\d.]*)<!-- {key} -->", card)
    return float(found)


def bounds(name: str, key: str, count: int, stated: int = 10_000) -> tuple[float, float]:
    """Between which a fraction of ``count`` samples lies, whose card states it for so many others."""
    p = figure(name, key)
    error = (p * (1 - p) * (1 / count + 1 / stated)) ** 0.5
    return p - _ERRORS * error, p + _ERRORS * error
