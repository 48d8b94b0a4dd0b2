from pathlib import Path

import numpy as np
import pytest

from ddpm.data.load import load_images
from ddpm.utils import image_files
from ddpm.utils.errors import DamagedFile
from ddpm.utils.files import load_arrays
from ddpm.utils.image_files import FORMATS, read_images
from ddpm.utils.images import resize

IMAGES = np.random.default_rng(0).integers(256, size=(25, 1, 8, 8), dtype=np.uint8)


def written(folder: Path, form: str, images: np.ndarray = IMAGES, size: int = 8, batch: int = 7) -> list[str]:
    """The names of the files of the images, which are added batch by batch."""
    folder.mkdir()
    with FORMATS[form](folder, len(images), size, 3) as files:
        for first in range(0, len(images), batch):
            files.add(images[first : first + batch])
        files.finish()
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _few_images_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "IMAGES_PER_NPZ", 10)


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("batch", [1, 7, 10, 24, 100])
def test_images_come_back_in_their_order(tmp_path: Path, form: str, batch: int):
    written(tmp_path / "images", form, batch=batch)
    assert np.array_equal(read_images(tmp_path / "images", 2), IMAGES)
    assert np.array_equal(load_images(tmp_path / "images", 2), IMAGES)


def test_an_npz_holds_so_many_images_and_is_named_by_its_first(tmp_path: Path):
    assert written(tmp_path / "npz", "npz") == ["images_01.npz", "images_11.npz", "images_21.npz"]
    assert [len(load_arrays(path)["images"]) for path in sorted((tmp_path / "npz").iterdir())] == [10, 10, 5]
    assert written(tmp_path / "png", "png")[:2] == ["00001.png", "00002.png"]


@pytest.mark.parametrize("form", list(FORMATS))
def test_images_are_resized_in_batches_of_fewer_than_there_are_threads(tmp_path: Path, form: str):
    written(tmp_path / "images", form, size=12, batch=8)  # the last of 25 is alone
    assert np.array_equal(read_images(tmp_path / "images", 2), resize(IMAGES, 12))


@pytest.mark.parametrize("form", list(FORMATS))
def test_images_are_resized_and_colours_kept(tmp_path: Path, form: str):
    colours = np.random.default_rng(1).integers(256, size=(4, 3, 8, 8), dtype=np.uint8)
    written(tmp_path / "images", form, colours, size=12)
    assert np.array_equal(read_images(tmp_path / "images", 1), resize(colours, 12))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"pictures": IMAGES}, "no array images"),
        ({"images": IMAGES[:, 0]}, "no array images"),
        ({"images": IMAGES / 255}, "no array images"),
        ({"images": IMAGES[:0]}, "no array images"),
        ({"images": resize(IMAGES, 12)}, r"of the shape \[1, 12, 12\] and those before it of \[1, 8, 8\]"),
    ],
    ids=["name", "shape", "type", "none", "size"],
)
def test_arrays_that_are_not_those_of_a_run_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], said: str):
    np.savez(tmp_path / "images_1.npz", images=IMAGES)
    np.savez(tmp_path / "images_2.npz", **arrays)
    with pytest.raises(DamagedFile, match=rf"images_2\.npz .*{said}"):
        read_images(tmp_path, 1)
