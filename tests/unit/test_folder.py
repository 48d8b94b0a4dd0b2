"""The data set `folder`: images of a user's own, of every kind, and what is said of those that are no images."""

import errno
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ddpm.config import Config
from ddpm.data import image_set
from ddpm.data.decoding import decode
from ddpm.data.image_set import ImageSet
from ddpm.data.sources import SOURCES, folder
from ddpm.models import checkpoint
from ddpm.utils.errors import DamagedFile, DdpmError
from ddpm.utils.files import sha256
from ddpm.utils.registry import call

FOLDER = SOURCES["folder"]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
Fetch = Callable[..., tuple[ImageSet, ImageSet, dict[str, Any]]]


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Forty images of noise of many sizes in two classes, in folders of any depth."""
    for number in range(40):
        folder = tmp_path / "photos" / ("10" if number % 4 == 0 else "9")
        folder = folder / "deeper" if number % 3 == 0 else folder
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(256, size=(20 + number, 30, 3), dtype=np.uint8)
        ending = ("png", "jpg", "webp", "JPEG")[number % 4]
        Image.fromarray(pixels).save(folder / f"{number:02}.{ending}")
    return tmp_path / "photos"


@pytest.fixture
def fetch(tmp_path: Path, configure: Callable[..., Config], capsys: pytest.CaptureFixture[str]) -> Fetch:
    """Fetch a folder as the stage does: (training images, test images, report)."""

    def run(path: Path, **settings: object) -> tuple[ImageSet, ImageSet, dict[str, Any]]:
        given = {"data.name": "folder", "data.path": str(path), "data.image_size": 16}
        config = configure(given, {f"data.{key}": value for key, value in settings.items()})
        raw = tmp_path / "workspace" / "data" / "raw"
        call(FOLDER.fetch, config.data, place="auto", folder=raw)
        train, test = (FOLDER.load(raw, part) for part in ("train", "test"))
        return train, test, json.loads((raw / "report.json").read_text())

    return run


def halves(size: tuple[int, int] = (32, 16), left: tuple[int, ...] = RED, right: tuple[int, ...] = BLUE) -> Image.Image:
    """An image with a left and a right half."""
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def colours(pixels: np.ndarray) -> dict[str, tuple[int, ...]]:
    """The colours of some places of one image [3, h, w]."""
    size = pixels.shape[-1]
    places = {
        "left": (size // 2, 1),
        "right": (size // 2, size - 2),
        "top": (1, size // 2 - 1),
        "centre": (size // 2,) * 2,
    }
    return {name: tuple(pixels[:, y, x].tolist()) for name, (y, x) in places.items()}


def close(found: tuple[int, ...], wanted: tuple[int, ...], within: int = 3) -> bool:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= within


def test_images_of_any_depth_and_size_are_read_by_class_and_divided(photos: Path, fetch: Fetch):
    train, test, report = fetch(photos)
    assert train.spec == test.spec == image_set.ImageSpec(16, 3, 2, "folder", ("9", "10"))
    assert (len(train), len(test)) == (36, 4)
    assert np.bincount(train.labels).tolist() == [27, 9]
    assert np.bincount(test.labels).tolist() == [3, 1]
    assert np.array_equal(np.sort(np.concatenate([train.indices, test.indices])), np.arange(40))
    assert report["classes"] == {"9": 30, "10": 10}
    assert report["sizes"]["different"] == 40
    assert (report["sizes"]["smallest"], report["sizes"]["largest"]) == ("30 × 20", "30 × 59")
    assert report["broken"] == {}
    assert report["alike"] == []


def test_each_image_keeps_its_file_and_its_label(photos: Path, fetch: Fetch, tmp_path: Path):
    train, test, _ = fetch(photos)
    files = pd.read_csv(tmp_path / "workspace/data/raw/files.csv", dtype=str)
    assert len(files) == 40
    for part, images in (("train", train), ("test", test)):
        for pixels, label, index in zip(images.images, images.labels, images.indices, strict=True):
            row = files.iloc[index]
            assert row["part"] == part
            assert row["label"] == images.class_names[label] == row["file"].split("/")[0]
            assert np.array_equal(decode(photos / row["file"], 16, "crop", WHITE)[0], pixels)


def test_the_test_images_follow_from_their_own_seed_and_fraction(photos: Path, fetch: Fetch):
    first, again, other = (fetch(photos, test_seed=seed)[1].indices.tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert len(fetch(photos, test_fraction=0.5)[1]) == 20
    with pytest.raises(DdpmError, match=r"data\.test_fraction=0\.001 leaves no image"):
        fetch(photos, test_fraction=0.001)


def test_what_is_read_twice_has_the_same_bytes(photos: Path, fetch: Fetch, tmp_path: Path):
    raw = tmp_path / "workspace/data/raw"
    fetch(photos)
    before = {path.name: sha256(path) for path in raw.iterdir()}
    assert set(before) == {"train.npz", "test.npz", "files.csv", "report.json"}
    fetch(photos)
    assert {path.name: sha256(path) for path in raw.iterdir()} == before


def test_what_is_said_of_a_broken_file_is_the_same_in_every_run(photos: Path, fetch: Fetch):
    (photos / "9" / "page.png").write_text("<html>")
    (photos / "9" / "cut.png").write_bytes(b"\x89PNG")
    said = "cannot identify image file: it is no PNG, JPEG or WebP image"
    kept = [bytearray(100)]  # what is freed meanwhile gives the next run other addresses
    for _ in range(2):
        assert fetch(photos)[2]["broken"] == {"9/cut.png": said, "9/page.png": said}
        kept.append(bytearray(10_000))


def test_folders_train_and_test_are_the_parts(photos: Path, fetch: Fetch, tmp_path: Path):
    both = tmp_path / "both"
    (both / "test" / "cat").mkdir(parents=True)
    (both / "train" / "cat").mkdir(parents=True)
    (both / "train" / "dog").mkdir(parents=True)
    for number, place in enumerate(("train/cat", "train/dog", "train/dog", "test/cat", "test/cat")):
        Image.new("L", (20, 20), 10 * number).save(both / place / f"{number}.png")
    train, test, _ = fetch(both)
    assert train.class_names == test.class_names == ("cat", "dog")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 1], [0, 0])
    assert train.images[:, 0, 0, 0].tolist() == [0, 10, 20]


def lay(folder: Path, **counts: int) -> Path:
    """So many images in each folder; `train_cats` is cats in train."""
    for place, count in counts.items():
        (folder / place.replace("_", "/")).mkdir(parents=True)
        for number in range(count):
            halves().save(folder / place.replace("_", "/") / f"{number}.png")
    return folder


def refusal(fetch: Fetch, path: Path, **settings: object) -> str:
    """The one sentence that a folder is refused with, and that leaves nothing behind."""
    with pytest.raises(DdpmError) as caught:
        fetch(path, **settings)
    assert not (path.parent / "workspace/data/raw").exists()
    said = str(caught.value)
    assert (said.count(". "), said.endswith("."), len(said.splitlines())) == (0, True, 1)
    return said.replace(f"data.path={path}", "data.path=own")


def test_what_a_table_names_and_is_no_image_is_not_said_to_be_absent(fetch: Fetch, tmp_path: Path):
    own = lay(tmp_path / "own", cat=2, dog=2)
    halves().save(own / "0.bmp")
    names = ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "0.bmp", "gone.png"]
    pd.DataFrame({"file": names, "label": list("aabbab")}).to_csv(own / "labels.csv", index=False)
    said = refusal(fetch, own, labels="labels.csv")
    assert "0.bmp: is named in labels.csv, but is no PNG, JPEG or WebP file, or lies in a linked folder" in said
    assert "gone.png: is named in labels.csv, but is not there" in said


def table_of(own: Path, text: str) -> None:
    """Write a table of labels for the images of `lay(own, cat=2, dog=2)`, of which these lines are a part."""
    (own / "labels.csv").write_text(f"file,label\ncat/0.png,cat\ncat/1.png,cat\n{text}\n")


def test_a_table_that_names_nothing_says_so(fetch: Fetch, photos: Path):
    (photos / "labels.csv").write_text("file,label\n")
    with pytest.raises(DdpmError, match=r"data\.labels=labels\.csv names no file: .*labels\.csv has no row"):
        fetch(photos, labels="labels.csv")


def test_blanks_around_what_a_table_names_are_no_part_of_it(fetch: Fetch, photos: Path):
    files = sorted(path.relative_to(photos) for path in photos.rglob("*.png"))
    rows = "".join(f"{file} , {number % 2}\n" for number, file in enumerate(files))
    (photos / "labels.csv").write_text(f"file,label\n{rows}")
    assert fetch(photos, labels="labels.csv")[0].class_names == ("0", "1")


def test_a_folder_that_cannot_be_read_is_no_missing_class(fetch: Fetch, photos: Path, monkeypatch: pytest.MonkeyPatch):
    scan = os.scandir

    def refusing(path: object) -> object:
        # The rights of a folder do not keep the superuser out.
        if path == str(photos / "10"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="10"):
        fetch(photos)


@pytest.mark.parametrize("name", ["../labels.csv", "cat/../../labels.csv", "ABSOLUTE"])
def test_a_table_that_dvc_does_not_watch_is_refused(fetch: Fetch, tmp_path: Path, name: str):
    own = lay(tmp_path / "own", cat=2, dog=2)
    table_of(own, "dog/0.png,dog\ndog/1.png,dog")
    assert fetch(own, labels="labels.csv", test_fraction=0.5)[0].class_names == ("cat", "dog")
    shutil.rmtree(tmp_path / "workspace")
    (own / "labels.csv").rename(tmp_path / "labels.csv")
    name = name.replace("ABSOLUTE", str(tmp_path / "labels.csv"))
    assert refusal(fetch, own, labels=name) == (
        f"data.labels={name} lies outside of data.path, where DVC does not see its changes: move the table into "
        "data.path, and name it from there."
    )


@pytest.mark.parametrize("row", ["dog/1.png,", "dog/1.png", 'dog/1.png," "', ",dog"])
def test_a_row_without_a_label_or_a_file_is_refused(fetch: Fetch, tmp_path: Path, row: str):
    own = lay(tmp_path / "own", cat=2, dog=2)
    table_of(own, f"dog/0.png,dog\n{row}")
    assert "names no file or no label: add it, or take" in refusal(fetch, own, labels="labels.csv", test_fraction=0.5)


def test_a_file_with_two_labels_is_refused_and_one_that_is_named_twice_is_not(fetch: Fetch, tmp_path: Path):
    own = lay(tmp_path / "own", cat=2, dog=2)
    table_of(own, "dog/0.png,dog\ndog/1.png,dog\n./dog/0.png,wolf")
    assert refusal(fetch, own, labels="labels.csv", test_fraction=0.5) == (
        "data.labels=labels.csv names ./dog/0.png twice, as dog and as wolf: take one of them out."
    )
    table_of(own, "dog/0.png,dog\ndog/1.png,dog\ndog/0.png,dog")
    assert fetch(own, labels="labels.csv", test_fraction=0.5)[0].class_names == ("cat", "dog")


def test_a_comma_at_the_end_of_every_row_moves_no_column(fetch: Fetch, tmp_path: Path):
    own = lay(tmp_path / "own", cat=2, dog=2)
    rows = ",\n".join(f"{name}/{number}.png,a {name}" for name in ("cat", "dog") for number in range(2))
    (own / "labels.csv").write_text(f"file,label\n{rows},\n")
    assert fetch(own, labels="labels.csv", test_fraction=0.5)[0].class_names == ("a cat", "a dog")


def test_a_file_that_is_not_named_from_the_folder_is_said_to_be_so(fetch: Fetch, tmp_path: Path):
    own = lay(tmp_path / "own", cat=2, dog=2)
    table_of(own, f"{own}/dog/0.png,dog\n../own/dog/1.png,dog")
    said = refusal(fetch, own, labels="labels.csv", test_fraction=0.5)
    for name in (f"{own}/dog/0.png", "../own/dog/1.png"):
        assert f"{name}: is named in labels.csv, but is not named from data.path" in said


def test_more_classes_than_a_checkpoint_may_name_are_refused(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = {"size": 16, "channels": 3, "classes": folder.MOST_CLASSES}
    checkpoint._Spec.model_validate(spec)
    with pytest.raises(ValueError, match="classes"):
        checkpoint._Spec.model_validate(spec | {"classes": folder.MOST_CLASSES + 1})
    monkeypatch.setattr(folder, "MOST_CLASSES", 2)
    own = lay(tmp_path / "own", cat=10, dog=10, emu=10)
    assert refusal(fetch, own) == (
        "data.path=own holds 3 classes, and there may be 2: set data.labels to none, or join some."
    )


def test_classes_that_only_the_test_images_have_are_refused(fetch: Fetch, tmp_path: Path):
    own = lay(tmp_path / "own", train_Cat=3, train_dog=3, test_cat=2, test_dog=2, test_emu=1)
    assert refusal(fetch, own) == (
        "data.path=own: train holds no image that can be read of the classes cat, emu, which test holds: name the "
        "folder of a class alike in both, or move some of its images to train."
    )
    files = [path.relative_to(own).as_posix() for path in sorted(own.rglob("*.png"))]
    labels = ["Bird" if file.startswith("test") else "bird" for file in files]
    pd.DataFrame({"file": files, "label": labels}).to_csv(own / "labels.csv", index=False)
    assert refusal(fetch, own, labels="labels.csv") == (
        "data.path=own: train holds no image that can be read of the class Bird, which test holds: name a class alike "
        "everywhere in labels.csv, or move some of its images to train."
    )
    for path in (own / "train/dog").iterdir():
        path.write_bytes(b"\x89PNG")
    assert "of the classes cat, dog, emu, which test holds: name" in refusal(fetch, own, broken_fraction=0.5)
    for path in (own / "train/Cat").iterdir():
        path.write_bytes(b"\x89PNG")
    assert refusal(fetch, own, broken_fraction=0.9, labels="none") == (
        "data.path=own: train holds no image that can be read: move some there from test."
    )


def test_a_folder_of_photos_that_a_phone_calls_heic_is_refused_with_what_is_there(fetch: Fetch, tmp_path: Path):
    (tmp_path / "own").mkdir()
    for name in ("a.HEIC", "b.heic", "notes"):
        (tmp_path / "own" / name).write_bytes(b"ftypheic")
    assert refusal(fetch, tmp_path / "own") == (
        "data.path=own holds no image that can be read (no PNG, JPEG or WebP file is there, but .heic (2), no suffix "
        "(1); linked folders are not followed)."
    )


def test_a_class_whose_images_are_all_for_the_test_is_refused(fetch: Fetch, tmp_path: Path):
    own = lay(tmp_path / "own", common=10, rare=1)
    assert refusal(fetch, own, test_fraction=0.6) == (
        "data.test_fraction=0.6 leaves no training image of the class rare: lower it, or add such images."
    )
    train, test, _ = fetch(own, test_fraction=0.4)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0] * 6 + [1], [0] * 4)


def test_fewer_than_two_test_images_are_refused_with_what_gives_more(fetch: Fetch, tmp_path: Path):
    own = lay(tmp_path / "fractions", cats=4, dogs=4)
    assert refusal(fetch, own).startswith("data.test_fraction=0.1 leaves no image")  # 0.4 of a class, rounded
    lay(own, birds=5)
    said = "leaves 1 image for the test, which needs at least 2: raise it, or add images."
    assert refusal(fetch, own, test_fraction=0.101) == f"data.test_fraction=0.101 {said}"
    assert len(fetch(own, test_fraction=0.2)[1]) == 3
    assert len(fetch(own, test_fraction=0.2, labels="none")[1]) == 3


def test_a_folder_test_of_fewer_than_two_images_is_refused(fetch: Fetch, tmp_path: Path):
    own = lay(tmp_path / "parts", train_cats=4, train_dogs=4, test_cats=1)
    assert refusal(fetch, own) == (
        "data.path=own: test holds 1 image that can be read, but at least 2 are needed: move more there from train."
    )
    files = [path.relative_to(own).as_posix() for path in sorted(own.rglob("*.png"))]
    table = pd.DataFrame({"file": files, "label": "pet"})
    table[table["file"].str.startswith("train")].to_csv(own / "labels.csv", index=False)
    (own / "test/cats/1.png").write_bytes((own / "test/cats/0.png").read_bytes())
    table = pd.concat([table, pd.DataFrame({"file": ["test/cats/1.png"], "label": "pet"})])
    assert refusal(fetch, own, labels="labels.csv") == (
        "data.path=own: test holds no image that can be read and is named in labels.csv, but at least 2 are needed: "
        "move more there from train, or name more of test in labels.csv."
    )
    table[table["file"].str.startswith("test")].to_csv(own / "labels.csv", index=False)
    assert refusal(fetch, own, labels="labels.csv") == (
        "data.path=own: train holds no image that can be read and is named in labels.csv: move some there from test, "
        "or name some of train in labels.csv."
    )
    (own / "test/cats/1.png").write_bytes(b"")
    assert "test holds 1 image that can be read, but" in refusal(fetch, own, broken_fraction=0.5)
    (own / "test/cats/1.png").write_bytes((own / "test/cats/0.png").read_bytes())
    assert len(fetch(own)[1]) == 2


@pytest.mark.parametrize(
    ("folders", "refused"),
    [
        ("train val", True),
        ("Train Test", True),
        ("training", True),
        ("train test val", True),
        ("train test cats", True),
        ("test cats", False),
        ("train test", False),
    ],
)
def test_folders_of_other_parts_are_refused(fetch: Fetch, tmp_path: Path, folders: str, refused: bool):
    for place in folders.split():
        for name in ("a", "b"):
            (tmp_path / "both" / place / name).mkdir(parents=True)
            halves().save(tmp_path / "both" / place / name / "image.png")
    if not refused:
        assert fetch(tmp_path / "both", test_fraction=0.5)[0].class_names == (
            ("a", "b") if "train" in folders else ("cats", "test")
        )
        return
    listed = ", ".join(sorted(folders.split()))
    with pytest.raises(DdpmError, match=rf"both holds the folders {listed}: let them be train and test, with"):
        fetch(tmp_path / "both")


def test_labels_come_from_folders_a_table_or_nowhere(photos: Path, fetch: Fetch):
    assert fetch(photos, labels="none")[0].spec.classes == 0
    files = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))
    table = pd.DataFrame({"file": files[:-5], "label": ["even" if i % 2 == 0 else "odd" for i in range(35)]})
    table.to_csv(photos / "labels.csv", index=False)
    train, test, report = fetch(photos, labels="labels.csv")
    assert train.class_names == ("even", "odd")
    assert len(train) + len(test) == 35
    assert sum(report["other_files"].values()) == 6
    assert report["other_files"][".csv"] == 1
    pd.concat([table, pd.DataFrame({"file": ["gone.png"], "label": ["odd"]})]).to_csv(
        photos / "labels.csv", index=False
    )
    assert fetch(photos, labels="labels.csv")[2]["broken"] == {"gone.png": "is named in labels.csv, but is not there"}
    (photos / "labels.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        DdpmError, match=r"data\.labels=labels\.csv: .*labels\.csv is no table with the columns file and"
    ):
        fetch(photos, labels="labels.csv")
    with pytest.raises(DdpmError, match=r"data\.labels=other\.csv: .*is no table"):
        fetch(photos, labels="other.csv")


def test_without_folders_of_classes_there_are_no_labels(photos: Path, fetch: Fetch):
    halves().save(photos / "alone.png")
    train, _, report = fetch(photos)
    assert (train.spec.classes, report["classes"], set(train.labels.tolist())) == (0, {}, {0})
    with pytest.raises(DdpmError, match=r"data\.labels=folders, but .*alone\.png lies in no folder of a class"):
        fetch(photos, labels="folders")


@pytest.mark.parametrize("harm", ["cut", "flipped", "text", "empty", "animation"])
def test_a_broken_file_is_named_and_left_out_and_too_many_stop_the_run(photos: Path, fetch: Fetch, harm: str):
    broken = photos / "9" / "01broken.png"
    halves().save(broken)
    content = bytearray(broken.read_bytes())
    if harm == "animation":
        halves().save(broken, format="WEBP", save_all=True, append_images=[halves(left=GREEN)])
    else:
        content[60] ^= 1
        broken.write_bytes({"cut": content[:50], "flipped": content, "text": b"Hello", "empty": b""}[harm])
    train, test, report = fetch(photos)
    assert len(train) + len(test) == 40
    assert list(report["broken"]) == ["9/01broken.png"]
    with pytest.raises(
        DdpmError, match=r"1 of 41 images cannot be read \(9/01broken\.png: .+\), more than data\.broken_f"
    ):
        fetch(photos, broken_fraction=0.02)


def test_the_report_is_printed_with_what_is_broken_or_alike(
    photos: Path, fetch: Fetch, capsys: pytest.CaptureFixture[str]
):
    (photos / "9" / "broken.png").write_bytes(b"\x89PNG")
    for name in ("a.png", "b.png"):
        halves().save(photos / "10" / name)
    fetch(photos)
    said = capsys.readouterr().out
    assert "42 images, 38 for training and validation, 4 for the test" in said
    assert "2 classes: 9 (30), 10 (12)" in said
    assert "1 groups of images with the same pixels: 10/a.png = 10/b.png" in said
    assert "1 left out: 9/broken.png (" in said


def test_files_of_other_kinds_are_counted_and_linked_folders_are_named(
    photos: Path, fetch: Fetch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("a.gif", "b.GIF", "c.tif", "notes"):
        (photos / name).write_bytes(b"GIF89a")
    (tmp_path / "elsewhere").mkdir()
    halves().save(tmp_path / "elsewhere" / "linked.png")
    (photos / "8").symlink_to(tmp_path / "elsewhere")
    (photos / "9" / "loop").symlink_to(photos)
    (photos / "10" / "linked.png").symlink_to(tmp_path / "elsewhere" / "linked.png")
    train, test, report = fetch(photos)
    assert len(train) + len(test) == 41
    assert report["other_files"] == {".gif": 2, ".tif": 1, "no suffix": 1}
    assert report["links"] == ["8", "9/loop"]
    said = capsys.readouterr().out
    assert "4 other files left out: .gif (2), .tif (1), no suffix (1)" in said
    assert "2 linked folders left out, as DVC does not look into them: 8, 9/loop" in said


def test_a_path_that_is_no_folder_or_holds_no_image_is_named(fetch: Fetch, tmp_path: Path):
    with pytest.raises(DdpmError, match=r"data\.path=.*nowhere is no folder"):
        fetch(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(DdpmError, match=r"data\.path=.*empty holds no image that can be read"):
        fetch(tmp_path / "empty")
    with pytest.raises(DdpmError, match=r"data\.background=whitish is no colour"):
        fetch(tmp_path / "empty", background="whitish")


def test_squares_are_cropped_padded_or_stretched(tmp_path: Path):
    path = tmp_path / "wide.png"
    image = Image.new("RGB", (64, 32), GREEN)
    image.paste(RED, (0, 0, 16, 32))
    image.paste(BLUE, (48, 0, 64, 32))
    image.save(path)
    found = {how: colours(decode(path, 16, how, WHITE)[0]) for how in ("crop", "pad", "stretch")}
    assert [found["crop"][place] for place in ("left", "right", "top")] == [GREEN] * 3
    assert [found["pad"][place] for place in ("left", "right", "top")] == [RED, BLUE, WHITE]
    assert [found["stretch"][place] for place in ("left", "right", "top")] == [RED, BLUE, GREEN]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_applied(tmp_path: Path, orientation: int):
    upright = halves((40, 40))
    stored = {
        1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270",
    }[orientation]  # fmt: skip
    turned = upright.transpose(Image.Transpose[stored]) if stored else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "photo.jpg", exif=exif, quality=95, subsampling=0)
    pixels, size = decode(tmp_path / "photo.jpg", 16, "stretch", WHITE)
    assert close(colours(pixels)["left"], RED)
    assert close(colours(pixels)["right"], BLUE)
    assert size == (40, 40)


def test_a_turned_image_has_its_upright_size(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    halves((640, 320)).save(tmp_path / "photo.jpg", exif=exif)
    assert decode(tmp_path / "photo.jpg", 16, "crop", WHITE)[1] == (320, 640)


def test_16_bits_of_grey_are_rounded_to_8(tmp_path: Path):
    deep = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    pixels, _ = decode(tmp_path / "deep.png", 16, "crop", WHITE)
    assert np.array_equal(pixels[0].flatten(), np.arange(256))
    assert np.array_equal(pixels, np.repeat(pixels[:1], 3, 0))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)], ids=["RGB", "RGBA"])
def test_of_16_bits_in_colour_the_upper_byte_is_kept(tmp_path: Path, colour: int, channels: int):
    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    deep = np.full((16, 16, channels), 65535, ">u2")
    deep[..., :3] = np.random.default_rng(1).integers(65536, size=(16, 16, 3))
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 16, 16, 16, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    pixels, _ = decode(tmp_path / "deep.png", 16, "crop", WHITE)
    assert np.array_equal(pixels.transpose(1, 2, 0), deep[..., :3] >> 8)


def test_of_the_two_pictures_that_a_camera_keeps_in_a_jpeg_the_first_is_read(photos: Path, fetch: Fetch):
    path = photos / "9" / "camera.jpg"
    exif = Image.Exif()
    exif[0x0112] = 3
    first, second = halves((640, 320)), Image.new("RGB", (640, 320), GREEN)
    first.transpose(Image.Transpose.ROTATE_180).save(path, "MPO", save_all=True, append_images=[second], exif=exif)
    with Image.open(path) as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    for side in (16, 400):  # the smaller one is decoded at an eighth
        pixels, size = decode(path, side, "stretch", WHITE)
        assert close(colours(pixels)["left"], RED)
        assert close(colours(pixels)["right"], BLUE)
        assert size == (640, 320)
    train, test, report = fetch(photos)
    assert (len(train) + len(test), report["broken"]) == (41, {})


def test_the_grey_of_16_bits_that_is_transparent_shows_the_background(tmp_path: Path):
    deep = np.full((16, 16), 40_000, np.uint16)
    deep[:, 8:] = 39_999  # of the same 8 bits
    Image.fromarray(deep).save(tmp_path / "keyed.png", transparency=40_000)
    with Image.open(tmp_path / "keyed.png") as opened:
        assert (opened.mode, opened.info["transparency"]) == ("I;16", 40_000)
    pixels, _ = decode(tmp_path / "keyed.png", 16, "crop", GREEN)
    assert (pixels[:, :, :8] == np.array(GREEN)[:, None, None]).all()
    assert (pixels[:, :, 8:] == 156).all()


def test_palette_grey_and_transparent_images_become_rgb_on_the_background(tmp_path: Path):
    halves().quantize(2).save(tmp_path / "palette.png")
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    clear = halves().convert("RGBA")
    clear.putalpha(halves(left=(0, 0, 0), right=(255, 255, 255)).convert("L"))
    clear.save(tmp_path / "clear.png")
    clear.save(tmp_path / "clear.webp", lossless=True)
    index = Image.new("P", (8, 8), 1)
    index.putpalette([*RED, *BLUE])
    index.save(tmp_path / "keyed.png", transparency=1)
    halves().convert("CMYK").save(tmp_path / "print.jpg", quality=95, subsampling=0)

    def found(name: str) -> dict[str, tuple[int, ...]]:
        return colours(decode(tmp_path / name, 16, "stretch", GREEN)[0])

    assert (found("palette.png")["left"], found("palette.png")["right"]) == (RED, BLUE)
    assert found("grey.png")["centre"] == (77, 77, 77)
    for name in ("clear.png", "clear.webp"):
        assert (found(name)["left"], found(name)["right"]) == (GREEN, BLUE), name
    assert found("keyed.png")["centre"] == GREEN
    assert close(found("print.jpg")["left"], RED)


def test_a_large_photograph_is_reduced_without_aliasing(tmp_path: Path):
    stripes = np.zeros((800, 1200, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    Image.fromarray(stripes).save(tmp_path / "stripes.jpg", quality=95, subsampling=0)
    for name in ("stripes.png", "stripes.jpg"):
        pixels, size = decode(tmp_path / name, 16, "crop", WHITE)
        assert size == (1200, 800)
        assert np.abs(pixels.astype(int) - 127).max() < 12, name


def test_channels_are_one_where_all_images_are_grey(
    photos: Path, fetch: Fetch, tmp_path: Path, rng: np.random.Generator
):
    grey = tmp_path / "grey"
    grey.mkdir()
    for number in range(20):
        pixels = rng.integers(256, size=(16, 16), dtype=np.uint8)
        Image.fromarray(pixels).convert("RGB" if number % 2 else "L").save(grey / f"{number}.png")
    assert fetch(grey)[0].images.shape == (18, 1, 16, 16)
    assert fetch(grey, channels=3)[0].images.shape == (18, 3, 16, 16)
    in_colour, luma = fetch(photos)[0], fetch(photos, channels=1)[0]
    wanted = np.asarray(Image.fromarray(in_colour.images[0].transpose(1, 2, 0)).convert("L"))
    assert np.array_equal(luma.images[0, 0], wanted)


def test_images_beyond_the_limit_are_mapped_and_the_same(photos: Path, fetch: Fetch, monkeypatch: pytest.MonkeyPatch):
    plain = fetch(photos)[0]
    for module in ("ddpm.data.image_set", "ddpm.data.sources.folder"):
        monkeypatch.setattr(f"{module}.MAP_ABOVE", 1000)
    mapped, _, _ = fetch(photos)
    assert isinstance(mapped.images, np.memmap)
    assert not isinstance(plain.images, np.memmap)
    assert np.array_equal(mapped.images, plain.images)
    assert mapped.spec == plain.spec


def test_a_name_that_no_table_can_hold_is_refused(photos: Path, fetch: Fetch):
    photo = photos / "9/01.jpg"
    try:
        shutil.copy(os.fsencode(photo), os.fsencode(photos) + b"/9/caf\xe9.jpg")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(DdpmError, match=r"photos holds 9/caf.\.jpg, a name that is not in UTF-8"):
        fetch(photos)


def test_what_decode_refuses_says_why(tmp_path: Path):
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(DamagedFile, match="cannot identify image file"):
        decode(tmp_path / "page.png", 16, "crop", WHITE)
