"""A training in one process, watched from another."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from clones import TINY, change, ended, surroundings

from ddpm.data.image_set import ImageSet, write_image_set
from ddpm.training.run_folder import RunFolder
from tools.watch import page, trainings

LONG = TINY | {
    "train.epochs": 2000,
    "train.batch_size": 16,
    "train.log_every": 1,
    "train.validate_every": 20,
    "train.preview_every": 5,
    "train.distance_every": 5,
    "runtime.device": "cpu",
    "runtime.compile": "off",
}


@contextmanager
def process(root: Path, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command at work in the folder, interrupted in the end."""
    started = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=surroundings(PYTHONPATH=str(root), DDPM_CKPT_DIR=""),
        stdout=subprocess.PIPE,
        text=True,
    )
    with started:
        try:
            yield started
        finally:
            started.terminate()  # a watcher that is started in the background ignores SIGINT


def test_a_running_training_is_watched_from_another_process(root: Path, workspace: Path, digits: ImageSet):
    change(workspace, LONG)
    for name, first in (("train", 0), ("validation", 1000)):
        write_image_set(workspace / f"data/split/{name}.npz", digits.take(np.arange(first, first + 512)))
    watch = ("-m", "tools.watch", "--no-browser", "--port", "0")
    with process(root, workspace, "-m", "stages.train") as training, process(root, workspace, *watch) as watcher:
        assert watcher.stdout
        address = watcher.stdout.readline().split()[0]
        seen: list[int] = []
        deadline = time.monotonic() + 300
        while len(set(seen)) < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
            assert training.poll() is None
            with urlopen(address, timeout=60) as answer:
                text = answer.read().decode()
            steps = re.findall(r"data/model: step (\d+),", text)
            whole = text.count("<img") == 2 and "early distance" in text
            seen += [int(step) for step in steps if whole]
        assert training.poll() is None
    assert len(set(seen)) >= 3
    assert seen == sorted(seen)


def test_copies_of_the_repository_are_watched_too_the_newest_first(workspace: Path):
    assert trainings() == []
    assert "Nothing trains here yet" in page([])
    places = [
        Path("data/model"),
        Path(".dvc/tmp/exps/standalone/tmp1/data/model"),
        Path(".dvc/tmp/exps/tmp2/data/model"),
    ]
    row = {"step": 20, "epoch": 0.5, "loss": 0.25, "lr": 0.01, "grad_norm": 1.0}
    for number, place in enumerate(places):
        with RunFolder(place, workspace / f"kept{number}") as folder:
            folder.write_csv("log.csv", [row])
        time.sleep(0.02)
    assert trainings() == places[::-1]
    assert trainings(places[:1]) == places[:1]
    text = page(places)
    assert text.count("step 20, epoch 0.50, loss 0.2500") == 3
    assert text.count("<img") == 3


def test_a_training_that_is_deleted_meanwhile_is_left_out(workspace: Path):
    assert "<h2>" not in page([Path("data/model")])


@pytest.mark.parametrize("gone", ["distance.csv", "preview.png"])
def test_a_training_whose_previews_are_deleted_meanwhile_is_left_out(workspace: Path, gone: str):
    place, previews = Path("data/model"), Path("data/previews")
    with RunFolder(place, workspace / "kept") as folder:
        folder.write_csv("log.csv", [{"step": 20, "epoch": 0.5, "loss": 0.25, "lr": 0.01, "grad_norm": 1.0}])
    assert "<h2>" in page([place])
    previews.mkdir(exist_ok=True)
    # What is there when it is looked for, and not when it is read.
    (previews / gone).mkdir() if gone.endswith("csv") else (previews / gone).symlink_to("nowhere")
    assert "<h2>" not in page([place])


def test_a_port_in_use_ends_it_with_one_sentence(root: Path, workspace: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ended(
            workspace, *(sys.executable, "-m", "tools.watch", "--no-browser", "--port", str(port)), PYTHONPATH=str(root)
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port {port} cannot be used")
    assert len(done.stderr.splitlines()) == 1
