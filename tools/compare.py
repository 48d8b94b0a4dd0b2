"""Is run B better than run A? `python -m tools.compare A B` says it number by number.

A and B are Git revisions (a commit, a branch, an experiment's name) or folders that hold the files of metrics/. A
difference counts where its 95 % interval does not hold 0. That interval is about the images drawn: another training of
the same settings differs by more.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ddpm.evaluation.tables import aligned
from ddpm.utils.errors import DdpmError, MissingFile, one_sentence
from ddpm.utils.files import read_json
from tools import committed

LOWER_IS_BETTER = ("fd_", "fid_", "kd_")


def read_run(name: str) -> dict[str, Any]:
    """metrics/fid.json of a run. Raises DdpmError for what is neither a revision nor a folder with it."""
    if Path(name).is_dir():
        return read_json(Path(name) / "fid.json")
    text = committed(name, "metrics/fid.json")
    if text is None:
        raise MissingFile(f"{name} is neither a folder nor a Git revision with metrics/fid.json")
    return dict(json.loads(text))


def difference_interval(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float]:
    """95 % interval (low, high) of b − a, from (value, low, high) of two independent estimates.

    Zou & Donner 2008, "Construction of confidence limits about effect measures": the distances of each value from its
    own limits are added as the sides of a right triangle.
    """
    (value_a, low_a, high_a), (value_b, low_b, high_b) = a, b
    difference = value_b - value_a
    down = ((value_b - low_b) ** 2 + (high_a - value_a) ** 2) ** 0.5
    up = ((high_b - value_b) ** 2 + (value_a - low_a) ** 2) ** 0.5
    return difference - down, difference + up


def verdict(key: str, interval: tuple[float, float]) -> str:
    """Which run is better by the number ``key``, from the interval of B − A."""
    low, high = interval
    if low <= 0 <= high:
        return "no difference that counts"
    return "B is better" if (high < 0) == key.startswith(LOWER_IS_BETTER) else "A is better"


def compare(name_a: str, name_b: str) -> list[tuple[str, ...]]:
    """One row a number that both runs have with an interval: name, A, B, B − A, its interval, the verdict.

    Raises DdpmError for runs that were not measured alike.
    """
    a, b = read_run(name_a), read_run(name_b)
    for name, run in ((name_a, a), (name_b, b)):
        if "protocol" not in run:
            raise DdpmError(f"{name} does not say how it was measured: its fid.json has no protocol.")
    for section in ("mnist", "inception", "versions"):
        of_a, of_b = (run["protocol"].get(section) for run in (a, b))
        # A network that only one run was measured by, the other saying why not, leaves nothing to compare.
        if of_a != of_b and isinstance(of_a, dict) and isinstance(of_b, dict):
            raise DdpmError(
                f"{name_a} and {name_b} were not measured alike: they differ in protocol.{section}. "
                "Measure both by the same code, with as many images."
            )
    rows: list[tuple[str, ...]] = []
    for key in a:
        if not all(f"{key}{end}" in run for run in (a, b) for end in ("", "_low", "_high")):
            continue
        estimate_a, estimate_b = ((run[key], run[f"{key}_low"], run[f"{key}_high"]) for run in (a, b))
        interval = difference_interval(estimate_a, estimate_b)
        numbers = [f"{value:.4g}" for value in (a[key], b[key], b[key] - a[key])]
        rows.append((key, *numbers, f"{interval[0]:.4g} to {interval[1]:.4g}", verdict(key, interval)))
    if not rows:
        raise DdpmError(f"{name_a} and {name_b} have no number with an interval in common: set fid.bootstrap above 0.")
    return rows


def main() -> None:
    """Run; what the user can mend ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    asked = parser.parse_args()
    with one_sentence():
        print(aligned([("", "A", "B", "B − A", "95 % interval", ""), *compare(asked.a, asked.b)]))


if __name__ == "__main__":
    main()
