"""Does the commit give the same bits again? `python -m tools.reproduce` runs it from nothing and compares every output.

It clones the commit into a temporary folder with an empty cache, runs `dvc repro` there and compares the MD5 of each
output with the committed dvc.lock. Timings are not counted. Where anything else differs, compare device and threads in
metrics/cost.json and versions in metrics/fid.json. A run killed by --kills N should resume to the same bits.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from ruamel.yaml import YAML

from ddpm.utils.errors import DdpmError, one_sentence
from tools import clone, commit_of, leave_surroundings, mend_locks, run

# Outputs with seconds in them.
TIMINGS = (
    *("data/cost/train.json", "data/cost/generate.json", "metrics/cost.json", "metrics/headline.json"),
    "data/report.html",
)


def outputs(lock: str) -> dict[str, str]:
    """The MD5 of every output of a dvc.lock, by path."""
    stages = (YAML(typ="safe", pure=True).load(lock) or {}).get("stages", {})
    return {out["path"]: str(out.get("md5")) for stage in stages.values() for out in stage.get("outs", [])}


def compare(before: str, after: str) -> pd.DataFrame:
    """One row for each output of two dvc.lock files: MD5 in both, and "same", "differs" or "timing"."""
    table = pd.DataFrame({"committed": outputs(before), "this run": outputs(after)}, dtype=str).fillna("missing")
    same = table["committed"] == table["this run"]
    table["verdict"] = ["same" if equal else "timing" if path in TIMINGS else "differs" for path, equal in same.items()]
    return table.sort_index()


def copy_images(folder: Path) -> None:
    """Bring into a clone the images that its params.yaml names by a relative path, unless Git has. Raises DdpmError."""
    params = folder / "params.yaml"
    values = YAML(typ="safe", pure=True).load(params) if params.exists() else {}
    images = Path(values.get("data", {}).get("path", ""))
    if images.is_absolute() or not images.is_dir() or (folder / images).exists():
        return
    if ".." in images.parts:
        raise DdpmError(f"data.path={images} lies outside of the repository: name it by an absolute path.")
    shutil.copytree(images, folder / images)


def repeat(revision: str, folder: Path, kills: int = 0, seconds: float = 60.0) -> pd.DataFrame:
    """Clone a revision, run its pipeline, killed so many times about ``seconds`` after a start. Raises DdpmError."""
    commit = commit_of(revision)
    lock = run("git", "show", f"{commit}:dvc.lock")
    clone(commit, folder, folder / ".dvc/cache")  # an empty one: what is taken from a shared one would prove nothing
    for path in (*outputs(lock), "dvc.lock"):
        (folder / path).unlink(missing_ok=True)
    copy_images(folder)
    if Path("data/raw").is_dir():  # verified by SHA-256, so that the files need not be fetched again
        shutil.copytree("data/raw", folder / "data/raw")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    moments = random.Random(kills)
    for number in range(kills + 1):
        process = subprocess.Popen(("dvc", "repro"), cwd=folder, env=environment, start_new_session=True)
        try:
            process.wait(moments.uniform(0.5, 1.5) * seconds if number < kills else None)
            break
        except subprocess.TimeoutExpired:
            print(f"\nkilled: {number + 1} of {kills}", flush=True)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                mend_locks(folder)
    return compare(lock, (folder / "dvc.lock").read_text() if process.returncode == 0 else "")


def main() -> None:
    """Run; the exit status is 1 when something differs or the run failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.reproduce", description=__doc__)
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="run in this new or empty folder and leave it")
    parser.add_argument("--revision", metavar="REV", default="HEAD", help="commit, branch or experiment (default HEAD)")
    parser.add_argument("--kills", metavar="N", type=int, default=0, help="kill the run N times (default 0)")
    parser.add_argument("--seconds", type=float, default=60.0, help="from a start to its kill, on average (default 60)")
    given = parser.parse_args()
    leave_surroundings()
    with one_sentence(), TemporaryDirectory(prefix="reproduce-", ignore_cleanup_errors=True) as temporary:
        table = repeat(given.revision, (given.keep or Path(temporary)).resolve(), given.kills, given.seconds)
        print(table.to_string(), table["verdict"].value_counts().rename_axis(None).to_string(), sep="\n\n")
        sys.exit(int("differs" in set(table["verdict"])))


if __name__ == "__main__":
    main()
