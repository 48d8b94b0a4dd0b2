import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm.config import Config
from ddpm.utils.errors import DdpmError
from ddpm.utils.resume import FINISHED, KeptRun, stop_signals, stopping
from stages.resume import dvc_stages
from stages.runner import _end_with_dvc


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


@pytest.mark.parametrize("also", [(), (signal.SIGTERM,)])
def test_a_stage_that_saves_already_is_not_ended_by_the_end_of_its_dvc(
    monkeypatch: pytest.MonkeyPatch, also: tuple[int, ...]
):
    sent: list[int] = []
    there = iter([7, None, None])
    monkeypatch.setattr("stages.runner._dvc", lambda: next(there))
    monkeypatch.setattr("stages.runner.os.kill", lambda _, number: sent.append(number))
    with stop_signals("step") as received:
        for number in also:
            signal.raise_signal(number)
        assert stopping() == bool(also)
        before = set(threading.enumerate())
        _end_with_dvc()
        for watcher in set(threading.enumerate()) - before:
            watcher.join(5)
    assert not stopping()
    assert received == list(also)
    assert sent == ([] if also else [signal.SIGTERM])


@pytest.mark.parametrize("path", ["[a]", "a: b", "a #b", "*a", "@a", "{a", "'a", "12", "- a", "${seed}"])
def test_a_folder_of_images_may_be_called_what_means_something_in_yaml(configure: Callable[..., Config], path: str):
    plain, found = (dvc_stages(configure({"data.path": name})) for name in ("PATH", path))
    assert found["fetch_mnist"]["deps"] == [path if each == "PATH" else each for each in plain["fetch_mnist"]["deps"]]
    assert path in found["fetch_mnist"]["deps"]
    assert found["train"] == plain["train"]
