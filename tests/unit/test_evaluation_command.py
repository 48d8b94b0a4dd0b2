"""The mistakes of `python -m ddpm.evaluation`; what it measures: tests/stress/test_evaluation_of_files.py."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddpm.evaluation.__main__ import main


def nothing(path: Path) -> None:
    """No file."""


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (nothing, "is missing"),
        (lambda path: np.savez(path, images=np.zeros((5, 28, 28), np.uint8)), "blank"),
        (lambda path: np.savez(path, images=np.full((5, 28, 28), np.nan, np.float32)), "NaN"),
    ],
    ids=["missing", "blank", "NaN"],
)
def test_a_mistake_is_one_sentence(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], reason: str
):
    path = tmp_path / "images.npz"
    write(path)
    monkeypatch.setattr(sys, "argv", ["ddpm.evaluation", str(path), "--reference", str(raw)])
    with pytest.raises(SystemExit) as ending:
        main()
    message = str(ending.value.code)
    assert message.startswith("error: ")
    assert len(message.splitlines()) == 1
    assert reason in message
