"""This commit and an earlier one side by side: `python -m benchmarks.against eff1fbe`.

Clones both into new folders and runs the whole pipeline of each from nothing, one after the other: an empty cache, an
empty cache of the compiler, the raw files at hand. Nothing else should run meanwhile. A run that was killed resumes
with --work, where the clones lie; one that is complete there is not repeated.
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
from tools import clone, commit_of, leave_surroundings

# What every commit since the first release writes.
KEYS = ("train_seconds", "generate_seconds", "generate_nfe", "fd_mnist")
FILES = ("data/cost/train.json", "data/cost/generate.json", "metrics/fid.json")


def repro(commit: str, folder: Path) -> dict[str, Any]:
    """Run a commit's pipeline in the folder; returns its seconds and headline numbers. Raises DdpmError."""
    note = folder / ".git/against.json"
    if note.exists():
        return read_json(note)
    if not (folder / "dvc.yaml").exists():
        clone(commit, folder, folder / ".dvc/cache")
        (folder / "dvc.lock").unlink()
        shutil.copytree(RAW, folder / RAW)
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / ".ckpt/compiler")}
    started = time.monotonic()
    if subprocess.run(("dvc", "repro"), cwd=folder, env=os.environ | caches, check=False).returncode:
        raise DdpmError(f"the pipeline of {commit} in {folder} did not end well.")
    found = {"commit": commit[:7], "repro_seconds": time.monotonic() - started}
    metrics = {key: value for name in FILES for key, value in read_json(folder / name).items()}
    write_json(note, found | {key: metrics[key] for key in KEYS})
    return read_json(note)


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
