"""`python -m benchmarks.grid` queues real experiments, goes on where it was killed, and leaves the repository alone."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clones import end_processes, ended, run_in, small_run, surroundings, wait_for

from benchmarks.grid import processes

pytestmark = pytest.mark.long

GRID = [
    *(sys.executable, "-m", "benchmarks.grid", "--schedules", "cosine", "flow", "--targets", "v"),
    *("--weightings", "simple", "--seeds", "1", "2", "--epochs", "0.02", "--images", "160", "--json", "found.json"),
    *("--poll", "5"),
]


@pytest.fixture
def repository(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, raw: Path) -> Iterator[Path]:
    folder = tmp_path / "repository"
    shutil.copytree(small_run(tmp_path_factory.getbasetemp(), raw).folder, folder, symlinks=True)
    yield folder
    for clone in (folder / ".ckpt/grid").glob("*"):
        ended(clone, "dvc", "queue", "stop", "--kill")
    end_processes(folder)


def test_a_killed_grid_goes_on_and_what_it_has_is_not_repeated(repository: Path):
    def trainings() -> set[Path]:
        return set(repository.glob(".ckpt/grid/*/.dvc/tmp/exps/*/data/model/log.csv"))

    before = run_in(repository, "git", "show-ref")
    killed = subprocess.Popen(GRID, cwd=repository, env=surroundings(), stdout=subprocess.DEVNULL)
    wait_for(trainings, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    # Experiments whose workers are killed run for ever by DVC's account.
    earlier = trainings()
    going_on = subprocess.Popen([*GRID, "--plot", "found.png"], cwd=repository, env=surroundings())
    try:
        wait_for(lambda: trainings() - earlier, going_on)
        left = processes(repository, "queue-worker")
        assert left
        for worker in left:
            worker.kill()
        assert going_on.wait(timeout=900) == 0
    finally:
        going_on.kill()
    found = json.loads((repository / "found.json").read_text())
    assert {(row["schedule"], row["seed"]) for row in found["rows"]} == {
        (a, b) for a in ("cosine", "flow") for b in (1, 2)
    }
    assert len(found["rows"]) == 4 * 4
    assert all(0 < row["fd_mnist"] < 10_000 and row["nfe"] in (19, 20) for row in found["rows"])
    assert [(row["schedule"], row["target"]) for row in found["cells"]] == [("cosine", "v"), ("flow", "v")]
    assert (repository / "found.png").stat().st_size > 10_000
    (clone,) = (repository / ".ckpt/grid").iterdir()
    done = run_in(clone, "dvc", "exp", "list", "--name-only").split()
    assert done
    # Nothing is left to do, and nothing of it happened in the repository itself.
    run_in(repository, *GRID)
    assert run_in(clone, "dvc", "exp", "list", "--name-only").split() == done
    assert json.loads((repository / "found.json").read_text())["rows"] == found["rows"]
    assert run_in(repository, "git", "show-ref") == before
    assert run_in(repository, "git", "status", "--porcelain").split() == ["??", "found.json", "??", "found.png"]
