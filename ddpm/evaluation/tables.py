"""The tables beside the images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ddpm.utils.errors import DamagedFile, MissingFile


def read_labels(path: Path, count: int) -> np.ndarray | None:
    """The column ``label`` of a table with one row for each of ``count`` images: int64 [n]; None where it has no rows.

    Raises MissingFile, or DamagedFile for another kind of file.
    """
    try:
        labels = pd.read_csv(path, dtype={"label": np.int64})["label"].to_numpy()
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is missing") from error
    except (KeyError, ValueError) as error:
        raise DamagedFile(f"{path} is not a table with a column `label` ({' '.join(str(error).split())})") from error
    if len(labels) not in (0, count):
        raise DamagedFile(f"{path} has {len(labels)} rows for {count} images")
    return labels if len(labels) else None


def over_replicates(first: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean and standard deviation over several sets of images of one model, of the numbers that all of them have.

    Returns NAME_replicates_mean and NAME_replicates_std (n − 1 below the root); nothing for no others.
    """
    found: dict[str, float] = {}
    for name in first if others else ():
        if all(name in other for other in others):
            values = np.array([first[name], *(other[name] for other in others)])
            found |= {f"{name}_replicates_mean": float(values.mean())}
            found |= {f"{name}_replicates_std": float(values.std(ddof=1))}
    return found


def number_table(numbers: Mapping[str, float]) -> str:
    """Flat metrics as text, one row a number: its value, 95 % interval, and what real images score."""
    ends = ("_low", "_high", "_real", "_floor")
    rows = {
        key: [f"{numbers[key + end]:.6g}" if key + end in numbers else "" for end in ("", *ends)]
        for key in numbers
        if not key.endswith(ends)
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", *(end[1:] for end in ends)]).to_string()
