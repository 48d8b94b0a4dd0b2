from pathlib import Path

import pytest

from ddpm.utils.errors import DdpmError
from ddpm.utils.resume import FINISHED, KeptRun, forget_finished


def test_a_run_is_unfinished_until_it_says_otherwise(tmp_path: Path):
    with KeptRun(tmp_path / "a" / "run") as run:
        assert run.finished is None
        run.finish({"stage": "train", "loss": 0.1})
    with KeptRun(tmp_path / "a" / "run") as run:
        assert run.finished == {"stage": "train", "loss": 0.1}


def test_only_finished_runs_of_this_metadata_are_forgotten(tmp_path: Path):
    runs = {"mine": {"stage": "train", "workspace": "/a"}, "theirs": {"stage": "train", "workspace": "/b"}}
    runs |= {"sampling": {"stage": "generate", "workspace": "/a"}, "unfinished": None}
    for name, metadata in runs.items():
        with KeptRun(tmp_path / name) as run:
            (run.folder / "files").mkdir()
            (run.folder / "files" / "state").write_text("1")
            if metadata:
                run.finish(metadata)
    forget_finished(tmp_path, lambda metadata: metadata == runs["mine"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sampling", "theirs", "unfinished"]
    forget_finished(tmp_path / "nowhere", lambda _: True)


def test_a_damaged_note_is_named(tmp_path: Path):
    (tmp_path / FINISHED).write_text("{")
    with (
        KeptRun(tmp_path) as run,
        pytest.raises(DdpmError, match=rf"{FINISHED}.*delete the folder .* to start that run again"),
    ):
        _ = run.finished
