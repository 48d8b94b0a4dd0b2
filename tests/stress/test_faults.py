"""Stages that are cut short between any two changes of a file, within a write, or by a full disk.

DDPM_FAULTS sets how many moments are tried for each stage and kind; by default a few, spread over the whole run.
"""

import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from clones import surroundings
from PIL import Image

from ddpm.config import Config
from ddpm.data.image_set import ImageSet, write_image_set
from ddpm.models.build import build_network
from ddpm.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ddpm.models.conditioning import fit_conditioning
from ddpm.utils.files import load_arrays

MOMENTS = int(os.environ.get("DDPM_FAULTS", "6"))
RUN = {
    "train.preview_every": 6,
    "generate.num_images": 12,
    "generate.replicates": 1,
    "generate.steps": 3,
    "generate.trajectories": 5,
    "fid.extractors": [],  # of which each would refuse so few images
    "fid.swd": "on",
    "runtime.device": "cpu",
    "runtime.compile": "off",
    "runtime.workers": 1,
    "runtime.generate_batch_size": 4,
    "runtime.checkpoint_every_seconds": 1e-6,
}
OUTPUTS = {
    "split": ["data/split"],
    "train": ["data/model"],
    "generate": ["data/generated", "data/labels.csv", "data/trajectory.npz", "data/replicates.npz"],
    "summary": ["metrics"],
}

Fault = tuple[int, Path]


class Bench:
    """Makes folders that a stage can run in, and runs it there with faults: see faulty.py, the ``process``."""

    def __init__(self, process: subprocess.Popen[str], place: Path, stage: str, fill: Callable[[Path], None]) -> None:
        self.process, self.place, self.stage = process, place, stage
        self.template = place / "template"
        self.template.mkdir()
        fill(self.template)

    def run(self, kind: str, faults: list[Fault]) -> list[tuple[int, str]]:
        """(exit status, last line of stderr) of each run."""
        assert self.process.stdin
        assert self.process.stdout
        endings = []
        for number, folder in faults:
            print(kind, number, folder, file=self.process.stdin, flush=True)
            answers, _, _ = select.select([self.process.stdout], [], [], 900)
            assert answers, f"{kind} {number} hangs"
            status, _, said = self.process.stdout.readline().rstrip("\n").partition(" ")
            endings.append((int(status), said))
        return endings

    def folder(self, name: str) -> Path:
        """A fresh copy of the template."""
        shutil.copytree(self.template, self.place / name, symlinks=True)
        return self.place / name

    def contents(self, folder: Path) -> dict[str, str]:
        """SHA-256 of each output file by its path; clocks left out."""
        paths = [path for name in OUTPUTS[self.stage] for path in ((folder / name), *(folder / name).rglob("*"))]
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
            if path.is_file() and path.suffix != ".tmp"
        }


def assert_whole(path: Path) -> None:
    """A file that can be read to its end."""
    match path.suffix:
        case ".safetensors":
            load_checkpoint(path)
        case ".npz":
            load_arrays(path)
        case ".png":
            with Image.open(path) as image:
                image.load()
        case ".json":
            json.loads(path.read_text())
        case ".csv":
            head, *rows = path.read_text().splitlines()
            assert path.read_text().endswith("\n")
            assert all(row.count(",") == head.count(",") for row in rows)
        case other:
            pytest.fail(f"{path}: what is a {other}?")


@pytest.fixture(params=["split", "train", "generate", "summary"])
def bench(
    request: pytest.FixtureRequest,
    root: Path,
    tmp_path: Path,
    raw: Path,
    digits: ImageSet,
    tiny: Callable[..., Config],
) -> Iterator[Bench]:
    """Each stage with small inputs, and outputs of an earlier run of other settings in its way."""
    config = tiny(RUN)

    def fill(folder: Path) -> None:
        (folder / "data/raw").parent.mkdir(parents=True)
        (folder / "data/raw").symlink_to(raw)
        (folder / "params.yaml").write_text(json.dumps(config.model_dump(mode="json")))
        if request.param == "split":
            (folder / "data/split").mkdir()
            for name in ("train", "validation", "test"):
                write_image_set(folder / f"data/split/{name}.npz", digits.take(np.arange(5)))
        if request.param == "train":
            write_image_set(folder / "data/split/train.npz", digits.take(np.arange(256)))
            write_image_set(folder / "data/split/validation.npz", digits.take(np.arange(600, 664)))
        if request.param == "generate":
            weights = build_network(config.model, digits.spec).state_dict()
            labels = fit_conditioning(digits, 10, config.model.clusters, config.seed)
            tensors = {"ema": weights, "guide": {name: weight / 2 for name, weight in weights.items()}}
            model = Checkpoint(config.model, config.diffusion, digits.spec, labels, {}, tensors)
            for name in ("best", "last"):
                save_checkpoint(folder / f"data/model/{name}.safetensors", model)
            (folder / "data/generated").mkdir()
            Image.new("RGB", (28, 28)).save(folder / "data/generated/00001.png")
        if request.param == "summary":
            inputs = ("model/results", "cost/train", "cost/generate", "evaluation/fid", "evaluation/memorization")
            for name in (*inputs, "evaluation/likelihood"):
                path = folder / f"data/{name}.json"
                path.parent.mkdir(exist_ok=True, parents=True)
                path.write_text(json.dumps({name: 1} | ({"protocol": {}} if name == "evaluation/fid" else {})))
            (folder / "data/evaluation/classes.csv").write_text("label,set\n0,generated\n")
            (folder / "metrics").mkdir()
            for name in ("train", "cost", "fid", "memorization", "likelihood", "headline"):
                (folder / f"metrics/{name}.json").write_text('{"old": 1}')
            (folder / "metrics/classes.csv").write_text("old\n1\n")

    command = [sys.executable, str(Path(__file__).with_name("faulty.py")), request.param]
    environment = surroundings(PYTHONPATH=str(root), DDPM_CKPT_DIR="")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield Bench(process, tmp_path, request.param, fill)
        finally:
            process.kill()


def test_whatever_cuts_a_stage_its_files_are_whole_and_the_next_run_ends_with_the_same_bits(bench: Bench):
    clean = bench.folder("clean")
    old = bench.contents(clean)
    ((status, count),) = bench.run("count", [(0, clean)])
    assert status == 0, count
    new = bench.contents(clean)
    assert new.items().isdisjoint(old.items())

    faults = moments(bench, int(count))
    folders = [folder for _, folder in faults["cut"] + faults["size"] + faults["full"]]
    for kind, planned in faults.items():
        for (status, said), (number, folder) in zip(bench.run(kind, planned), planned, strict=True):
            if kind == "cut":
                assert status == -signal.SIGKILL, f"{kind} {number}: {status} {said}"
            elif kind == "size":
                assert status in (0, -signal.SIGXFSZ), f"{kind} {number}: {status} {said}"
            elif status or number == 1:  # what is done last only removes files, for which a full disk has room
                assert status == 1, f"{kind} {number}: {status} {said}"
                assert said.startswith("error: "), said
                assert "the disk is full" in said
            for path, digest in bench.contents(folder).items():
                if digest not in (old.get(path), new.get(path)):
                    # The files of a training grow: any state that is whole is a good one.
                    assert bench.stage == "train", f"{kind} {number}: {path} is neither the old nor the new file"
                    assert_whole(folder / path)
            if kind == "cut" and bench.stage != "train":
                assert set(bench.contents(folder)) >= set(old), f"{kind} {number}: a file is gone"
    # A single byte is too much for every stage's files.
    assert bench.run("size", [(1, bench.folder("one_byte"))])[0][0] == -signal.SIGXFSZ
    endings = [status for status, _ in bench.run("cut", [(10**9, folder) for folder in folders])]
    assert endings == [0] * len(folders)
    for folder in folders:
        assert bench.contents(folder) == new, folder
        assert not [path for path in folder.rglob("*.tmp") if "ckpt" not in str(path)], folder


def moments(bench: Bench, count: int) -> dict[str, list[Fault]]:
    """Faults of every kind, spread from the first of ``count`` changes of a file to the last."""
    numbers = sorted({round(float(number)) for number in np.linspace(1, count, min(count, MOMENTS))})
    sizes = [1, 200, 5000, 20_000, 100_000, 400_000][: max(2, MOMENTS // 2)]
    return {
        "cut": [(number, bench.folder(f"cut_{number}")) for number in numbers],
        "full": [(number, bench.folder(f"full_{number}")) for number in numbers[::2]],
        "size": [(size, bench.folder(f"size_{size}")) for size in sizes],
    }
