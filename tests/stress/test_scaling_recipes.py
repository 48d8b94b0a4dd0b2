"""The recipes of docs/scaling.md, as far as one machine can try them: ranks on two nodes, a job's clone, Slurm."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clones import change, commit, ended, outputs, run_in, small_run, stages_run, surroundings

pytestmark = pytest.mark.long

TRAINED = ("data/model", "data/split")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, raw: Path) -> Path:
    """The small run, by one process, with a remote, everything pushed."""
    place = tmp_path_factory.mktemp("scaling")
    folder = place / "repository"
    shutil.copytree(small_run(tmp_path_factory.getbasetemp(), raw).folder, folder, symlinks=True)
    run_in(folder, "dvc", "remote", "add", "--default", "team", str(place / "remote"))
    commit(folder, "a remote")
    run_in(folder, "dvc", "push")
    return folder


def untrained(repository: Path, folder: Path) -> Path:
    """A clone in which the training is still to be done."""
    run_in(folder.parent, "git", "clone", "--quiet", str(repository), str(folder))
    run_in(folder, "dvc", "pull", "--quiet", "split")
    lock = (folder / "dvc.lock").read_text()
    start, end = lock.index("\n  train:\n"), lock.index("\n  visualize:\n")
    (folder / "dvc.lock").write_text(lock[:start] + lock[end:])
    return folder


def trained(folder: Path) -> dict[str, str]:
    return {path: md5 for path, md5 in outputs(folder).items() if path in TRAINED}


def two_nodes(folder: Path) -> list[subprocess.Popen[str]]:
    """The recipe of torchrun, on two "nodes" of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{probe.getsockname()[1]}"
    node = (
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--local-addr", "127.0.0.1"),
        *("--no-python", "docs/scaling/rank.sh"),
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(node, cwd=folder, env=surroundings(), **pipes) for _ in range(2)]  # type: ignore[call-overload]


def test_ranks_on_two_nodes_train_to_the_recorded_bits(repository: Path, tmp_path: Path):
    folder = untrained(repository, tmp_path / "clone")
    nodes = two_nodes(folder)
    said = [process.communicate(timeout=600)[0] for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], "\n".join(said)
    assert "".join(said).count("Running stage 'train'") == 1
    assert trained(folder) == trained(repository)
    assert run_in(folder, "dvc", "status", "train").endswith("up to date.\n")


def test_ctrl_c_at_either_node_stops_the_training_and_one_process_ends_it(repository: Path, tmp_path: Path):
    folder = untrained(repository, tmp_path / "clone")
    change(folder, {"train.epochs": 1.0, "runtime.checkpoint_every_seconds": 0.2})
    for number in range(2):
        nodes, kept = two_nodes(folder), sorted(folder.glob(".ckpt/train-*/state.safetensors"))
        before = [path.stat().st_mtime_ns for path in kept]
        try:
            # Past where the first one stopped.
            while before == [path.stat().st_mtime_ns for path in folder.glob(".ckpt/train-*/state.safetensors")]:
                assert all(process.poll() is None for process in nodes), "a node ended before it was interrupted"
                time.sleep(0.05)
            nodes[number].send_signal(signal.SIGINT)
            said = "\n".join(process.communicate(timeout=120)[0] for process in nodes)
        finally:
            for process in nodes:
                process.kill()
        assert all(process.returncode for process in nodes), said
        assert "stopped at step" in said
        assert not (folder / "data/model/last.safetensors").exists()
    assert "resuming" in run_in(folder, "dvc", "repro", "--no-run-cache", "train")
    found = trained(folder)
    shutil.rmtree(folder / ".ckpt")
    assert "resuming" not in run_in(folder, "dvc", "repro", "--no-run-cache", "--force", "--single-item", "train")
    assert trained(folder) == found != trained(repository)


def test_an_experiment_in_a_clone_of_its_own_comes_back_by_git_and_the_remote(repository: Path, tmp_path: Path):
    script = str(repository / "docs/scaling/experiment.sh")
    said = run_in(tmp_path, script, str(repository), "other", "-S", "generate.replicate=1", TMPDIR=str(tmp_path))
    assert "train" not in stages_run(said)
    assert "generate" in stages_run(said)
    assert list(tmp_path.glob("tmp.*")) == []
    run_in(tmp_path, "git", "clone", "--quiet", str(repository), "mate")
    mate = tmp_path / "mate"
    run_in(mate, "dvc", "exp", "pull", "origin", "other")
    run_in(mate, "dvc", "exp", "apply", "other")
    run_in(mate, "dvc", "pull")
    assert stages_run(run_in(mate, "dvc", "repro")) == []
    assert outputs(mate)["data/generated"] != outputs(repository)["data/generated"]


@pytest.fixture
def slurm() -> None:
    if not shutil.which("sbatch") or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("no Slurm answers here: sinfo fails")


@pytest.mark.usefixtures("slurm")
def test_slurm_trains_to_the_recorded_bits(repository: Path, tmp_path: Path):
    folder = untrained(repository, tmp_path / "clone")
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    tasks = ("--nodes=1", "--ntasks-per-node=2", "--output=job.log")
    done = ended(folder, "sbatch", "--wait", *tasks, "docs/scaling/train.sbatch")
    log = (folder / "job.log").read_text()
    assert done.returncode == 0, done.stderr + log
    assert log.count("training on") == 1
    assert trained(folder) == trained(repository)
