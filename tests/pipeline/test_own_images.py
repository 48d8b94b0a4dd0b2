"""A folder of a user's own images, outside of the repository, through the real dvc: what a change of it reruns.

The tests share one clone and run in order.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from clones import SMALL, STAGES, change, copy_working_tree, ended, outputs, run_in, stages_run, start_history
from PIL import Image

REPRO = ("dvc", "repro")
SPLIT, TRAIN = (*REPRO, "split"), (*REPRO, "train")


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
    own = {"data.name": "folder", "data.path": str(photos), "data.image_size": 32}
    quick = {"fid.extractors": "auto", "train.epochs": 2, "runtime.compile": "off"}
    change(folder, SMALL | own | quick)
    start_history(folder, "own images")
    return folder


def test_the_folder_is_read_with_what_is_broken_named_and_becomes_pictures_and_numbers(clone: Path):
    said = run_in(clone, *REPRO)
    assert stages_run(said) == STAGES
    assert "61 images, 55 for training and validation, 6 for the test" in said
    assert "2 classes: cats (31), dogs (30)" in said
    assert "1 left out: dogs/broken.jpg (" in said
    assert list(json.loads((clone / "data/raw/report.json").read_text())["broken"]) == ["dogs/broken.jpg"]
    for name in ("closest_pairs", "loss", "real_and_generated", "reverse_process", "samples"):
        with Image.open(clone / f"data/figures/{name}.png") as picture:
            assert picture.mode.startswith("RGB")
    assert len(list((clone / "data/generated").glob("*.png"))) == 160
    metrics = json.loads((clone / "metrics/headline.json").read_text())
    assert metrics["swd"] > metrics["swd_floor"] > 0


def test_with_nothing_changed_nothing_is_run(clone: Path, photos: Path):
    for path in photos.rglob("*.jpg"):
        path.touch()
    assert stages_run(run_in(clone, *REPRO)) == []


def test_a_changed_an_added_and_a_missing_image_are_seen(clone: Path, photos: Path):
    before = outputs(clone)
    original = (photos / "dogs/02.jpg").read_bytes()
    Image.new("RGB", (40, 40), "red").save(photos / "dogs/02.jpg")
    assert stages_run(run_in(clone, *TRAIN)) == ["fetch_mnist", "split", "train"]
    changed = outputs(clone)
    assert all(changed[path] != before[path] for path in ("data/split", "data/model"))
    (photos / "dogs/02.jpg").write_bytes(original)
    (photos / "dogs/new.jpg").write_bytes(original)
    assert "1 groups of images with the same pixels: dogs/02.jpg = dogs/new.jpg" in run_in(clone, *SPLIT)
    (photos / "dogs/new.jpg").unlink()
    run_in(clone, *TRAIN)
    assert outputs(clone) == before


def test_images_are_not_copied_into_the_cache(clone: Path, photos: Path):
    digests = {hashlib.md5(path.read_bytes()).hexdigest() for path in photos.rglob("*.jpg")}
    cached = {path.parent.name + path.name for path in (clone / ".dvc/cache/files").rglob("*") if path.is_file()}
    assert cached
    assert not digests & cached


def test_a_folder_that_is_gone_is_named(clone: Path):
    change(clone, {"data.path": "/no/such/folder"})
    done = ended(clone, *SPLIT)
    assert done.returncode
    assert "/no/such/folder" in done.stderr
