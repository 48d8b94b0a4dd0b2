"""Does the commit give the same bits again? `python -m tools.reproduce` runs it from nothing and compares every output.

It clones the committed repository into a temporary folder, with an empty cache and no state of killed runs, runs
`dvc repro` there and compares the MD5 of each output with that in the committed dvc.lock. Timings differ by nature:
they are named and not counted. Where anything else differs, the two environments say what might explain it.

With --kills N the run is killed (SIGKILL) so many times at random moments and started again: it should go on where it
was and end with the same bits.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

aligned = str  # replaced soon
from ddpm.utils.errors import DdpmError, MissingFile, one_sentence
from tools import committed

TIMINGS = ("data/cost", "data/cost/train.json", "data/cost/generate.json", "metrics/cost.json")
ENVIRONMENT = ("metrics/cost.json", "metrics/fid.json")
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
    found: dict[str, Any] = {}

    def gather(name: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                gather(f"{name}{key}.", value)
            elif not isinstance(value, float):
                found[name + key] = value

    for file, text in read.items():
        gather(f"{file}: ", json.loads(text))
    return found


def run_again(top: Path, commit: str, folder: Path, kills: int, seconds: float) -> None:
    """Clone a commit of the repository ``top`` into an empty folder and run its pipeline from nothing.

    kills: how many times it is killed, about so many ``seconds`` after each start. Raises DdpmError.
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
    lock = folder / "dvc.lock"
    if not lock.exists():
        raise MissingFile(f"{commit} has no dvc.lock to compare with: run `dvc repro` and commit it")
    # Nothing of the committed run is left to be taken for this run's.
    for path in outputs(lock.read_text()):
        (folder / path).unlink(missing_ok=True)
    lock.unlink()
    # Whatever the user's configuration says of a shared cache: what is taken from it would prove nothing.
    run("dvc", "cache", "dir", "--local", str(folder / ".dvc/cache"))
    # The original files are verified by their SHA-256, so they need not be fetched twice.
    raw = top / "data/raw"
    if raw.is_dir():
        shutil.copytree(raw, folder / "data/raw")
    moment = random.Random(kills)
    for number in range(1, kills + 1):
        with subprocess.Popen(("dvc", "repro"), cwd=folder, env=variables, start_new_session=True) as process:
            try:
                process.wait(moment.uniform(0.5, 1.5) * seconds)
                print(f"It came to its end after {number - 1} kills.", flush=True)
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        print(f"\nkilled: {number} of {kills}", flush=True)
    run("dvc", "repro")


def report(top: Path, commit: str, again: Path) -> bool:
    """Print the table and what may explain differences; True where all but the timings is the same."""
    rows = compare(outputs(committed(commit, "dvc.lock", top) or ""), outputs((again / "dvc.lock").read_text()))
    print(aligned([("output", "committed", "this run", ""), *rows]))
    counted = [verdict for *_, verdict in rows if verdict != TIMING]
    different = counted.count(DIFFERS)
    print(f"{counted.count(SAME)} outputs are the same, {different} differ, {len(rows) - len(counted)} are timings")
    present = [file for file in ENVIRONMENT if (again / file).exists()]
    then = environment({file: text for file in present if (text := committed(commit, file, top))})
    now = environment({file: (again / file).read_text() for file in present})
    changed = [(key, str(then.get(key)), str(now.get(key))) for key in {**then, **now} if then.get(key) != now.get(key)]
    if changed:
        print("The environments differ:")
        print(aligned([("", "committed", "this run"), *changed]))
    elif different:
        print(
            "The environments say nothing that would explain it: processor, threads, precision, versions are the same."
        )
    return not different


def reproduce(revision: str, keep: Path | None, kills: int = 0, seconds: float = 60.0) -> bool:
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
        run_again(top, commit, folder, kills, seconds)
        return report(top, commit, folder)


def _git(*command: str, fails: str) -> str:
    done = subprocess.run(("git", *command), capture_output=True, text=True, check=False)
    if done.returncode:
        raise DdpmError(f"{fails}.")
    return done.stdout


def main() -> None:
    """Run; exit status 0 when all is the same, 1 when something differs or the run failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="run there and leave the clone")
    parser.add_argument("--revision", metavar="REV", default="HEAD", help="commit, branch or experiment; default: HEAD")
    parser.add_argument("--kills", metavar="N", type=int, default=0, help="kill the run so many times (default 0)")
    parser.add_argument("--seconds", type=float, default=60.0, help="from a start to its kill, on average (default 60)")
    asked = parser.parse_args()
    with one_sentence():
        same = reproduce(asked.revision, asked.keep, asked.kills, asked.seconds)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
