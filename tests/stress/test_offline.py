"""Once the four original files are there, nothing needs a network: neither dvc nor any of the stages asks for one.

Nor does the use of the models that come with the package.
"""

import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from clones import SMALL, STAGES, Offline, small_run, stages_run


@pytest.fixture
def offline(tmp_path: Path) -> Offline:
    folder = tmp_path / "hook"
    folder.mkdir()
    return Offline(folder)


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


def test_the_pipeline_asks_for_no_network(tmp_path_factory: pytest.TempPathFactory, raw: Path):
    run = small_run(tmp_path_factory.getbasetemp(), raw)
    assert stages_run(run.output) == STAGES
    assert run.refused == []
    assert len(list((run.folder / "data/generated").iterdir())) == SMALL["generate.num_images"]


LOADING = """
import sys
import numpy as np
import ddpm

model = ddpm.load()
seven = model.sample(1, labels=7, steps=3)
found = model.inpaint(seven, np.arange(28) >= np.full((28, 1), 14), steps=3, resamplings=1)
assert np.array_equal(found[..., :14], seven[..., :14])
"""


def test_the_shipped_model_asks_for_no_network(offline: Offline, root: Path, tmp_path: Path):
    command = (sys.executable, "-m", "ddpm")
    digits, edited = tmp_path / "digits", tmp_path / "edited.png"
    inpaint = ("edit", "inpaint", "docs/images/digit.png", "--erase", "right", "--steps", "3", "--out", str(edited))
    for call in (
        (sys.executable, "-c", LOADING),
        (*command, "sample", "--count", "2", "--steps", "3", "--out", str(digits)),
        (*command, *inpaint),
    ):
        done = offline.run(root, *call)
        assert done.returncode == 0, done.stderr
    assert edited.is_file()
    assert offline.refused == []


def test_the_page_is_served_without_a_network(page: tuple[str, Offline]):
    address, offline = page
    for name in ("index.html", "denoise.onnx", "runtime/ort-wasm-simd-threaded.wasm"):
        with urlopen(address + name) as answer:
            assert answer.read(1)
    assert offline.refused == []
