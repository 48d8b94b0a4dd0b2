"""The parts of tools/doctor.py that need no dvc; of real repositories: tests/stress/test_damaged_cache.py."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from ddpm.utils.errors import DdpmError
from tools.doctor import examine, owners, read_cache, some


def store(cache: Path, content: bytes, end: str = "") -> str:
    """Put an object into a cache; returns its name."""
    name = hashlib.md5(content).hexdigest() + end
    path = cache / "files/md5" / name[:2] / name[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def test_damaged_objects_are_found_by_their_bytes(tmp_path: Path):
    intact, changed, cut = (store(tmp_path, text) for text in (b"intact", b"changed", b"cut"))
    folder = store(tmp_path, b"[]", ".dir")
    objects, damaged = read_cache(tmp_path)
    assert set(objects) == {intact, changed, cut, folder}
    assert damaged == {}
    objects[changed].write_bytes(b"Changed")
    objects[cut].write_bytes(b"")
    objects[folder].write_bytes(b"[")
    (tmp_path / "files/md5" / intact[:2] / f"{intact[2:]}.tmp").touch()  # an object that is being written
    _, damaged = read_cache(tmp_path)
    assert damaged == {
        changed: hashlib.md5(b"Changed").hexdigest(),
        cut: hashlib.md5(b"").hexdigest(),
        folder: hashlib.md5(b"[").hexdigest(),
    }


def test_an_object_that_cannot_be_read_is_damaged(tmp_path: Path):
    name = store(tmp_path, b"content")
    objects, _ = read_cache(tmp_path)
    objects[name].unlink()
    objects[name].mkdir()
    assert read_cache(tmp_path)[1] == {name: ""}


def test_objects_are_named_by_the_outputs_they_are_stored_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache, top = tmp_path / "cache", tmp_path / "top"
    folder = store(cache, json.dumps([{"md5": "0a", "relpath": "1.png"}]).encode(), ".dir")
    (top / "sub").mkdir(parents=True)
    (top / "dvc.lock").write_text(f"stages: {{a: {{outs: [{{path: data/x, md5: {folder}}}, {{path: y, md5: 0b}}]}}}}")
    (top / "sub/own.dvc").write_text("outs: [{path: own, md5: '0c'}]")
    monkeypatch.chdir(top)
    os.system("git init --quiet")
    objects, _ = read_cache(cache)
    assert owners(objects) == {folder: ["data/x"], "0a": ["data/x/1.png"], "0b": ["y"], "0c": ["sub/own"]}


def test_long_lists_of_names_are_counted():
    assert some([]) == ""
    assert some(["a", "b"], shown=2) == "a, b"
    assert some(["a", "b", "c", "d"], shown=2) == "a, b and 2 more"


def test_outside_a_dvc_repository_it_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DdpmError, match=r"holds dvc\.yaml"):
        examine(fix=False)
