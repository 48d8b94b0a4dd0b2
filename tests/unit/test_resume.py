from pathlib import Path

import pytest

from ddpm.utils.errors import DdpmError
from ddpm.utils.resume import FINISHED, Rescue, forget_finished


def test_a_run_is_unfinished_until_it_says_otherwise(tmp_path: Path):
    with Rescue(tmp_path / "a" / "run") as rescue:
        assert rescue.finished is None
        rescue.finish({"stage": "train", "loss": 0.1})
    with Rescue(tmp_path / "a" / "run") as rescue:
        assert rescue.finished == {"stage": "train", "loss": 0.1}


def test_only_finished_runs_of_these_facts_are_forgotten(tmp_path: Path):
    runs = {"mine": {"stage": "train", "workspace": "/a"}, "theirs": {"stage": "train", "workspace": "/b"}}
    runs |= {"drawing": {"stage": "generate", "workspace": "/a"}, "unfinished": None}
    for name, facts in runs.items():
        with Rescue(tmp_path / name) as rescue:
            (rescue.folder / "files").mkdir()
            (rescue.folder / "files" / "state").write_text("1")
            if facts:
                rescue.finish(facts)
    forget_finished(tmp_path, lambda facts: facts == runs["mine"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawing", "theirs", "unfinished"]
    forget_finished(tmp_path / "nowhere", lambda _: True)


def test_a_damaged_note_is_named(tmp_path: Path):
    (tmp_path / FINISHED).write_text("{")
    with Rescue(tmp_path) as rescue, pytest.raises(DdpmError, match=rf"{FINISHED}.*delete the folder .* to begin"):
        _ = rescue.finished
