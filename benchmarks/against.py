"""This commit and an earlier one side by side: `python -m benchmarks.against eff1fbe`.

Clones both into new folders and runs the whole pipeline of each from nothing, one after the other: an empty cache, an
empty cache of the compiler, the raw files at hand. Nothing else should run meanwhile. A run that was killed begins from
nothing again, as its seconds are what is asked for; one that is complete in the folder of --work is not repeated.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, run, save, show
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import read_json, write_json
from stages.paths import RAW
from tools import commit_of, leave_surroundings, prepared_clone

# What every commit since the first release writes.
KEYS = ("train_seconds", "generate_seconds", "generate_nfe", "fd_mnist")
FILES = ("data/cost/train.json", "data/cost/generate.json", "metrics/fid.json")
NOTE = ".git/against.json"  # of a clone: its row


def repro(commit: str, folder: Path) -> dict[str, Any]:
    """The row of a commit, whose pipeline is run in the folder unless that is there. Raises DdpmError."""
    if not folder.exists():
        with prepared_clone(commit, folder, Path("cache")) as part:
            (part / "dvc.lock").unlink()
            shutil.copytree(RAW, part / RAW)
            write_json(part / NOTE, measured(commit, part))
    return read_json(folder / NOTE)


def measured(commit: str, folder: Path) -> dict[str, Any]:
    """Run the pipeline of the clone of a commit; returns its seconds and headline numbers. Raises DdpmError."""
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / ".ckpt/compiler")}
    started = time.monotonic()
    if subprocess.run(("dvc", "repro"), cwd=folder, env=os.environ | caches, check=False).returncode:
        raise DdpmError(f"the pipeline of {commit} did not end well: fix what it says and call this again.")
    found = {"commit": commit[:7], "repro_seconds": time.monotonic() - started}
    metrics = {key: value for name in FILES for key, value in read_json(folder / name).items()}
    return found | {key: metrics[key] for key in KEYS}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("revision", help="the earlier commit")
    parser.add_argument("--work", type=Path, default=Path(".ckpt/against"), help="where the clones lie")
    given = parser.parse_args()
    leave_surroundings()
    rows = []
    for commit in map(commit_of, ("HEAD", given.revision)):
        rows.append(repro(commit, given.work.absolute() / commit[:7]))
        show(rows[-1:])
    new, old = rows
    timed = [key for key in new if key.endswith("seconds")]
    show([{"": "ratio", **{key: new[key] / old[key] for key in timed}}])
    save(rows, given.json, {"ratio": [{key: new[key] / old[key] for key in timed}]})


if __name__ == "__main__":
    run(main)
