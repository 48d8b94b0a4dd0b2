from pathlib import Path

import pytest

from ddpm.utils.errors import DdpmError
from ddpm.utils.resume import FINISHED, KeptRun


def test_a_run_is_unfinished_until_it_says_otherwise(tmp_path: Path):
    with KeptRun(tmp_path / "a" / "run") as run:
        assert run.finished is None
        run.finish({"stage": "train", "loss": 0.1})
    with KeptRun(tmp_path / "a" / "run") as run:
        assert run.finished == {"stage": "train", "loss": 0.1}


def test_a_damaged_note_is_named(tmp_path: Path):
    (tmp_path / FINISHED).write_text("{")
    with (
        KeptRun(tmp_path) as run,
        pytest.raises(DdpmError, match=rf"{FINISHED}.*delete the folder .* to start that run again"),
    ):
        _ = run.finished
