"""The tables beside the images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ddpm.utils.errors import DamagedFile, MissingFile


def read_labels(path: Path, count: int) -> np.ndarray | None:
    """The column ``digit`` of a table with one row for each of ``count`` images: int64 [n]; None where it has no rows.

    Raises MissingFile, or DamagedFile for what is no such table.
    """
    try:
        labels = pd.read_csv(path, dtype={"digit": np.int64})["digit"].to_numpy()
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is missing") from error
    except (KeyError, ValueError) as error:
        raise DamagedFile(f"{path} is no table of digits ({' '.join(str(error).split())})") from error
    if len(labels) not in (0, count):
        raise DamagedFile(f"{path} has {len(labels)} rows for {count} images")
    return labels if len(labels) else None


def scatter(first: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean and deviation over several sets of images of one model, of the numbers that all of them have.

    Returns NAME_draws_mean and NAME_draws_deviation (of a single set: n − 1 below the root), nothing for no others.
    """
    found: dict[str, float] = {}
    for name in first if others else ():
        if all(name in other for other in others):
            values = np.array([first[name], *(other[name] for other in others)])
            found |= {f"{name}_draws_mean": float(values.mean()), f"{name}_draws_deviation": float(values.std(ddof=1))}
    return found


def number_table(numbers: Mapping[str, float]) -> str:
    """Flat metrics as text, one row a number: its value, 95 % interval, and what real digits score."""
    ends = ("_low", "_high", "_real", "_floor")
    rows: list[tuple[str, ...]] = [("", "value", "95 % interval", "real", "floor")]
    for key, value in numbers.items():
        if not key.endswith(ends):
            low, high, real, floor = (numbers.get(key + end) for end in ends)
            interval = "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
            shown = str(value) if isinstance(value, int) else f"{value:.4g}"
            rows.append((key, shown, interval, *("" if x is None else f"{x:.4g}" for x in (real, floor))))
    return aligned(rows)


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells as text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
