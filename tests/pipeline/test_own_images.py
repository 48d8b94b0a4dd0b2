"""A folder of a user's own images, outside of the repository, through the real dvc: what a change of it reruns."""

from pathlib import Path

import numpy as np
import pytest
from clones import change, copy_working_tree, ended, outputs, run_in, stages_run, start_history
from PIL import Image

SPLIT = ("dvc", "repro", "split")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty RGB images of mixed sizes in two classes; one is broken, one of 16 bits, one turned by its EXIF data."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(5)
    for number in range(60):
        place = folder / ("cats" if number % 2 else "dogs")
        place.mkdir(exist_ok=True)
        pixels = random.integers(256, size=(30 + number, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02}.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "cats/01.jpg").save(folder / "cats/01.jpg", exif=exif)
    deep = random.integers(65536, size=(50, 50), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "cats/deep.png")
    (folder / "dogs/broken.jpg").write_bytes((folder / "dogs/00.jpg").read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """The repository with the folder as its data set, under Git and DVC."""
    folder = tmp_path_factory.mktemp("clone")
    copy_working_tree(folder)
    change(folder, {"data.name": "folder", "data.path": str(photos), "data.image_size": 32})
    start_history(folder, "own images")
    return folder


def test_the_folder_is_read_and_what_is_broken_is_named(clone: Path):
    said = run_in(clone, *SPLIT)
    assert stages_run(said) == ["fetch_mnist", "split"]
    assert "61 images, 55 for training and validation, 6 for the test" in said
    assert "2 classes: cats (31), dogs (30)" in said
    assert "1 left out: dogs/broken.jpg (" in said


def test_with_nothing_changed_nothing_is_run(clone: Path, photos: Path):
    assert stages_run(run_in(clone, *SPLIT)) == []
    for path in photos.rglob("*.jpg"):
        path.touch()
    assert stages_run(run_in(clone, *SPLIT)) == []


def test_a_changed_an_added_and_a_missing_image_are_seen(clone: Path, photos: Path):
    before = outputs(clone)
    original = (photos / "dogs/02.jpg").read_bytes()
    Image.new("RGB", (40, 40), "red").save(photos / "dogs/02.jpg")
    assert stages_run(run_in(clone, *SPLIT)) == ["fetch_mnist", "split"]
    assert outputs(clone)["data/split"] != before["data/split"]
    (photos / "dogs/02.jpg").write_bytes(original)
    (photos / "dogs/new.jpg").write_bytes(original)
    assert "1 groups of images with the same pixels: dogs/02.jpg = dogs/new.jpg" in run_in(clone, *SPLIT)
    (photos / "dogs/new.jpg").unlink()
    run_in(clone, *SPLIT)
    assert outputs(clone) == before


def test_images_are_not_copied_into_the_cache(clone: Path, photos: Path):
    sizes = {path.stat().st_size for path in photos.rglob("*.jpg")}
    cached = {path.stat().st_size for path in (clone / ".dvc/cache/files").rglob("*") if path.is_file()}
    assert not sizes & cached


def test_a_folder_that_is_gone_is_named(clone: Path):
    change(clone, {"data.path": "/no/such/folder"})
    done = ended(clone, *SPLIT)
    assert done.returncode
    assert "/no/such/folder" in done.stderr
