from pathlib import Path

import numpy as np
import pytest

from ddpm.data.load import as_images, load_images
from ddpm.utils.errors import DamagedFile, MissingFile
from ddpm.utils.images import write_rgb_pngs


def test_a_folder_an_npz_and_an_idx_file_are_the_same_images(raw: Path, tmp_path: Path):
    idx = load_images(raw / "t10k-images-idx3-ubyte", 2)
    assert idx.shape == (10_000, 1, 28, 28)
    some = idx[:30]
    (tmp_path / "folder").mkdir()
    write_rgb_pngs(tmp_path / "folder", some, 1, 30)
    np.savez(tmp_path / "a.npz", some[:, 0])
    np.savez(tmp_path / "b.npz", images=some.transpose(0, 2, 3, 1), labels=np.zeros(30))
    for name in ("folder", "a.npz", "b.npz"):
        assert np.array_equal(load_images(tmp_path / name, 2), some), name


def test_colour_images_keep_their_channels_wherever_these_stand(tmp_path: Path, rng: np.random.Generator):
    images = rng.integers(256, size=(4, 3, 5, 6), dtype=np.uint8)
    (tmp_path / "folder").mkdir()
    write_rgb_pngs(tmp_path / "folder", images, 1, 4)
    np.savez(tmp_path / "first.npz", images)
    np.savez(tmp_path / "last.npz", images.transpose(0, 2, 3, 1))
    for name in ("folder", "first.npz", "last.npz"):
        assert np.array_equal(load_images(tmp_path / name, 2), images), name


def test_floating_point_images_are_those_of_either_range(rng: np.random.Generator):
    images = rng.integers(256, size=(4, 1, 5, 6), dtype=np.uint8)
    images[0, 0, 0, 0] = 0
    assert np.array_equal(as_images(images / 255, "x"), images)
    assert np.array_equal(as_images((images / 127.5 - 1).astype(np.float32), "x"), images)


def test_values_may_miss_their_range_by_a_rounding(rng: np.random.Generator):
    images = rng.integers(256, size=(4, 1, 5, 6), dtype=np.uint8)
    images[0, 0, 0, :2] = 0, 255
    unit, both = images / 255, images / 127.5 - 1
    assert np.array_equal(as_images(unit * (1 + 2e-7) - 1e-9, "x"), images)
    assert np.array_equal(as_images(both * (1 + 1e-7), "x"), images)
    for wrong in (unit + 2e-6, both - 2e-6):
        with pytest.raises(DamagedFile, match="wanted"):
            as_images(wrong, "x")


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((3, 4)), "shape"),
        (np.zeros((3, 4, 4, 2)), "shape"),
        (np.zeros((0, 4, 4)), "shape"),
        (np.zeros((3, 4, 4), np.int32), "int32"),
        (np.full((3, 4, 4), 200.0), "from 200 to 200"),
        (np.array([0.5, np.nan, 0.5])[:, None, None] * np.ones((3, 4, 4)), "image 1 .*NaN"),
    ],
)
def test_what_is_no_image_is_named(images: np.ndarray, said: str):
    with pytest.raises(DamagedFile, match=f"the file.*{said}"):
        as_images(images, "the file")


@pytest.mark.parametrize("name", ["a.npy", "a.png"])
def test_a_file_of_another_kind_is_told_the_kinds(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(DamagedFile, match=f"{name} .*a folder of PNG files, an npz file or an IDX file is read"):
        load_images(tmp_path / name, 1)


def test_a_file_that_is_missing_or_holds_several_arrays_is_named(tmp_path: Path):
    with pytest.raises(MissingFile, match="nowhere"):
        load_images(tmp_path / "nowhere", 1)
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(DamagedFile, match=r"two\.npz.*none of them named images"):
        load_images(tmp_path / "two.npz", 1)
