"""What the stages keep of their speed beside a busy machine: `python -m benchmarks.contention REVISION`.

This commit and an earlier one, one after the other: a short training, a short sampling run and the measuring of its
images, quiet, beside one busy process of one thread, and beside two. The first run of each commit, which compiles where
that is on, is not counted: runs as short as these compile nothing unless told, those of the whole pipeline may. Nothing
else should run meanwhile. `kept` is the speed as a part of the same commit's quiet speed; that of
measuring is in images a second of the whole stage, its start included.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML
from tqdm import tqdm

from benchmarks.common import arguments, run, save, show
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import read_json
from stages.paths import RAW
from tools import clone, commit_of, leave_surroundings

# Sections and keys that every commit since the first release has.
CHANGES: dict[str, dict[str, Any]] = {
    "train": {"epochs": 0.4, "validate_every": 10**9, "preview_every": 0},
    "generate": {"num_images": 2000, "trajectories": 1},
    "runtime": {"precision": "auto"},
}
FIGURES = {
    "train": "train_images_per_second",
    "generate": "generate_images_per_second",
    "fid": "fid_images_per_second",
}
# Stages that come first; the release that had no classifier has no such stage.
EARLIER = {"train": ("split",), "fid": ("classifier", "reference")}
BUSY = (0, 1, 2)
COMPILE = ("auto", "on", "off")


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute without end, inside."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def prepare(commit: str, folder: Path, compiled: str, stages: Sequence[str]) -> None:
    """A clone of the commit with its split and the settings of the benchmark; caches of the stages are filled."""
    clone(commit, folder, folder / ".dvc/cache")
    shutil.copytree(RAW, folder / RAW)
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    for section, entries in CHANGES.items():
        values[section].update(entries)
    values["runtime"]["compile"] = compiled
    for key in ("replicates", "repeats"):
        if key in values["generate"]:
            values["generate"][key] = 0
    yaml.dump(values, folder / "params.yaml")
    for stage in list(FIGURES)[: 1 + max(map(list(FIGURES).index, stages))]:
        for name in (*EARLIER.get(stage, ()), stage):
            if (folder / f"stages/{name}.py").exists():
                speed_of(folder, name)


def speed_of(folder: Path, stage: str) -> float:
    """Run a stage of a clone, from its start; returns images a second, by its own account where it gives one."""
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(folder / ".compiler"), "PYTHONPATH": ""}
    shutil.rmtree(folder / ".ckpt", ignore_errors=True)
    command = (sys.executable, "-m", f"stages.{stage}")
    started = time.perf_counter()
    if subprocess.run(command, cwd=folder, env=os.environ | environment, check=False).returncode:
        raise DdpmError(f"`python -m stages.{stage}` failed in {folder}.")
    seconds, cost = time.perf_counter() - started, folder / f"data/cost/{stage}.json"
    return float(read_json(cost)[FIGURES[stage]] if cost.exists() else CHANGES["generate"]["num_images"] / seconds)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("revision", help="the earlier commit")
    parser.add_argument("--stages", nargs="+", choices=list(FIGURES), default=list(FIGURES), help="default: all")
    parser.add_argument("--compile", choices=COMPILE, default="auto", help="of this commit (default auto)")
    parser.add_argument("--earlier-compile", choices=COMPILE, default="auto", help="of the earlier one (default auto)")
    given = parser.parse_args()
    leave_surroundings()
    rows: list[dict[str, Any]] = []
    for revision, compiled in (("HEAD", given.compile), (given.revision, given.earlier_compile)):
        commit = commit_of(revision)
        with TemporaryDirectory() as name:
            folder = Path(name) / "clone"
            prepare(commit, folder, compiled, given.stages)
            quiet: dict[str, float] = {}
            for processes in tqdm(BUSY, desc=commit[:7]):
                row: dict[str, Any] = {"commit": commit[:7], "compile": compiled, "busy": processes}
                for stage in given.stages:
                    with busy(processes):
                        speed = speed_of(folder, stage)
                    row |= {FIGURES[stage]: speed, f"{stage}_kept": speed / quiet.setdefault(stage, speed)}
                rows.append(row)
                save(rows, given.json, {})
    show(rows)


if __name__ == "__main__":
    run(main)
