"""Does the commit give the same bits again? `python -m tools.reproduce` runs it from nothing and compares every output.

It clones the committed repository into a temporary folder, with an empty cache and no state of killed runs, runs
`dvc repro` there and compares the MD5 of each output with that in the committed dvc.lock. Timings differ by nature:
they are named and not counted. Where anything else differs, the two environments say what might explain it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ddpm.errors import DdpmError, MissingFile

TIMINGS = ("data/cost", "data/cost/train.json", "data/cost/generate.json", "metrics/cost.json")
ENVIRONMENT = ("metrics/cost.json", "metrics/protocol.json")
# These would lead git, DVC or a stage out of the clone.
FOREIGN = ("DDPM_CKPT_DIR", "DVC_ROOT", "DVC_STAGE", "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")
SAME, DIFFERS, TIMING = "same", "differs", "a timing"


def outputs(lock: str) -> dict[str, str]:
    """The MD5 of every output of a dvc.lock, by path."""
    stages = (YAML(typ="safe", pure=True).load(lock) or {}).get("stages", {})
    return {out["path"]: str(out.get("md5")) for stage in stages.values() for out in stage.get("outs", [])}


def compare(committed: Mapping[str, str], again: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """One row an output: path, MD5 in the commit, MD5 of this run, and whether they are the same."""
    rows = []
    for path in sorted({*committed, *again}):
        pair = committed.get(path, "missing"), again.get(path, "missing")
        verdict = SAME if pair[0] == pair[1] else TIMING if path in TIMINGS else DIFFERS
        rows.append((path, *pair, verdict))
    return rows


def environment(read: Mapping[str, str]) -> dict[str, Any]:
    """What may explain a difference, from the JSON files of `ENVIRONMENT`: all that is no measured number."""
    found = {}
    for file, text in read.items():
        for key, value in json.loads(text).items():
            parts = value.items() if isinstance(value, dict) else [(None, value)]
            for part, inner in parts:
                if not isinstance(inner, float):
                    found[f"{file}: {key}" if part is None else f"{file}: {key}.{part}"] = inner
    return found


def run_again(top: Path, commit: str, folder: Path) -> None:
    """Clone a commit of the repository ``top`` into an empty folder and run its pipeline from nothing.

    Raises DdpmError.
    """
    variables = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    # The stages are to find this interpreter, and the packages that it has.
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', '')}"

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=folder, env=variables, check=False)
        if done.returncode:
            raise DdpmError(f"`{' '.join(command)}` failed in the clone, see above; --keep FOLDER leaves it there.")

    run("git", "clone", "--quiet", "--no-checkout", str(top), ".")
    run("git", "checkout", "--quiet", "--detach", commit)
    if not (folder / "dvc.lock").exists():
        raise MissingFile(f"{commit} has no dvc.lock to compare with: run `dvc repro` and commit it")
    # Whatever the user's configuration says of a shared cache: what is taken from it would prove nothing.
    run("dvc", "cache", "dir", "--local", str(folder / ".dvc/cache"))
    # The original files are verified by their SHA-256, so they need not be fetched twice.
    raw = top / "data/raw"
    if raw.is_dir():
        shutil.copytree(raw, folder / "data/raw")
    run("dvc", "repro", "--force")


def report(top: Path, commit: str, again: Path) -> bool:
    """Print the table and what may explain differences; True where all but the timings is the same."""
    rows = compare(outputs(_at(top, commit, "dvc.lock")), outputs((again / "dvc.lock").read_text()))
    print("\n".join(_columns([("output", "committed", "this run", ""), *rows])))
    counted = [verdict for *_, verdict in rows if verdict != TIMING]
    different = counted.count(DIFFERS)
    print(f"{counted.count(SAME)} outputs are the same, {different} differ, {len(rows) - len(counted)} are timings")
    present = [file for file in ENVIRONMENT if (again / file).exists()]
    then = environment({file: text for file in present if (text := _at(top, commit, file))})
    now = environment({file: (again / file).read_text() for file in present})
    changed = [(key, str(then.get(key)), str(now.get(key))) for key in {**then, **now} if then.get(key) != now.get(key)]
    if changed:
        print("The environments differ:")
        print("\n".join(_columns([("", "committed", "this run"), *changed])))
    elif different:
        print(
            "The environments say nothing that would explain it: processor, threads, precision, versions are the same."
        )
    return not different


def reproduce(revision: str, keep: Path | None) -> bool:
    """Run a revision again and report. Raises DdpmError."""
    top = Path(_git("rev-parse", "--show-toplevel", fails="this folder is in no Git repository").strip())
    # A commit made while the pipeline runs must not become what it is compared with.
    commit = _git("rev-parse", "--verify", f"{revision}^{{commit}}", fails=f"{revision} is no revision").strip()
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise DdpmError(f"{keep} is not empty: name a folder for --keep that is new or empty.")
    if _git("status", "--porcelain", "--untracked-files=no", fails="git status failed"):
        print(f"What is changed here and not committed is no part of it: {revision} is run as it is committed.")
    with tempfile.TemporaryDirectory(prefix="reproduce-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary).resolve() if keep is None else keep.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        run_again(top, commit, folder)
        return report(top, commit, folder)


def _git(*command: str, fails: str) -> str:
    done = subprocess.run(("git", *command), capture_output=True, text=True, check=False)
    if done.returncode:
        raise DdpmError(f"{fails}.")
    return done.stdout


def _at(top: Path, commit: str, file: str) -> str:
    """A file of a commit; empty if it has none."""
    command = ("git", "-C", str(top), "show", f"{commit}:{file}")
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def main() -> None:
    """Run; exit status 0 when all is the same, 1 when something differs or the run failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="run there and leave the clone")
    parser.add_argument("--revision", metavar="REV", default="HEAD", help="commit, branch or experiment; default: HEAD")
    asked = parser.parse_args()
    try:
        same = reproduce(asked.revision, asked.keep)
    except (DdpmError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted.")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
