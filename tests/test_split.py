from pathlib import Path

import numpy as np
import pytest

from ddpm.data.split import ImageSet, read_image_set, stratified_split, write_image_set
from ddpm.errors import DamagedFile, DdpmError, MissingFile
from ddpm.files import save_arrays, sha256


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.013])
def test_every_digit_keeps_its_share(digits: ImageSet, fraction: float):
    train, validation = stratified_split(digits.labels, fraction, 3407)
    everything = np.bincount(digits.labels)
    assert (np.abs(np.bincount(digits.labels[train], minlength=10) - fraction * everything) <= 0.5).all()
    assert len(train) + len(validation) == 60_000


def test_the_parts_are_disjoint_and_together_all(digits: ImageSet):
    train, validation = stratified_split(digits.labels, 0.9, 3407)
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(60_000))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()


def test_the_split_follows_from_the_seed(digits: ImageSet):
    first, again, other = (stratified_split(digits.labels, 0.9, seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    # Two independent tenths share a tenth of themselves.
    assert np.isin(first, other).mean() == pytest.approx(0.1, abs=0.02)


def test_validation_images_are_drawn_from_the_whole_file(digits: ImageSet):
    validation = stratified_split(digits.labels, 0.9, 3407)[1]
    tenths = np.bincount(validation // 6000)
    assert tenths.min() > 500
    assert tenths.max() < 700


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_an_empty_side_is_refused(fraction: float):
    with pytest.raises(DdpmError, match=rf"split\.train_fraction={fraction}"):
        stratified_split(np.repeat(np.arange(10), 3), fraction, 0)


def test_a_set_comes_back_from_its_file_and_equal_sets_are_equal_bytes(digits: ImageSet, tmp_path: Path):
    some = digits.take(np.array([5, 3, 59_999]))
    assert some.indices.tolist() == [5, 3, 59_999]
    assert np.array_equal(some.images[2], digits.images[59_999])
    for name in ("a.npz", "b.npz"):
        write_image_set(tmp_path / name, some)
    found = read_image_set(tmp_path / "a.npz")
    assert len(found) == 3
    for field in ("images", "labels", "indices"):
        assert np.array_equal(getattr(found, field), getattr(some, field))
        assert getattr(found, field).dtype == getattr(some, field).dtype
    assert sha256(tmp_path / "a.npz") == sha256(tmp_path / "b.npz")


def test_a_file_that_is_no_set_is_named(tmp_path: Path):
    path = tmp_path / "set.npz"
    with pytest.raises(MissingFile, match=r"set\.npz"):
        read_image_set(path)
    save_arrays(path, images=np.zeros(3))
    with pytest.raises(DamagedFile, match=r"set\.npz holds no 'labels'"):
        read_image_set(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DamagedFile, match=r"set\.npz is damaged"):
        read_image_set(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": np.zeros(2, np.uint8)},
        {"labels": np.zeros(3)},
        {"images": np.zeros((3, 4), np.uint8)},
        {"images": np.zeros((3, 4, 4), np.float32)},
        {"indices": np.arange(4)},
    ],
    ids=["fewer labels", "labels of another type", "flat images", "images of another type", "more indices"],
)
def test_arrays_that_are_no_set_are_named(tmp_path: Path, changes: dict[str, np.ndarray]):
    arrays = {"images": np.zeros((3, 4, 4), np.uint8), "labels": np.zeros(3, np.uint8), "indices": np.arange(3)}
    path = tmp_path / "set.npz"
    save_arrays(path, **arrays)
    read_image_set(path)
    save_arrays(path, **(arrays | changes))
    with pytest.raises(DamagedFile, match=r"set\.npz holds arrays of other types or shapes"):
        read_image_set(path)
