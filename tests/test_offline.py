"""Once the four original files are there, nothing needs a network: neither dvc nor any of the stages asks for one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clones import SMALL, STAGES, change, copy_working_tree, ended, stages_run, start_history

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

    def run(self, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        return ended(folder, *command, PYTHONPATH=str(self._folder), REFUSED=str(self._log))

    @property
    def refused(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offline:
    # Under the first two DVC would not look for newer versions of itself.
    for name in ("CI", "DVC_TEST", "DDPM_CKPT_DIR"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "hook"
    folder.mkdir()
    return Offline(folder)


def without_interfaces() -> tuple[str, ...]:
    """Runs a command where there is no network, for what is no Python; empty where this user may not do that."""
    prefix = ("unshare", "--map-root-user", "--net")
    if shutil.which("unshare") and subprocess.run((*prefix, "true"), capture_output=True, check=False).returncode == 0:
        return prefix
    return ()


@pytest.mark.parametrize(
    ("code", "event"),
    [
        ("import urllib.request as u; u.urlopen('http://example.org', timeout=5)", "socket.getaddrinfo"),
        ("import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)", "socket."),
        ("import socket; socket.socket().bind(('0.0.0.0', 0))", "socket.bind"),
        ("import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))", "socket.sendto"),
    ],
)
def test_a_connection_is_noticed(offline: Offline, tmp_path: Path, code: str, event: str):
    done = offline.run(tmp_path, sys.executable, "-c", code)
    assert done.returncode == 1
    assert "no network in this test" in done.stderr
    assert offline.refused[0].startswith(event)


def test_what_stays_on_this_machine_is_not_refused(offline: Offline, tmp_path: Path):
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    done = offline.run(tmp_path, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert offline.refused == []


def test_the_pipeline_asks_for_no_network(offline: Offline, tmp_path: Path, raw: Path):
    clone = tmp_path / "clone"
    copy_working_tree(clone)
    change(clone, SMALL)
    shutil.copytree(raw, clone / "data/raw")
    start_history(clone, "offline")
    done = offline.run(clone, *without_interfaces(), "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_run(done.stdout) == STAGES
    assert offline.refused == []
    assert len(list((clone / "data/generated").iterdir())) == SMALL["generate.num_images"]
