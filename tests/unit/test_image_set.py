import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddpm.data import image_set
from ddpm.data.image_set import ImageSet, ImageSpec, read_image_set, write_image_set
from ddpm.utils.errors import DamagedFile, MissingFile
from ddpm.utils.files import load_arrays, save_arrays, sha256


@pytest.fixture
def images(rng: np.random.Generator) -> ImageSet:
    """Five images in colour of 6 × 6 pixels, two of four classes."""
    pixels = rng.integers(256, size=(5, 3, 6, 6), dtype=np.uint8)
    return ImageSet(pixels, np.array([2, 0, 2, 2, 0]), np.arange(100, 105), 4)


def same(one: ImageSet, other: ImageSet) -> bool:
    parts = [(getattr(one, name), getattr(other, name)) for name in ("images", "labels", "indices")]
    return one.spec == other.spec and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in parts)


def test_the_spec_is_what_the_images_share(images: ImageSet, digits: ImageSet):
    assert images.spec == ImageSpec(size=6, channels=3, classes=4)
    assert images.spec.shape == images.images[0].shape
    assert digits.spec == ImageSpec(size=28, channels=1, classes=10, name="mnist")


def test_taking_keeps_image_label_and_index_together(images: ImageSet):
    some = images.take(np.array([3, 1, 3]))
    assert len(some) == 3
    assert some.labels.tolist() == [2, 0, 2]
    assert some.indices.tolist() == [103, 101, 103]
    assert np.array_equal(some.images, images.images[[3, 1, 3]])
    assert some.spec == images.spec


def test_frequencies_are_of_every_class_and_of_none_without_labels(images: ImageSet):
    assert images.class_frequencies() == [0.4, 0.0, 0.6, 0.0]
    assert ImageSet(images.images, np.zeros(5, np.int64), images.indices, 0).class_frequencies() == []


@pytest.mark.parametrize("classes", [4, 0])
def test_a_set_is_read_as_written_and_equal_sets_are_equal_bytes(images: ImageSet, tmp_path: Path, classes: int):
    stored = ImageSet(images.images, images.labels * (classes > 0), images.indices, classes)
    for name in ("a.npz", "b.npz"):
        write_image_set(tmp_path / name, stored)
    assert same(read_image_set(tmp_path / "a.npz"), stored)
    assert sha256(tmp_path / "a.npz") == sha256(tmp_path / "b.npz")


def test_names_are_kept_and_classes_without_names_are_called_by_their_numbers(images: ImageSet, tmp_path: Path):
    assert images.spec.class_names == ("0", "1", "2", "3")
    named = replace(images, name="animals", class_names=("bee", "cat", "dog", "élan"))
    write_image_set(tmp_path / "set.npz", named)
    found = read_image_set(tmp_path / "set.npz")
    assert same(found, named)
    assert found.take(np.array([1])).spec == ImageSpec(6, 3, 4, "animals", ("bee", "cat", "dog", "élan"))
    assert ImageSpec.from_file(json.loads(json.dumps(named.spec.to_file()))) == named.spec


def test_a_file_without_names_is_of_mnist_and_mnist_writes_none(images: ImageSet, tmp_path: Path):
    digits = replace(images, name="mnist")
    write_image_set(tmp_path / "set.npz", digits)
    assert set(load_arrays(tmp_path / "set.npz")) == {"images", "labels", "indices", "classes"}
    assert read_image_set(tmp_path / "set.npz").name == "mnist"
    assert digits.spec.to_file() == {"size": 6, "channels": 3, "classes": 4}
    assert ImageSpec.from_file({"size": 6, "channels": 3, "classes": 4}) == digits.spec


@pytest.mark.parametrize("names", [("a", "b", "c"), ("a", "b", "c", "a")])
def test_names_are_one_for_each_class_and_all_different(images: ImageSet, names: tuple[str, ...]):
    with pytest.raises(ValueError, match=r"3 .*4 classes"):
        replace(images, class_names=names)


def test_a_file_that_is_no_set_is_named(tmp_path: Path):
    path = tmp_path / "set.npz"
    with pytest.raises(MissingFile, match=r"set\.npz is missing"):
        read_image_set(path)
    save_arrays(path, images=np.zeros(3))
    with pytest.raises(DamagedFile, match=r"set\.npz holds no 'labels'"):
        read_image_set(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DamagedFile, match=r"set\.npz is damaged"):
        read_image_set(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.zeros(5, np.uint8)}, "other types or shapes"),
        ({"labels": np.zeros(5)}, "other types or shapes"),
        ({"labels": np.zeros((5, 1), np.int64)}, "other types or shapes"),
        ({"images": np.zeros((5, 6, 6), np.uint8)}, "other types or shapes"),
        ({"images": np.zeros((5, 3, 6, 6), np.float32)}, "other types or shapes"),
        ({"classes": np.array([4])}, "other types or shapes"),
        ({"classes": np.array(4.0)}, "other types or shapes"),
        ({"labels": np.zeros(4, np.int64)}, "lengths or sides"),
        ({"indices": np.arange(6)}, "lengths or sides"),
        ({"images": np.zeros((5, 3, 6, 7), np.uint8)}, "lengths or sides"),
        ({"labels": np.array([0, 1, 2, 3, 4])}, "labels outside of its 4 classes"),
        ({"labels": np.array([0, 1, 2, 3, -1])}, "labels outside of its 4 classes"),
        ({"name": np.array(3)}, "names of other types"),
        ({"class_names": np.array(["a", "b", "c"])}, "3 class names"),
        ({"classes": np.array(0)}, "labels outside of its 0 classes"),
        (
            {"images": np.zeros((0, 3, 6, 6), np.uint8), "labels": np.zeros(0, np.int64), "indices": np.arange(0)},
            "lengths or sides",
        ),
    ],
)
def test_arrays_that_are_no_set_are_named(images: ImageSet, tmp_path: Path, changes: dict[str, np.ndarray], words: str):
    arrays = {"images": images.images, "labels": images.labels, "indices": images.indices, "classes": np.array(4)}
    path = tmp_path / "set.npz"
    save_arrays(path, **arrays)
    assert same(read_image_set(path), replace(images, name="mnist"))
    save_arrays(path, **(arrays | changes))
    with pytest.raises(DamagedFile, match=rf"set\.npz holds .*{words}"):
        read_image_set(path)


@pytest.fixture
def mapped(images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """The same images, mapped from a file."""
    monkeypatch.setattr(image_set, "MAP_ABOVE", 300)
    write_image_set(tmp_path / "set.npz", images)
    return read_image_set(tmp_path / "set.npz")


def test_large_images_are_mapped_from_their_file_and_the_same(images: ImageSet, mapped: ImageSet):
    assert isinstance(mapped.images, np.memmap)
    assert not isinstance(mapped.labels, np.memmap)
    assert same(mapped, images)
    positions = np.array([4, 0, 3, 3])
    assert same(mapped.take(positions), images.take(positions))
    assert isinstance(mapped.take(positions).images, np.memmap)
    assert not isinstance(mapped.take(positions[:2]).images, np.memmap)


def test_mapped_images_are_written_to_the_same_bytes(images: ImageSet, mapped: ImageSet, tmp_path: Path):
    for name, stored in (("a.npz", images), ("b.npz", mapped)):
        write_image_set(tmp_path / name, stored)
    assert sha256(tmp_path / "a.npz") == sha256(tmp_path / "b.npz")


def test_a_change_of_mapped_images_stays_in_memory(mapped: ImageSet, tmp_path: Path):
    before = sha256(tmp_path / "set.npz")
    mapped.images[:] = 7
    assert (mapped.images == 7).all()
    assert sha256(tmp_path / "set.npz") == before


def test_another_process_maps_the_file_itself(images: ImageSet, mapped: ImageSet):
    sent = pickle.dumps(mapped)
    assert same(pickle.loads(sent), images)
    assert isinstance(pickle.loads(sent).images, np.memmap)
    assert images.images.tobytes() not in sent
    some = np.array([1, 2])
    for part in (images, images.take(some), mapped.take(some), replace(mapped, images=mapped.images[1:])):
        assert np.array_equal(pickle.loads(pickle.dumps(part)).images, part.images)


def test_a_sample_of_a_set_in_order_of_its_classes_has_all_of_them(digits: ImageSet):
    ordered = digits.take(np.argsort(digits.labels[:2000], kind="stable"))
    some = ordered.sample(200, np.random.default_rng(0))
    assert len(some) == 200
    assert (np.diff(some.labels) >= 0).all()
    assert set(some.labels) == set(range(10))
    assert np.array_equal(ordered.sample(5000, np.random.default_rng(0)).images, ordered.images)
