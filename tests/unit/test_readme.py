"""The Python example of the README runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def example(root: Path) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def test_the_example_samples_in_any_folder(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(example, names)
    images = np.asarray(names["sevens"])
    assert images.shape == (16, 1, 28, 28)
    assert images.dtype == np.uint8
    assert len(np.unique(images, axis=0)) == 16


def test_the_example_has_three_lines(example: str):
    assert len([line for line in example.splitlines() if line]) == 3
