import errno
import hashlib
import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest

from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile, one_sentence
from ddpm.utils.files import (
    atomic_folder,
    atomic_path,
    check_new_folder,
    load_arrays,
    read_json,
    save_arrays,
    scratch_array,
    sha256,
    significant,
    write_csv,
    write_json,
)


class Interruption(BaseException):
    """Something that ends a block, like a Ctrl-C."""


def test_a_file_appears_with_its_whole_content_and_its_folder(tmp_path: Path):
    path = tmp_path / "a" / "b" / "file"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interruption])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:  # noqa: PT012 (what raises is beside the point)
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError) as caught, atomic_path(path) as temporary:  # noqa: PT012
        temporary.symlink_to("/dev/full")
        temporary.write_text("new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_under_a_library_is_said_in_one_sentence():
    reason = r"^error: the disk is full \(No space left on device\): free some space"
    with pytest.raises(SystemExit, match=reason), one_sentence():
        raise RuntimeError("the compiler could not write: [Errno 28] No space left on device: '/tmp/cache/x'")
    with pytest.raises(RuntimeError, match="a bug"), one_sentence():
        raise RuntimeError("a bug")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_a_folder_that_cannot_be_flushed_is_left_at_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    def flush(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) or broken:
            raise OSError(number, os.strerror(number))

    broken = False
    monkeypatch.setattr(os, "fsync", flush)
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file").read_text() == "new"
    broken = True
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("newer")
    assert (tmp_path / "file").read_text() == "new"


def test_a_file_in_place_of_the_folder_is_an_os_error(tmp_path: Path):
    (tmp_path / "blocked").write_text("")
    with pytest.raises(OSError), atomic_path(tmp_path / "blocked" / "file") as temporary:
        temporary.write_text("new")
    with pytest.raises(OSError), atomic_folder(tmp_path / "blocked" / "folder"):
        pass


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path):
    path = tmp_path / "images"
    path.mkdir()
    (path / "old").write_text("")
    with atomic_folder(path) as temporary:
        (temporary / "new").write_text("1")
        assert [file.name for file in path.iterdir()] == ["old"]
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interruption])
def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: type[BaseException]):
    path = tmp_path / "images"
    path.mkdir()
    (path / "old").write_text("")
    with pytest.raises(error), atomic_folder(path) as temporary:  # noqa: PT012
        (temporary / "new").write_text("1")
        raise error
    assert [file.name for file in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_to_a_folder_stays_and_what_it_leads_to_is_replaced(tmp_path: Path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target/old").write_text("")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    for _ in range(2):
        with atomic_folder(link) as new:
            (new / "new").write_text("")
    assert link.is_symlink()
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["new"]
    assert {path.name for path in tmp_path.iterdir()} == {"link", "target"}


def test_what_a_killed_process_left_is_removed_though_it_is_a_link(tmp_path: Path):
    leftover = tmp_path / ".new.old.999999999.tmp"
    leftover.symlink_to(tmp_path)
    with atomic_path(tmp_path / "new") as temporary:
        temporary.write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_the_present_folder_is_no_file_to_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: \.: Is a directory\.$"), one_sentence(), atomic_path(Path()):
        pass


def test_what_cannot_be_written_in_a_folder_is_named_by_its_place(tmp_path: Path):
    path = tmp_path / "images"
    with pytest.raises(FileNotFoundError) as caught, atomic_folder(path) as temporary:
        (temporary / "none" / "a.png").write_text("")
    assert caught.value.filename == str(path / "none" / "a.png")
    with pytest.raises(FileNotFoundError) as caught, atomic_folder(path):
        (tmp_path / "elsewhere").read_text()
    assert caught.value.filename == str(tmp_path / "elsewhere")
    (tmp_path / ("x" * 250)).mkdir()
    with pytest.raises(OSError) as caught, atomic_folder(tmp_path / ("x" * 250)):
        pass  # the temporary name is longer than a name may be
    assert caught.value.filename == str(tmp_path / ("x" * 250))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x" * 250]


def test_what_is_there_is_no_new_folder_nor_is_the_present_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for path in (Path(), Path(".."), Path("a/.."), Path("a/../.."), tmp_path):
        with pytest.raises(DdpmError, match=f"^{re.escape(str(path))} is there already: name a new folder"):
            check_new_folder(path)
    for path in (Path("a"), Path("a/b"), tmp_path / "empty"):
        check_new_folder(path)


def test_json_keeps_the_order_of_the_keys(tmp_path: Path):
    write_json(tmp_path / "a.json", {"z": 1, "a": 0.1, "name": "ä"})
    assert list(json.loads((tmp_path / "a.json").read_text()).items()) == [("z", 1), ("a", 0.1), ("name", "ä")]
    assert (tmp_path / "a.json").read_text().endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number_and_leaves_the_old_file(tmp_path: Path, value: float):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError):
        write_json(path, {"x": value})
    assert json.loads(path.read_text()) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_read_as_written_and_anything_else_is_named(tmp_path: Path):
    path = tmp_path / "a.json"
    with pytest.raises(MissingFile, match=r"a\.json is missing"):
        read_json(path)
    write_json(path, {"a": 0.1, "b": [1, None, "x"]})
    assert read_json(path) == {"a": 0.1, "b": [1, None, "x"]}
    for damage in (b"", b"{", b"[1]", b"\xff", b"3"):
        path.write_bytes(damage)
        with pytest.raises(DamagedFile, match=r"a\.json is no JSON object"):
            read_json(path)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (1.23456789, 1.23457),
        (-0.000123456789, -0.000123457),
        (123456789.0, 123457000.0),
        (1 / 3, 0.333333),
        (0.0, 0.0),
        (123456789, 123456789),
        (True, True),
        ("1.23456789", "1.23456789"),
        (None, None),
    ],
)
def test_floats_and_only_they_keep_six_significant_digits(value: object, rounded: object):
    found = significant({"a": value, "b": [{"c": value}], "d": (value,)})
    assert found == {"a": rounded, "b": [{"c": rounded}], "d": [rounded]}
    assert type(found["a"]) is type(rounded)
    assert significant(found) == found


def test_sums_that_differ_in_their_last_bits_make_equal_files(tmp_path: Path):
    for name, value in (("a.json", sum([0.1] * 10)), ("b.json", 1.0)):
        write_json(tmp_path / name, significant({"value": value, "numpy": np.float64(value)}))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_table_has_a_header_and_replaces_the_old_one(tmp_path: Path):
    path = tmp_path / "a.csv"
    write_csv(path, ("image", "label"), [(1, 7), (2, "a,b")])
    assert path.read_bytes() == b'image,label\n1,7\n2,"a,b"\n'
    write_csv(path, ("image",), [])
    assert path.read_bytes() == b"image\n"


def test_sha256_is_that_of_the_contents_in_a_row(tmp_path: Path):
    contents = [os.urandom(3 << 20), b"", b"abc"]
    paths = [tmp_path / str(i) for i in range(3)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert sha256(*paths) == hashlib.sha256(b"".join(contents)).hexdigest()


def test_arrays_come_back_and_equal_arrays_are_equal_bytes(tmp_path: Path, rng: np.random.Generator):
    arrays = {"a": rng.normal(size=(3, 4)), "b": np.arange(5, dtype=np.uint8), "name": np.array("x")}
    save_arrays(tmp_path / "one.npz", **arrays)
    save_arrays(tmp_path / "two.npz", **arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    found = load_arrays(tmp_path / "one.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_the_bytes_of_arrays_are_those_of_every_release_of_python(tmp_path: Path):
    # By 3.11.2, 3.11.7, 3.12.1 and 3.13.0; np.savez writes others by the first than by the rest.
    arrays = {"images": np.arange(6, dtype=np.uint8).reshape(1, 2, 3), "names": np.array(["a", "bc"]), "scale": 0.5}
    save_arrays(tmp_path / "x.npz", **arrays)
    assert sha256(tmp_path / "x.npz") == "1b9fd9d3acb5c4bb3f04402966c39804dcfdae94fc22fcee70e04a93a5c49658"


@pytest.mark.parametrize("error", [MemoryError("8 GiB"), OSError(errno.EMFILE, "Too many open files", "x.npz")])
def test_arrays_that_the_machine_cannot_read_are_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(type(error)) as caught:
        load_arrays(tmp_path / "x.npz")
    assert caught.value is error


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot take space in advance")
def test_room_for_many_images_is_taken_before_they_are_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    taken = scratch_array((3, 1000, 1000), tmp_path, 1000)
    assert taken.shape == (3, 1000, 1000)
    assert not taken.any()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    reason = rf"^error: {re.escape(str(tmp_path))} could not be written, the disk is full"
    with pytest.raises(SystemExit, match=reason), one_sentence():
        scratch_array((3, 1000, 1000), tmp_path, 1000)
    assert list(tmp_path.iterdir()) == []


def test_damaged_arrays_are_named(tmp_path: Path):
    path = tmp_path / "x.npz"
    with pytest.raises(MissingFile, match=r"x\.npz is missing"):
        load_arrays(path)
    save_arrays(path, values=np.arange(1000))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[4000] ^= 1
    for damage in (b"", b"text", content[:-30], content[:500], bytes(flipped)):
        path.write_bytes(damage)
        with pytest.raises(DamagedFile, match=r"x\.npz is damaged"):
            load_arrays(path)


def test_arrays_that_would_execute_code_are_refused(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez(path, values=np.array([object()], dtype=object))
    with pytest.raises(DamagedFile, match=r"x\.npz"):
        load_arrays(path)


def test_a_library_that_fails_to_clean_up_after_an_interrupt_does_not_hide_it(tmp_path: Path):
    def work() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            (tmp_path / "journal.lock.rename").unlink()  # as Optuna's lock does

    with pytest.raises(SystemExit, match=r"^error: interrupted\.$"), one_sentence():
        work()
