"""One gigabyte of images is divided, trained on and measured for its likelihood with less than 1.5 of memory."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clones import SMALL, change, surroundings

from ddpm.data.image_set import ImageSet, write_image_set
from ddpm.utils.files import scratch_array

pytestmark = pytest.mark.long

GIB = 2**30
TRAIN, TEST, SIZE = 88_000, 1000, 64  # 64 × 64 pixels, RGB: 1.01 GiB
ROOT = Path(__file__).parents[2]


def peak_memory(folder: Path, stage: str) -> int:
    """Run a stage; the most bytes that it held at once which are not a copy of what a file holds."""
    command = [sys.executable, "-m", f"stages.{stage}"]
    with subprocess.Popen(command, cwd=folder, env=surroundings(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")) as process:
        status, peak = Path(f"/proc/{process.pid}/status"), 0
        while process.poll() is None:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            held = (int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem") if key in lines)
            peak = max(peak, sum(held))
            time.sleep(0.02)
    assert process.returncode == 0
    return peak


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux does")
@pytest.mark.parametrize("classes", [0, 2])
def test_more_images_than_memory_go_through_the_stages(workspace: Path, classes: int):
    random, raw = np.random.default_rng(1), workspace / "data/raw"
    for part, count in (("train", TRAIN), ("test", TEST)):
        images = scratch_array((count, 3, SIZE, SIZE), workspace, 2**20)
        for start in range(0, count, 1000):
            coarse = random.integers(256, size=(min(1000, count - start), 3, 8, 8), dtype=np.uint8)
            images[start : start + 1000] = coarse.repeat(8, 2).repeat(8, 3)
        labels = np.arange(count) % max(1, classes)
        write_image_set(raw / f"{part}.npz", ImageSet(images, labels, np.arange(count), classes, "folder"))
    change(
        workspace,
        SMALL | {"data.name": "folder", "fid.extractors": "auto", "model.clusters": 20, "train.epochs": 0.005},
    )
    change(workspace, {"runtime.processes": 1, "runtime.compile": "off", "likelihood.images": 50})
    assert (raw / "train.npz").stat().st_size > GIB
    peaks = {stage: peak_memory(workspace, stage) for stage in ("split", "train", "likelihood")}
    print({stage: f"{peak / GIB:.2f} GiB" for stage, peak in peaks.items()})
    assert (workspace / "data/split/train.npz").stat().st_size > 0.9 * GIB
    assert max(peaks.values()) < 1.5 * GIB, peaks
