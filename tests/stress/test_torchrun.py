"""The training stage, started by torchrun in several processes: the outputs of one process alone."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest
from clones import TINY, run_in, surroundings
from ruamel.yaml import YAML

from ddpm.config import Config
from ddpm.data.image_set import ImageSet, write_image_set
from ddpm.utils.files import sha256

STAGE = ("-m", "stages.train")
# Many seconds, whatever the machine: a step of so small a network waits for Python, not for its products.
LONG = {"train.epochs": 10.0, "train.validate_every": 100, "runtime.checkpoint_every_seconds": 0.2}
Prepare = Callable[..., Path]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory, digits: ImageSet, configure: Callable[..., Config]) -> Prepare:
    """Makes a folder in which the training stage can run."""

    def make(name: str, **changes: object) -> Path:
        folder = tmp_path_factory.mktemp(name)
        write_image_set(folder / "data/split/train.npz", digits.take(np.arange(500)))
        write_image_set(folder / "data/split/validation.npz", digits.take(np.arange(2000, 2100)))
        settings = {"train.epochs": 2.0, "train.shards": 4, "runtime.device": "cpu", "runtime.compile": "off"}
        values = configure(TINY | settings | changes).model_dump(mode="json")
        YAML().dump(values, folder / "params.yaml")
        return folder

    return make


def outputs(folder: Path) -> dict[str, str]:
    """The files of data/model, by name."""
    model = folder / "data/model"
    return {str(path.relative_to(model)): sha256(path) for path in model.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(root: Path) -> dict[str, str]:
    """Environment variables by which the stage is that of the repository and keeps its state in its folder."""
    return {"PYTHONPATH": str(root), "DDPM_CKPT_DIR": ""}


@pytest.fixture(scope="module")
def alone(prepare: Prepare, place: dict[str, str]) -> dict[str, str]:
    """The outputs of one process, never cut."""
    folder = prepare("alone", **LONG)
    run_in(folder, sys.executable, *STAGE, **place)
    return outputs(folder)


def assert_resumes(cut: Path, alone: Mapping[str, str], place: Mapping[str, str]) -> None:
    """The run that was cut has no result, and one process ends it with the bits of a run never cut."""
    assert not (cut / "data/model/last.safetensors").exists()
    assert "resuming" in run_in(cut, sys.executable, *STAGE, **place)
    assert outputs(cut) == alone


def test_torchrun_trains_to_the_bits_of_one_process(prepare: Prepare, place: dict[str, str]):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    found = []
    for name, python in (("single", (sys.executable,)), ("together", launcher)):
        folder = prepare(name)
        said = run_in(folder, *python, *STAGE, **place)
        assert said.count("training on") == 1
        shutil.rmtree(folder / ".ckpt")
        found.append(outputs(folder))
    assert found[0] == found[1]
    assert len(found[0]) == 5


def test_a_rank_that_is_killed_ends_all_and_one_process_resumes(
    prepare: Prepare, place: dict[str, str], alone: dict[str, str]
):
    shared = prepare("shared", **LONG)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *STAGE)
    node = subprocess.Popen(launcher, cwd=shared, env=surroundings(**place))
    try:
        while not list(shared.glob(".ckpt/train-*/state.safetensors")):
            assert node.poll() is None, "it ended before a rank was killed"
            time.sleep(0.05)
        ranks = {process.environ().get("RANK"): process for process in psutil.Process(node.pid).children()}
        ranks["1"].kill()
        assert node.wait(timeout=120)
    finally:
        node.kill()
    assert not any(process.is_running() for process in ranks.values())
    assert_resumes(shared, alone, place)


def test_a_node_that_is_interrupted_stops_all_and_one_process_resumes(
    prepare: Prepare, place: dict[str, str], alone: dict[str, str]
):
    shared = prepare("shared", **LONG)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{probe.getsockname()[1]}"
    node = (
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--local-addr", "127.0.0.1", *STAGE),
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(node, cwd=shared, env=surroundings(**place), **pipes) for _ in range(2)]  # type: ignore[call-overload]
    try:
        while not list(shared.glob(".ckpt/train-*/state.safetensors")):
            assert all(process.poll() is None for process in nodes), "a node ended before it was interrupted"
            time.sleep(0.05)
        nodes[1].send_signal(signal.SIGINT)
        said = "\n".join(process.communicate(timeout=120)[0] for process in nodes)
    finally:
        for process in nodes:
            process.kill()
    assert all(process.returncode for process in nodes), said
    assert "stopped at step" in said
    assert_resumes(shared, alone, place)
