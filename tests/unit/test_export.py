import sys
from pathlib import Path

import numpy as np
import pytest

from ddpm.data.export import export, main
from ddpm.data.image_set import ImageSet
from ddpm.data.sources.mnist import FILES, MNIST
from ddpm.utils.errors import DdpmError, MissingFile
from ddpm.utils.images import read_pngs


def test_the_exported_files_are_the_images_in_their_order(
    raw: Path, test_digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    some = test_digits.take(np.arange(2345))
    monkeypatch.setattr(MNIST, "load", lambda folder, part: {(raw, "test"): some}[folder, part])
    assert export("mnist", raw, "test", tmp_path / "real") == 2345
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == [f"{i:05d}.png" for i in range(1, 2346)]
    assert np.array_equal(read_pngs(tmp_path / "real", 1), some.images)


def test_a_folder_that_holds_something_is_left_alone(raw: Path, tmp_path: Path):
    (tmp_path / "letter.txt").write_text("dear")
    for folder in (tmp_path, tmp_path / "letter.txt"):
        with pytest.raises(DdpmError, match="is there already"):
            export("mnist", raw, "test", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_missing_files_leave_no_folder(tmp_path: Path):
    with pytest.raises(MissingFile, match=next(name for name in FILES if name.startswith("t10k-images"))):
        export("mnist", tmp_path, "test", tmp_path / "real")
    assert not list(tmp_path.iterdir())


def test_the_command_ends_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path), "test", str(tmp_path / "real")])
    with pytest.raises(SystemExit, match=r"^error: .*t10k-images-idx3-ubyte is missing\.$"):
        main()
