"""The clone in which a preset runs: whole or not there, and of what is committed; real runs are in tests/stress."""

import sys
from pathlib import Path

import pytest
from clones import start_history

import presets.__main__ as presets
from ddpm.utils.errors import DdpmError
from tools import prepared_clone, results, run


@pytest.fixture
def repository(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a preset, which is the working folder; nothing is asked of DVC."""
    for name in (".dvc/config", "presets/mine.yaml"):
        (workspace / name).parent.mkdir()
        (workspace / name).touch()
    (workspace / ".gitignore").write_text("/kept\n")
    start_history(workspace, "a preset")
    monkeypatch.setattr(presets, "FOLDER", workspace / "presets")
    monkeypatch.setattr(results, "run", lambda *words, **named: "" if words[0] == "dvc" else run(*words, **named))
    return workspace


def test_a_clone_is_whole_or_not_there(repository: Path):
    folder = repository / "kept/clone"
    with pytest.raises(DdpmError, match="not ready"), prepared_clone("HEAD", folder, Path("cache")):
        raise DdpmError("not ready")
    assert list(folder.parent.iterdir()) == []
    Path(f"{folder}.part").mkdir()
    Path(f"{folder}.part/left").touch()  # by a killed call
    with prepared_clone("HEAD", folder, Path("cache")) as part:
        assert not folder.exists()
        (part / "made").touch()
    assert {path.name for path in folder.iterdir()} > {"made", "params.yaml", "presets"}
    assert not (folder / "left").exists()
    assert list(folder.parent.iterdir()) == [folder]


def test_a_clone_that_another_process_makes_is_left_to_it(repository: Path):
    folder = repository / "kept/clone"
    with prepared_clone("HEAD", folder, Path("cache")) as part:
        with pytest.raises(DdpmError, match=r"another process makes .*clone: wait"):
            prepared_clone("HEAD", folder, Path("cache")).__enter__()
        assert (part / "params.yaml").exists()
    assert (folder / "params.yaml").exists()


def test_a_preset_that_is_not_committed_is_refused(repository: Path):
    for name in ("mine", "new"):
        (repository / f"presets/{name}.yaml").write_text("seed: 1\n")
        with pytest.raises(DdpmError, match=rf": commit presets/{name}\.yaml first\.$"):
            results.prepare(name, repository / "kept/clone")
    with pytest.raises(DdpmError, match=r"^there is no preset other; there are mine, new\.$"):
        results.prepare("other", repository / "kept/clone")
    assert not (repository / "kept").exists()


def test_a_preset_that_fails_in_the_clone_leaves_none(repository: Path, monkeypatch: pytest.MonkeyPatch):
    folder = repository / "kept/clone"
    command = repository / "python"
    command.write_text('#!/bin/sh\necho "error: $3 in $(pwd)" >&2\nexit 1\n')
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(command))
    with pytest.raises(DdpmError, match=r"failed: error: mine in .*/kept/clone\.part$"):
        results.prepare("mine", folder)
    assert list(folder.parent.iterdir()) == []
