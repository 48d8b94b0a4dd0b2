"""This commit and an earlier one side by side: `python -m benchmarks.against eff1fbe`.

Clones both into new folders and runs the whole pipeline of each from nothing, one after the other: an empty cache, an
empty cache of the compiler, the raw files at hand. Nothing else should run meanwhile. A run that was killed begins from
nothing again, as its seconds are what is asked for; one that is complete in the folder of --work is not repeated.

With --images, what is compared is the sampling of so many images by the two models: that of the pipeline may be too
short to be compiled. Each begins with an empty cache of the compiler, and the seconds of compiling count.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML

from benchmarks.common import arguments, run, save, show
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import read_json, write_json
from stages.paths import COST, PARAMS, RAW
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


def sampling(commit: str, folder: Path, images: int) -> dict[str, Any]:
    """The row of a commit whose model, in the clone, samples so many images, and no further set. Raises DdpmError."""
    yaml = YAML()
    params = yaml.load(folder / PARAMS)
    generate = params["generate"]
    generate["num_images"] = images
    # The first releases had another word for it.
    generate["replicates" if "replicates" in generate else "repeats"] = 0
    yaml.dump(params, folder / PARAMS)
    with TemporaryDirectory() as cache:
        command, caches = (sys.executable, "-m", "stages.generate"), {"TORCHINDUCTOR_CACHE_DIR": cache}
        if subprocess.run(command, cwd=folder, env=os.environ | caches, check=False).returncode:
            raise DdpmError(f"the sampling of {commit} did not end well: fix what it says and call this again.")
    cost = read_json(folder / COST / "generate.json")
    nfe, seconds = cost["generate_nfe"], cost["generate_seconds"]
    found = {"commit": commit[:7], "images": images, "generate_nfe": nfe, "compiled": cost.get("generate_compiled")}
    return found | {"generate_seconds": seconds, "evaluations_per_second": images * nfe / seconds}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("revision", help="the earlier commit")
    parser.add_argument("--work", type=Path, default=Path(".ckpt/against"), help="where the clones lie")
    parser.add_argument("--images", type=int, help="compare the sampling of so many images")
    given = parser.parse_args()
    leave_surroundings()
    folders = {each: given.work.absolute() / each[:7] for each in map(commit_of, ("HEAD", given.revision))}
    if len(folders) == 1:
        raise DdpmError(f"{given.revision} is the commit that is checked out: name an earlier one.")
    rows = []
    for commit, folder in folders.items():
        rows.append(repro(commit, folder))
        show(rows[-1:])
    if given.images:
        rows = [sampling(commit, folder, given.images) for commit, folder in folders.items()]
        show(rows)
    new, old = rows
    timed = [key for key in new if key.endswith(("seconds", "per_second"))]
    ratio = {key: new[key] / old[key] for key in timed}
    show([{"": "ratio", **ratio}])
    save(rows, given.json, {"ratio": [ratio]})


if __name__ == "__main__":
    run(main)
