"""The image, built and run: the pipeline in it, stopped, killed and run again.

Needs a container engine and compose, and the base image or a network to fetch it. $DDPM_COMPOSE_FILES, a list as in
COMPOSE_FILE, adds what this machine's engine asks for, such as the host's network.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clones import change, copy_working_tree, ended, outputs, run_in, stages_run, start_history, surroundings

from presets.__main__ import apply


def compose() -> list[str]:
    """The command that speaks to an engine. Skips where there is none."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            break
    else:
        pytest.skip("neither docker compose nor docker-compose is installed")
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.skip("no container engine answers: docker info fails")
    return command


class Container:
    """Runs a service of docker-compose.yaml on a clone of the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.command = folder, compose()
        # Root may write anywhere: with its number nothing would be learnt about owners.
        self.user, group = (os.getuid(), os.getgid()) if os.getuid() else (1000, 1000)
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, self.user, group, follow_symlinks=False)
        # Another tag than the user's, which a build for another user would replace, and which a user may replace.
        image = folder.with_name("image.yaml")
        services = {name: {"image": "ddpm-mnist-test"} for name in ("repro", "repro-cpu", "test")}
        image.write_text(json.dumps({"services": services}))
        more = os.environ.get("DDPM_COMPOSE_FILES")
        self.variables = {
            "HOST_UID": str(self.user),
            "HOST_GID": str(group),
            "COMPOSE_PROJECT_NAME": f"ddpm-test-{os.getpid()}",
            "COMPOSE_FILE": ":".join(filter(None, ("docker-compose.yaml", str(image), more))),
        }

    def compose(self, *arguments: str) -> str:
        return run_in(self.folder, *self.command, *arguments, **self.variables)

    def started(self, name: str) -> None:
        """Begin the pipeline; wait until it trains, which it says in a file that an earlier run may have left."""
        began, until = time.time(), time.monotonic() + 600
        self.compose("run", "--detach", "--name", name, "repro-cpu")
        while not any(path.stat().st_mtime > began for path in self.folder.glob(".ckpt/train-*/files/log.csv")):
            running = run_in(self.folder, "docker", "inspect", "--format", "{{.State.Running}}", name).strip() == "true"
            if not running or time.monotonic() > until:
                pytest.fail(run_in(self.folder, "docker", "logs", name))
            time.sleep(0.2)

    def ended(self, name: str) -> str:
        """What a container that has stopped said; it is removed."""
        run_in(self.folder, "docker", "wait", name)
        said = run_in(self.folder, "docker", "logs", name)
        run_in(self.folder, "docker", "rm", name)
        return said


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    folder = tmp_path_factory.mktemp("container") / "clone"
    compose()
    copy_working_tree(folder)
    apply("smoke", folder / "params.yaml")
    change(folder, {"train.epochs": 0.5, "runtime.processes": 1})
    start_history(folder, "smoke")
    found = Container(folder)
    done = subprocess.run(
        [*found.command, "build"], cwd=folder, env=surroundings(**found.variables), capture_output=True, text=True
    )
    if done.returncode and ("pull access" in done.stderr or "registry" in done.stderr or "lookup" in done.stderr):
        pytest.skip(f"the base image is neither here nor to be fetched: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    yield found
    found.compose("down", "--volumes", "--remove-orphans")


def test_a_stopped_run_saves_and_a_killed_one_blocks_no_other(container: Container):
    container.started("ddpm-test-stopped")
    run_in(container.folder, "docker", "stop", "ddpm-test-stopped")
    assert "the next `dvc repro` resumes there" in container.ended("ddpm-test-stopped")

    container.started("ddpm-test-killed")
    run_in(container.folder, "docker", "kill", "--signal", "KILL", "ddpm-test-killed")
    container.ended("ddpm-test-killed")

    said = container.compose("run", "--rm", "-T", "repro-cpu")
    assert "resuming from step" in said
    assert stages_run(said)[0] == "train"
    assert json.loads((container.folder / "metrics/headline.json").read_text())["fd_mnist"] > 0
    assert stages_run(container.compose("run", "--rm", "-T", "repro-cpu")) == []
    owners = {path.stat().st_uid for path in container.folder.rglob("*")}
    assert owners == {container.user}
    assert len(outputs(container.folder)) > 10


def test_the_volume_is_the_users_and_mnist_is_in_the_image_but_npm_is_not(container: Container):
    looks = "command -v npm; touch /home/ddpm/.cache/mine && ls /home/ddpm/.cache $DDPM_MNIST_DIR"
    said = container.compose("run", "--rm", "-T", "repro-cpu", "sh", "-c", looks).split()
    assert "mine" in said
    assert len([name for name in said if name.endswith("-ubyte.gz")]) == 4
    assert not [name for name in said if name.endswith("/npm")]


def test_without_a_gpu_the_service_for_one_says_so_and_the_other_runs(container: Container):
    if shutil.which("nvidia-smi"):
        pytest.skip("there is an NVIDIA device")
    done = ended(container.folder, *container.command, "run", "--rm", "-T", "repro", "true", **container.variables)
    assert done.returncode != 0
    assert "nvidia" in done.stderr
    container.compose("run", "--rm", "-T", "repro-cpu", "true")
