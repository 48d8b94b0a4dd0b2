"""Runs that are killed at random moments, again and again, end with the bits of a run never killed.

DDPM_KILLS sets the number of kills in each test, DDPM_KILLS_SEED when.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clones import (
    TINY,
    change,
    commit,
    outputs,
    processes_in,
    run_in,
    small_run,
    stages_run,
    surroundings,
    wait_for,
)
from ruamel.yaml import YAML

from ddpm.config import Config
from ddpm.data.image_set import ImageSet, write_image_set
from ddpm.models.build import build_network
from ddpm.models.checkpoint import Checkpoint, save_checkpoint
from ddpm.models.conditioning import fit_conditioning
from ddpm.utils.files import sha256

KILLS = int(os.environ.get("DDPM_KILLS", "4"))
SEED = int(os.environ.get("DDPM_KILLS_SEED", "1"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RUN = TINY | {
    "model.patch_size": 2,
    "model.dropout": 0.1,
    "diffusion.timesteps": 1000,
    "train.epochs": 5,
    "train.log_every": 50,
    "train.validate_every": 20,
    "train.preview_every": 50,
    "generate.num_images": 240,
    "generate.replicates": 1,
    "generate.steps": 20,
    "generate.trajectories": 30,
    "runtime.device": "cpu",
    "runtime.compile": "off",
    "runtime.generate_batch_size": 20,
    "runtime.checkpoint_every_seconds": 0.2,
}


def finish(root: Path, folder: Path, stage: str) -> float:
    """Run a stage to its end; returns how long it took."""
    started = time.monotonic()
    command = [sys.executable, "-m", f"stages.{stage}"]
    run_in(folder, *command, PYTHONPATH=str(root), DDPM_CKPT_DIR="")
    return time.monotonic() - started


def kill(root: Path, folder: Path, stage: str, after: float, number: int) -> bool:
    """Start a stage and send it a signal after so many seconds; returns whether it was still at work."""
    command = [sys.executable, "-m", f"stages.{stage}"]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=surroundings(PYTHONPATH=str(root), DDPM_CKPT_DIR=""),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            process.wait(120)
            return process.returncode != 0
    assert process.returncode == 0
    return False


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every output of training and sampling that does not depend on the clock."""
    kept = (
        "data/model",
        "data/previews",
        "data/generated",
        "data/labels.csv",
        "data/trajectory.npz",
        "data/replicates.npz",
    )
    paths = [path for name in kept for path in (folder / name, *(folder / name).rglob("*"))]
    return {str(path.relative_to(folder)): sha256(path) for path in paths if path.is_file()}


@pytest.mark.parametrize(("stage", "processes"), [("train", 1), ("train", 2), ("generate", 1), ("generate", 2)])
def test_a_stage_killed_at_random_moments_ends_with_the_bits_of_one_never_killed(
    root: Path, tmp_path: Path, digits: ImageSet, configure: Callable[..., Config], stage: str, processes: int
):
    config = configure(RUN, {"runtime.processes": processes})
    for name in ("clean", "killed"):
        (tmp_path / name).mkdir()
        YAML().dump(config.model_dump(mode="json"), tmp_path / name / "params.yaml")
        write_image_set(tmp_path / name / "data/split/train.npz", digits.take(np.arange(1000)))
        write_image_set(tmp_path / name / "data/split/validation.npz", digits.take(np.arange(2000, 2100)))
        if stage == "generate":
            weights = build_network(config.model, digits.spec).state_dict()
            for weight in weights.values():
                weight.fill_(0.02)
            labels = fit_conditioning(digits, 10, config.model.clusters, config.seed)
            tensors = {"ema": weights, "guide": {name: weight / 2 for name, weight in weights.items()}}
            model = Checkpoint(config.model, config.diffusion, digits.spec, labels, {}, tensors)
            for kind in ("best", "last"):
                save_checkpoint(tmp_path / name / f"data/model/{kind}.safetensors", model)
    seconds = finish(root, tmp_path / "clean", stage)
    expected = contents(tmp_path / "clean")
    assert len(expected) > 5

    moment = random.Random(SEED)
    kills = 0
    while kills < KILLS:
        if kill(root, tmp_path / "killed", stage, moment.uniform(0.3, 1.0) * seconds, moment.choice(SIGNALS)):
            kills += 1
            continue
        # It came to its end before its moment: what it made is compared, and it starts again.
        assert contents(tmp_path / "killed") == expected
        shutil.rmtree(tmp_path / "killed/.ckpt")
    finish(root, tmp_path / "killed", stage)
    assert contents(tmp_path / "killed") == expected


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, raw: Path) -> Path:
    """A repository whose training and sampling take some seconds; its results, never killed, in `clean`."""
    folder = tmp_path_factory.mktemp("kills") / "clone"
    # Its split is that of these settings; its training is not, and runs again.
    shutil.copytree(small_run(tmp_path_factory.getbasetemp(), raw).folder, folder, symlinks=True)
    # In a training much shorter than this one a stage would end before it notices that its dvc is gone.
    change(folder, {**RUN, "train.epochs": 0.1, "generate.num_images": 160})
    commit(folder, "longer")
    return folder


@pytest.fixture(scope="module")
def clean(repository: Path) -> dict[str, str]:
    """The outputs of a run never killed, in a copy of the repository."""
    other = repository.with_name("clean")
    shutil.copytree(repository, other, symlinks=True)
    assert stages_run(run_in(other, "dvc", "repro", "generate")) == ["train", "generate"]
    return outputs(other)


@pytest.fixture
def clone(repository: Path) -> Path:
    """The repository as committed, without any trace of earlier runs."""
    run_in(repository, "git", "checkout", "--quiet", "--force", "HEAD")
    for folder in (".ckpt", ".dvc/cache/runs"):
        shutil.rmtree(repository / folder, ignore_errors=True)
    return repository


def states(clone: Path) -> list[Path]:
    """What trainings have saved to resume from."""
    return list(clone.glob(".ckpt/train-*/state.safetensors"))


def start_and_kill(clone: Path, number: int, everything: bool, *command: str, **variables: str) -> str:
    """Run dvc until its training has saved a state, then kill dvc, with all that it started or alone.

    Returns what was printed until then.
    """
    log, before = clone.with_name("killed.log"), len(states(clone))
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, cwd=clone, env=surroundings(**variables), stdout=file, stderr=file, start_new_session=True
        ) as process,
    ):
        wait_for(lambda: len(states(clone)) > before, process)
        (os.killpg if everything else os.kill)(process.pid, number)
        process.wait(300)
    wait_for(lambda: not at_work(clone))
    assert everything or "stopped at step" in log.read_text(), "a stage whose dvc is gone ends by itself"
    return log.read_text()


def at_work(clone: Path) -> bool:
    """Whether a stage still runs in the clone."""
    return any("stages." in part for process in processes_in(clone) for part in process.info["cmdline"] or ())


# DVC calls stages through the user's shell: bash is replaced by the stage, sh (dash) stays between the two.
@pytest.mark.parametrize(
    ("number", "everything", "command", "shell"),
    [
        (signal.SIGKILL, True, ("dvc", "repro", "generate"), "/bin/sh"),
        (signal.SIGTERM, False, ("dvc", "repro", "generate"), "/bin/sh"),
        (signal.SIGKILL, False, ("dvc", "exp", "run", "generate"), "/bin/bash"),
        (signal.SIGINT, True, ("dvc", "exp", "run", "generate"), "/bin/bash"),
    ],
    ids=["KILL to all", "TERM to dvc alone", "KILL to dvc exp run alone", "INT to all"],
)
def test_dvc_killed_resumes_when_it_is_called_again(
    clone: Path, clean: dict[str, str], number: int, everything: bool, command: tuple[str, ...], shell: str
):
    start_and_kill(clone, number, everything, *command, SHELL=shell)
    again = run_in(clone, *command)
    assert "resuming from step" in again
    assert "generate" in stages_run(again)
    assert {key: md5 for key, md5 in outputs(clone).items() if key in clean} == clean
    assert list(clone.glob(".ckpt/train-*")) == [], "DVC has recorded the training, so that nothing of it is kept"


def test_a_finished_training_that_dvc_could_not_record_is_not_done_again(clone: Path, clean: dict[str, str]):
    # As when the disk fills up while DVC copies the outputs into its cache: they are there, and nowhere recorded.
    run_in(clone, sys.executable, "-m", "stages.train")
    (note,) = clone.glob(".ckpt/train-*/finished.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"workspace": "/a clone that is gone"}))
    again = run_in(clone, "dvc", "repro", "train")
    assert json.loads(note.read_text())["workspace"] == str(clone)
    assert "Running stage 'train'" in again
    assert "this very run was finished, but not recorded" in again
    assert {key: md5 for key, md5 in outputs(clone).items() if key.startswith("data/model")} == {
        key: md5 for key, md5 in clean.items() if key.startswith("data/model")
    }


def test_the_state_of_another_run_is_left_alone(clone: Path):
    start_and_kill(clone, signal.SIGKILL, True, "dvc", "repro", "train")
    (kept,) = clone.glob(".ckpt/train-*")

    def edit_code() -> None:
        with (clone / "ddpm/training/loop.py").open("a") as file:
            file.write("# a comment\n")

    for edit in (
        lambda: change(clone, {"train.lr": 0.003}),
        edit_code,
        lambda: change(clone, {"split.train_fraction": 0.8}),
    ):
        run_in(clone, "git", "checkout", "--quiet", "--force", "HEAD")
        edit()
        # A state of its own: it does not go on with the one that is there.
        again = start_and_kill(clone, signal.SIGKILL, True, "dvc", "repro", "train")
        assert "Running stage 'train'" in again
        assert "resuming from step" not in again
        assert kept.exists()
    assert "resuming from step" in run_in(clone, "dvc", "repro", "train")
    assert kept.exists(), "the end of a run leaves what is of others"
