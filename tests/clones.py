"""Temporary clones of the repository for tests that go through the real dvc, and what its commands did there."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil
from filelock import FileLock
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from tools import reproduce

REPOSITORY = Path(__file__).parents[1]
# The settings of the tests: what a user tries in params.yaml is not what they are about.
SETTINGS = Path(__file__).with_name("params.yaml")
STAGES = [
    *("fetch_mnist", "split", "train", "generate", "classifier", "reference", "fid", "likelihood", "visualize"),
    *("export", "summary", "report"),
]
IDENTITY = {f"GIT_{who}_{what}": "tester@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

# A network and a run that train in about a second.
TINY = {
    "model.clusters": 1,
    "model.base_channels": 8,
    "model.channel_multipliers": [1, 2],
    "model.blocks_per_level": 1,
    "model.mid_blocks": 1,
    "model.patch_size": 4,
    "diffusion.timesteps": 100,
    "train.epochs": 1.25,
    "train.batch_size": 32,
    "train.warmup_steps": 2,
    "train.log_every": 4,
    "train.validate_every": 5,
    "train.validation_images": 48,
    "train.preview_every": 0,
    "train.preview_steps": 2,
    "train.distance_images": 256,
}

# The whole graph with as little work as its stages take.
SMALL = TINY | {
    "model.clusters": 3,
    "train.epochs": 0.02,
    "train.validate_every": 20,
    "generate.num_images": 160,
    "generate.steps": 3,
    "generate.trajectories": 4,
    "fid.bootstrap": 0,
    "fid.extractors": ["mnist"],
    "likelihood.images": 50,
    "likelihood.times_per_image": 1,
    "export.formats": ["onnx"],
    "export.page": "off",
    "runtime.processes": 1,
}


def surroundings(**variables: str) -> dict[str, str]:
    """A user's environment: this environment's programs first, a Git user, and what is asked for."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **IDENTITY, "PATH": path, "DVC_NO_ANALYTICS": "1", **variables}
    for name in ("DVC_STAGE", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(name, None)
    return environment


def ended(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """How a command ended that ran as a user would run it."""
    # Not through pipes: the workers of `dvc queue start` keep them open, and reading would wait for their end.
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        done = subprocess.run(
            command, cwd=folder, env=surroundings(**variables), stdout=output, stderr=errors, check=False, timeout=900
        )
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, output.read(), errors.read())


def run_in(folder: Path, *command: str, **variables: str) -> str:
    """Run a command that must succeed; returns what it printed."""
    done = ended(folder, *command, **variables)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def stages_run(output: str) -> list[str]:
    """The stages that dvc says it ran."""
    return [name for name in STAGES if f"Running stage '{name}'" in output]


def outputs(folder: Path) -> dict[str, str]:
    """The MD5 of every output in dvc.lock that does not depend on the clock."""
    return outputs_of((folder / "dvc.lock").read_text())


def outputs_of(lock: str) -> dict[str, str]:
    """The same for the text of a dvc.lock."""
    return {path: md5 for path, md5 in reproduce.outputs(lock).items() if path not in reproduce.TIMINGS}


def change(folder: Path, changes: Mapping[str, Any]) -> None:
    """Write values behind dotted keys of params.yaml; comments are kept."""
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    for key, value in changes.items():
        section, name = key.split(".")
        assert name in values[section]
        if isinstance(value, list):
            # On one line, as the file has it: where it was on several, `-S KEY=[]` would break the lines below.
            value = CommentedSeq(value)
            value.fa.set_flow_style()
        values[section][name] = value
    yaml.dump(values, folder / "params.yaml")


def copy_working_tree(folder: Path) -> None:
    """Copy the files of the working tree, but no results of earlier runs."""
    listed = run_in(REPOSITORY, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    shutil.copy(SETTINGS, folder)
    # The user's remotes and shared cache are theirs.
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    autostage = false\n")
    for stale in [folder / "dvc.lock", *(folder / "metrics").glob("*.*")]:
        stale.unlink(missing_ok=True)


def empty_repository(folder: Path) -> None:
    """A new folder under Git and DVC."""
    folder.mkdir()
    for program in ("git", "dvc"):
        run_in(folder, program, "init", "--quiet")


def start_history(folder: Path, message: str) -> None:
    """Make a Git repository of a folder, all of it committed."""
    run_in(folder, "git", "init", "--quiet", "--initial-branch", "main")
    commit(folder, message)


def commit(folder: Path, message: str) -> None:
    run_in(folder, "git", "add", "--all")
    run_in(folder, "git", "commit", "--quiet", "--message", message)


# Python runs this at the start of every process: what would leave this machine is noted and refused.
HOOK = """
import os
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"):
        socket, address = arguments[:2]
        # Sockets of other families do not leave the machine; those that are connected were looked at before.
        host = address[0] if socket.family.name in ("AF_INET", "AF_INET6") and address else "localhost"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0] or "localhost"
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in ("localhost", "::1") and not host.startswith("127."):
        with open(os.environ["REFUSED"], "a") as log:
            log.write(f"{event} {host} by {sys.argv}\\n")
        raise OSError(f"no network in this test: {event} {host}")

sys.addaudithook(refuse)
"""


class Offline:
    """Runs commands that are refused every connection, and knows what was refused."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._log = folder, folder / "refused.log"
        (folder / "sitecustomize.py").write_text(HOOK)

    @property
    def variables(self) -> dict[str, str]:
        """Of the environment of such a command."""
        # With CI or DVC_TEST set DVC would not look for newer versions of itself.
        nothing = dict.fromkeys(("CI", "DVC_TEST", "DDPM_CKPT_DIR"), "")
        return {"PYTHONPATH": str(self._folder), "REFUSED": str(self._log), **nothing}

    def run(self, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        return ended(folder, *command, **self.variables)

    @property
    def refused(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


def without_interfaces() -> tuple[str, ...]:
    """Runs a command where there is no network, for what is no Python; empty where this user may not do that."""
    prefix = ("unshare", "--map-root-user", "--net")
    if shutil.which("unshare") and subprocess.run((*prefix, "true"), capture_output=True, check=False).returncode == 0:
        return prefix
    return ()


@dataclass(frozen=True)
class SmallRun:
    """A repository with a committed run of the SMALL settings, what `dvc repro` printed, what it was refused."""

    folder: Path
    output: str
    refused: list[str]


@cache
def small_run(place: Path, raw: Path) -> SmallRun:
    """The pipeline from the original files to the figures, without a network; made once a session.

    Copy its folder before changing it.
    """
    # Workers of xdist have places of their own, beside one another: the first that comes makes it for all.
    shared = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    folder, hook, log = (shared / name for name in ("small-run", "small-run-hook", "small-run.log"))
    with FileLock(shared / "small-run.lock"):
        if not log.exists():
            hook.mkdir()
            copy_working_tree(folder)
            change(folder, SMALL)
            shutil.copytree(raw, folder / "data/raw")
            start_history(folder, "small")
            done = Offline(hook).run(folder, *without_interfaces(), "dvc", "repro")
            assert done.returncode == 0, done.stdout + done.stderr
            commit(folder, "results")
            log.write_text(done.stdout)
    return SmallRun(folder, log.read_text(), Offline(hook).refused)


def wait_for(
    happened: Callable[[], object],
    process: subprocess.Popen[Any] | None = None,
    seconds: int = 300,
    every: float = 0.05,
) -> None:
    """Until it has happened, looking ``every`` so many seconds.

    Fails after ``seconds``, and where the process has ended before.
    """
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None or happened(), "it ended before what was waited for"
        time.sleep(every)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Those whose working folder this is, or lies in it; `info` holds that and the command line."""
    every = psutil.process_iter(["cwd", "cmdline"])
    return [process for process in every if Path(process.info["cwd"] or "/").is_relative_to(folder)]


def end_processes(folder: Path) -> None:
    """Wait for those that work in a folder to end, as the workers of a queue do; those that do not are killed."""
    for process in psutil.wait_procs(processes_in(folder), timeout=20)[1]:
        process.kill()
