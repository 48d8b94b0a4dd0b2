"""A sweep through the real dvc: killed and called again it loses no trial, and a hopeless one stops early."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clones import SmallRun, change, commit, ended, run_in, small_run, surroundings, wait_for

from tools import sweep as tool

pytestmark = pytest.mark.long

COMMAND = (
    *(sys.executable, "-m", "tools.sweep", "train.lr=[1.0e-7, 0.01, log]", "--name", "lr", "--prune-after", "1"),
    *("--trials", "3"),
)


@pytest.fixture(scope="module")
def repository(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed small run whose training takes some seconds and measures early distances."""
    small: SmallRun = small_run(tmp_path_factory.getbasetemp(), raw)
    folder = tmp_path_factory.mktemp("sweep") / "repository"
    run_in(small.folder.parent, "cp", "-r", str(small.folder), str(folder))
    changes = {"train.epochs": 0.12, "train.distance_every": 40, "train.distance_images": 256, "fid.bootstrap": 20}
    change(folder, changes | {"runtime.checkpoint_every_seconds": 0.5})
    commit(folder, "for a sweep")
    return folder


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        COMMAND, cwd=folder, env=surroundings(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def kept(folder: Path, trial: int, name: str) -> list[Path]:
    return list((folder / f".ckpt/sweeps/lr/{trial}/ckpt").glob(f"train-*/{name}"))


@pytest.fixture(scope="module")
def swept(repository: Path) -> list[str]:
    """What the sweep printed in the end, killed in its first trial and interrupted in its second."""
    killed = start(repository)
    wait_for(lambda: kept(repository, 0, "state.safetensors"), killed)
    killed.kill()
    killed.communicate()
    interrupted = start(repository)
    wait_for(lambda: kept(repository, 1, "files/log.csv"), interrupted)
    os.kill(interrupted.pid, signal.SIGINT)
    said, _ = interrupted.communicate(timeout=300)
    assert "error: interrupted." in said
    done = ended(repository, *COMMAND)
    assert done.returncode == 0, done.stdout + done.stderr
    return [said, done.stdout]


def test_each_trial_ends_once_and_the_first_has_the_present_settings(swept: list[str], repository: Path):
    first, last = swept
    assert "lr-0: train.lr=0.01\n" in first
    assert first.count("lr-0: ") == 1
    assert [last.count(f"lr-{number}: ") for number in range(4)] == [0, 1, 1, 0]
    refs = run_in(repository, "git", "for-each-ref", "--format=%(refname:lstrip=-1)", "refs/exps/*/*/lr-*").split()
    pruned = last.count("stopped early: worse than the median")
    assert len(refs) == 3 - pruned
    assert pruned >= 1


def test_the_table_names_the_best_and_where_the_hopeless_stopped(swept: list[str]):
    rows = [line.split() for line in swept[1].splitlines() if line.startswith(("0 ", "1 ", "2 "))]
    assert sorted(row[0] for row in rows) == ["0", "1", "2"]
    assert rows[0][0] == "0"
    assert rows[0][-1] == "best"
    assert any("stopped early at step" in " ".join(row) for row in rows)


def test_a_finished_sweep_runs_nothing_and_other_terms_are_refused(swept: list[str], repository: Path):
    again = ended(repository, *COMMAND)
    assert again.returncode == 0
    assert "lr-" not in again.stdout
    other = ended(repository, *COMMAND[:3], "train.weight_decay=0", *COMMAND[3:])
    assert other.returncode == 1
    assert "the sweep lr was begun with other terms (space)" in other.stderr


def test_the_workspace_is_as_it_was_and_the_best_can_be_applied(swept: list[str], repository: Path):
    assert run_in(repository, "git", "status", "--porcelain") == ""
    run_in(repository, "dvc", "exp", "apply", "lr-0")
    assert "up to date" in run_in(repository, "dvc", "status", tool.TARGET)
