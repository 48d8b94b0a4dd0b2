"""What DVC takes for many small files and for one large one: `python -m benchmarks.storage --help`.

The same real images are stored as a folder of RGB PNGs, as the pipeline writes them, and as one npz. In a temporary
repository each is added, queried, pushed to a local folder, pulled into an empty cache and checked out of a full
one. A row is one operation, with the least and the median of its repetitions. Needs `dvc repro fetch_mnist`.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import dvc
import numpy as np
from tqdm import tqdm

from benchmarks.common import arguments, run, save, settings, show
from ddpm.data.sources import SOURCES
from ddpm.utils.errors import DdpmError
from ddpm.utils.images import write_rgb_pngs
from stages.paths import RAW


def write_folder(place: Path, images: np.ndarray) -> str:
    (place / "images").mkdir()
    write_rgb_pngs(place / "images", images, 1, len(images))
    return "images"


def write_npz(place: Path, images: np.ndarray) -> str:
    np.savez(place / "images.npz", images=images)
    return "images.npz"


FORMS: dict[str, Callable[[Path, np.ndarray], str]] = {"PNGs": write_folder, "npz": write_npz}


def command(place: Path, *words: str) -> float:
    """Seconds that a command takes, its start included. Raises DdpmError when it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    started = time.perf_counter()
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise DdpmError(f"`{' '.join(words)}` failed: {done.stderr.strip()}")
    return seconds


def repetition(form: str, images: np.ndarray) -> dict[str, float]:
    """Seconds of each operation, in a repository of its own."""
    with TemporaryDirectory(prefix="storage-") as name:
        place = Path(name) / "repository"
        place.mkdir()
        command(place, "git", "init", "--quiet")
        command(place, "dvc", "init", "--quiet")
        command(place, "dvc", "remote", "add", "--default", "team", str(Path(name) / "remote"))
        data = FORMS[form](place, images)
        seconds = {"add": command(place, "dvc", "add", data)}
        seconds["status"] = command(place, "dvc", "status")
        seconds["push"] = command(place, "dvc", "push")
        for folder in (".dvc/cache", ".dvc/tmp", data):
            remove(place / folder)
        seconds["pull"] = command(place, "dvc", "pull")
        remove(place / data)
        seconds["checkout"] = command(place, "dvc", "checkout")
        return seconds


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="default 10000")
    parser.add_argument("--repetitions", type=int, default=5, help="default 5")
    given = parser.parse_args()
    stored = SOURCES[settings().data.name].load(RAW, "train").images
    if not 1 <= given.images <= len(stored):
        raise DdpmError(f"--images {given.images}: there are 1 to {len(stored)}.")
    if given.repetitions < 1:
        raise DdpmError(f"--repetitions {given.repetitions}: at least 1.")
    images = stored[: given.images]
    found: dict[tuple[str, str], list[float]] = {}
    for _ in tqdm(range(given.repetitions), desc="storage", unit="repetition"):
        for form in FORMS:
            for operation, seconds in repetition(form, images).items():
                found.setdefault((form, operation), []).append(seconds)
    rows = [
        {"form": form, "operation": operation, "least_s": min(seconds), "median_s": statistics.median(seconds)}
        for (form, operation), seconds in found.items()
    ]
    metadata = {"images": given.images, "repetitions": given.repetitions, "dvc": dvc.__version__}
    save(rows, given.json, metadata)
    show(rows)


if __name__ == "__main__":
    run(main)
