"""Is run B better than run A? `python -m tools.compare A B` says it number by number.

A and B are Git revisions (a commit, a branch), names of experiments as `dvc exp show` prints them, or folders with the
files of metrics/. A difference counts where its 95 % interval does not contain 0. The interval is about the sampled
images: another training with the same settings differs by more. Further runs are compared with A too. --html writes
them all on one page, with their parameters, metrics and costs.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from ddpm.report.metrics import Difference, lower_is_better
from ddpm.report.page import flat
from ddpm.report.runs import Run, runs_page
from ddpm.utils.errors import DdpmError, one_sentence
from ddpm.utils.files import atomic_path, read_json
from tools import commit_of, run

ENDS = ("", "_low", "_high")


def read_run(name: str) -> dict[str, Any]:
    """metrics/fid.json of a run. Raises DdpmError for a name without one, or without the protocol of measurement."""
    if Path(name).is_dir():
        found = read_json(Path(name) / "fid.json")
    else:
        found = json.loads(run("git", "show", f"{commit_of(name)}:metrics/fid.json"))
    if "protocol" not in found:
        raise DdpmError(f"{name} does not say how it was measured: its fid.json has no protocol.")
    return found


def classifier_of(run: dict[str, Any]) -> str:
    """The data set whose classifier measured a run, "nothing" without one: its name is not in all keys."""
    sections = run["protocol"].items()
    return next((name for name, how in sections if isinstance(how, dict) and "confident" in how), "nothing")


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
    return "B is better" if (high < 0) == lower_is_better(key) else "A is better"


def compare(name_a: str, name_b: str) -> pd.DataFrame:
    """One row for each number that both runs have with an interval: A, B, B − A, its interval (low, high), the verdict.

    Raises DdpmError for runs that were not measured alike.
    """
    a, b = read_run(name_a), read_run(name_b)
    by_a, by_b = (classifier_of(run) for run in (a, b))
    if by_a != by_b:
        raise DdpmError(
            f"{name_a} was measured by the classifier of {by_a}, {name_b} by that of {by_b}: the numbers of different "
            "networks say nothing beside one another."
        )
    for section, of_a in a["protocol"].items():
        # A feature network that only one run was measured by leaves nothing to compare.
        of_b = b["protocol"].get(section)
        if of_a != of_b and isinstance(of_a, dict) and isinstance(of_b, dict):
            raise DdpmError(
                f"{name_a} and {name_b} were not measured alike: they differ in protocol.{section}. "
                "Measure both by the same code, with as many images."
            )
    given_a, given_b = (run["protocol"].get("labels", "unknown") for run in (a, b))
    if given_a != given_b:
        print(
            f"The labels that images were measured with: {given_a} in {name_a}, {given_b} in {name_b}", file=sys.stderr
        )
    rows = {}
    for key in a:
        if all(run.get(key + end) is not None for run in (a, b) for end in ENDS):
            low, high = difference_interval(*((run[key], run[f"{key}_low"], run[f"{key}_high"]) for run in (a, b)))
            rows[key] = a[key], b[key], b[key] - a[key], low, high, verdict(key, (low, high))
    if not rows:
        raise DdpmError(f"{name_a} and {name_b} have no number with an interval in common: set fid.bootstrap above 0.")
    return pd.DataFrame.from_dict(rows, orient="index", columns=["A", "B", "B − A", "low", "high", "verdict"])


def read_whole_run(name: str) -> Run:
    """All numbers of a run and, where they are kept with them, its parameters. Raises DdpmError."""
    if (folder := Path(name)).is_dir():
        files = {path.stem: read_json(path) for path in folder.glob("*.json")}
        # Those of the workspace's metrics/ lie beside the folder.
        place = (folder.parent if folder.resolve().name == "metrics" else folder) / "params.yaml"
        parameters = place.read_text(encoding="utf-8") if place.is_file() else ""
    else:
        commit = commit_of(name)
        listed = run("git", "ls-tree", "--name-only", commit, "metrics/", "params.yaml").splitlines()
        kept = (path for path in listed if path.endswith((".json", ".yaml")))
        texts = {path: run("git", "show", f"{commit}:{path}") for path in kept}
        parameters = texts.pop("params.yaml", "")
        files = {Path(path).stem: json.loads(text) for path, text in texts.items()}
    numbers = {key: value for values in files.values() for key, value in values.items() if key != "protocol"}
    settings = flat(YAML(typ="safe", pure=True).load(parameters) or {})
    return Run(name, numbers, list(files.get("headline", {})), list(files.get("cost", {})), settings)


def differences(a: Run, b: Run) -> list[Difference]:
    """Every number that both runs have with an interval, and the headline ones without. Raises DdpmError."""
    words = {"A is better": "worse", "B is better": "better"}
    rows = [
        Difference(str(key), row["A"], row["B"], row["low"], row["high"], words.get(row["verdict"], row["verdict"]))
        for key, row in compare(a.name, b.name).iterrows()
    ]
    known = {row.key + end for row in rows for end in (*ENDS, "_floor")}
    others = [key for key in b.headline if key not in known and key in a.numbers and key in b.numbers]
    return rows + [Difference(key, a.numbers[key], b.numbers[key]) for key in others]


def main() -> None:
    """Run; what the user can fix ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m tools.compare", description=__doc__)
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B", nargs="+")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page of all runs as well")
    given = parser.parse_args()
    with one_sentence():
        for name in given.b:
            heading = f"B = {name}\n" if len(given.b) > 1 else ""
            print(heading + compare(given.a, name).to_string(float_format="{:.4g}".format))
        if given.html:
            first, *others = (read_whole_run(name) for name in (given.a, *given.b))
            page = runs_page([first, *others], [differences(first, other) for other in others])
            with atomic_path(given.html) as temporary:
                temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
