"""A sweep through the real dvc and Optuna of a stage of one second: killed and called again it loses no trial."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clones import SETTINGS, commit, empty_repository, ended, run_in, surroundings, wait_for

GRAPH = """
stages:
  summary:
    cmd: python trial.py
    deps: [trial.py]
    params: [train.lr]
    outs: [data/previews]
    metrics:
      - metrics/headline.json:
          cache: false
"""
# It writes a distance a step, as a training does, and resumes where it was killed. A hopeless one takes longer than it
# is given to stop: dvc may miss a signal as it begins, and such a trial is to be stopped, not to end.
TRIAL = """
import json, math, os, re, time
from pathlib import Path

lr = float(re.search(r"lr: (\\S+)", Path("params.yaml").read_text())[1])
distance = 1 + abs(math.log10(lr) + 2)
file = Path(os.environ["DDPM_CKPT_DIR"]) / "train-1/files/previews/distance.csv"
file.parent.mkdir(parents=True, exist_ok=True)
rows = file.read_text().splitlines() if file.exists() else ["step,epoch,early_distance"]
for step in range(len(rows), 9):
    rows.append(f"{step},0.1,{distance}")
    part = file.with_suffix(".part")
    part.write_text("\\n".join(rows) + "\\n")
    part.replace(file)
    time.sleep(0.5 if distance < 2 else 20)
for folder in ("metrics", "data/previews"):
    Path(folder).mkdir(parents=True, exist_ok=True)
Path("data/previews/distance.csv").write_text(file.read_text())
numbers = {"fd_mnist": distance, "fd_mnist_low": distance - 0.1, "fd_mnist_high": distance + 0.1}
Path("metrics/headline.json").write_text(json.dumps(numbers))
"""
SPACE = ("train.lr=[1.0e-7, 0.01, log]", "--name", "lr", "--prune-after", "1")
SWEEP = (sys.executable, "-m", "tools.sweep", *SPACE)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "repository"
    empty_repository(folder)
    (folder / "params.yaml").write_bytes(SETTINGS.read_bytes())
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "trial.py").write_text(TRIAL)
    (folder / ".gitignore").write_text(".ckpt/\ndata/\n")
    (folder / ".dvcignore").write_text(".ckpt/\n")
    commit(folder, "toy")
    return folder


@pytest.fixture(scope="module")
def swept(repository: Path, root: Path) -> list[str]:
    """What three calls of a sweep of three trials printed: killed in the first, interrupted in the second, finished."""

    def distances(trial: int) -> Path:
        return repository / f".ckpt/sweeps/lr/{trial}/ckpt/train-1/files/previews/distance.csv"

    said = []
    for trial, number in ((0, signal.SIGKILL), (1, signal.SIGINT)):
        process = subprocess.Popen(
            (*SWEEP, "--trials", "3"),
            cwd=repository,
            env=surroundings(PYTHONPATH=str(root), DDPM_CKPT_DIR=""),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        wait_for(distances(trial).exists, process)
        os.kill(process.pid, number)
        said.append(process.communicate(timeout=300)[0])
    # What is left where the signal came as DVC wrote its locks.
    (repository / ".dvc/tmp/exps/rwlock").write_text("")
    said.append(run_in(repository, *SWEEP, "--trials", "3", PYTHONPATH=str(root), DDPM_CKPT_DIR=""))
    return said


def test_no_trial_is_lost_and_each_ends_once(swept: list[str], repository: Path):
    killed, interrupted, finished = swept
    assert "lr-0: train.lr=0.01\n" in killed
    assert "lr-0: train.lr=0.01\n  fd_mnist 1\n" in interrupted
    assert "lr-1: " in interrupted
    assert interrupted.rstrip().endswith("error: interrupted.")
    assert "lr-0: " not in finished
    assert finished.count("lr-1: ") == finished.count("lr-2: ") == 1


def test_a_killed_sweep_finds_its_trial_running_and_starts_no_second_one(swept: list[str], repository: Path):
    log = (repository / ".ckpt/sweeps/lr/0/log.txt").read_text()
    assert log.count("Running stage 'summary'") == 1


def test_hopeless_trials_stop_early_and_the_table_says_so(swept: list[str], repository: Path):
    assert swept[2].count("stopped early: worse than the median at this step") == 2
    table = swept[2][swept[2].index("trial") :].splitlines()
    rows = [line.split() for line in table if line.startswith(("0 ", "1 ", "2 "))]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert rows[0][1:] == ["0.01", "1", "0.9", "1.1", "best"]
    assert all("stopped early at step" in " ".join(row) for row in rows[1:])
    names = run_in(repository, "git", "for-each-ref", "--format=%(refname:lstrip=-1)", "refs/exps/*/*/lr-*")
    assert names.split() == ["lr-0"]
    assert run_in(repository, "git", "status", "--porcelain") == ""


def test_a_finished_sweep_runs_nothing_and_other_terms_are_refused(swept: list[str], repository: Path, root: Path):
    again = ended(repository, *SWEEP, "--trials", "3", PYTHONPATH=str(root))
    assert again.returncode == 0
    assert "lr-" not in again.stdout
    other = ended(repository, *SWEEP, "--metric", "recall_mnist", PYTHONPATH=str(root))
    assert other.returncode == 1
    assert other.stderr.startswith("error: the sweep lr was begun with other terms (metric), and trials of both do not")
    assert len(other.stderr.splitlines()) == 1
