"""Experiments that run beside one another, each in a copy of its own, give the bits that they give alone."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clones import change, end_processes, ended, outputs, outputs_of, run_in, small_run, stages_run

pytestmark = pytest.mark.long

# The number of threads can change the last bits: one on all sides, which two runs on two cores also need to be quick.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
QUEUED = {"fast": {"train.lr": 0.02}, "slow": {"train.lr": 0.005}}
TEMPORARY = {"another": {"generate.replicate": 1}}
SECONDS = 900


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, raw: Path) -> Path:
    return small_run(tmp_path_factory.getbasetemp(), raw).folder


@pytest.fixture(scope="module")
def beside(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone in which two queued experiments and one with --temp have run."""
    folder = tmp_path_factory.mktemp("beside") / "clone"
    shutil.copytree(run, folder, symlinks=True)
    try:
        for name, changes in QUEUED.items():
            run_in(folder, "dvc", "exp", "run", "--queue", "--name", name, *options(changes), "generate")
        # The code that was queued is the code that runs: what the folder holds by then does not count.
        stage = folder / "stages/generate.py"
        queued = stage.read_text()
        stage.write_text("raise SystemExit('the code of the original folder')\n")
        run_in(folder, "dvc", "queue", "start", "--jobs", "2", **ONE_THREAD)
        wait(folder)
        stage.write_text(queued)
        for name, changes in TEMPORARY.items():
            output = run_in(
                folder, "dvc", "exp", "run", "--temp", "--name", name, *options(changes), "generate", **ONE_THREAD
            )
            assert stages_run(output) == ["generate"]
        yield folder
    finally:
        ended(folder, "dvc", "queue", "stop", "--kill")
        end_processes(folder)


def options(changes: dict[str, float]) -> list[str]:
    return [part for key, value in changes.items() for part in ("-S", f"{key}={value}")]


def wait(folder: Path) -> None:
    """Wait until all queued experiments have ended: one that a worker takes up is in no list for a moment."""
    last = time.monotonic() + SECONDS
    while time.monotonic() < last:
        status = run_in(folder, "dvc", "queue", "status")
        if status.count("Success") + status.count("Failed") == len(QUEUED):
            return
        time.sleep(5)  # each question takes two seconds of a core
    logs = [path.read_text() for path in sorted((folder / ".dvc/tmp/exps/celery").glob("*.out"))]
    pytest.fail("\n".join([f"after {SECONDS} s: {status}", *logs]))


@pytest.mark.parametrize("name", [*QUEUED, *TEMPORARY])
def test_an_experiment_gives_the_bits_that_it_gives_alone(run: Path, beside: Path, tmp_path: Path, name: str):
    alone = tmp_path / "alone"
    shutil.copytree(run, alone, symlinks=True)
    changes = (QUEUED | TEMPORARY)[name]
    change(alone, changes)
    expected = ["train", "generate"] if name in QUEUED else ["generate"]
    assert stages_run(run_in(alone, "dvc", "repro", "generate", **ONE_THREAD)) == expected
    (reference,) = [line for line in references(beside) if line.endswith(f"/{name}")]
    found = outputs_of(run_in(beside, "git", "show", f"{reference}:dvc.lock"))
    assert found == outputs(alone)
    assert found["data/generated"] != outputs(run)["data/generated"]


def references(folder: Path) -> list[str]:
    return run_in(folder, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()


def test_the_queue_tells_of_success_and_the_folder_is_as_it_was(run: Path, beside: Path):
    status = run_in(beside, "dvc", "queue", "status")
    assert status.count("Success") == len(QUEUED)
    assert run_in(beside, "git", "status", "--porcelain") == ""
    assert outputs(beside) == outputs(run)
