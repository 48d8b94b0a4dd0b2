from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from ddpm.data.image_set import ImageSet
from ddpm.evaluation import reference
from ddpm.evaluation.features import Features
from ddpm.evaluation.frechet import fit_gaussian
from ddpm.evaluation.reference import (
    Reference,
    find_nearest_pixels,
    find_reference,
    frechet_floor,
    nearest_pixels,
    pixels,
    reference_of,
)
from ddpm.utils.errors import DamagedFile, MissingFile
from ddpm.utils.files import load_arrays, save_arrays


@pytest.fixture
def train(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(6000, 5)).astype(np.float32)


@pytest.fixture
def made(train: np.ndarray, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Reference:
    monkeypatch.setattr(reference, "FLOOR_IMAGES", 2000)
    test = rng.normal(size=(1000, 5)).astype(np.float32)
    return reference_of("abc", (train, np.arange(6000) % 10), (test, np.arange(1000) % 10), test[:, :2], 7)


def test_a_reference_comes_back_from_its_file(tmp_path: Path, made: Reference):
    made.save(tmp_path / "mnist.npz")
    found = Reference.load(tmp_path / "mnist.npz")
    for key, value in asdict(made).items():
        assert np.array_equal(getattr(found, key), value), key
        assert type(getattr(found, key)) is type(value), key


def test_a_file_of_another_kind_is_named(tmp_path: Path):
    path = tmp_path / "mnist.npz"
    with pytest.raises(MissingFile, match=r"mnist\.npz"):
        Reference.load(path)
    save_arrays(path, images=np.zeros(3))
    with pytest.raises(DamagedFile, match=r"mnist\.npz.*images.*not the features of real images"):
        Reference.load(path)


def test_it_holds_the_gaussian_of_all_and_the_distance_of_each_test_image(made: Reference, train: np.ndarray):
    expected = fit_gaussian(train)
    assert np.array_equal(made.gaussian.covariance, expected.covariance)
    assert made.gaussian.count == 6000
    assert made.complete
    assert np.array_equal(made.train, train)
    every = np.linalg.norm(made.test[:20, None].astype(np.float64) - train[None], axis=2)
    np.testing.assert_allclose(made.test_nearest[:20], every.min(1), rtol=1e-12)


def test_of_many_dimensions_a_random_sample_is_kept(
    made: Reference, train: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reference, "_KEPT_NUMBERS", 500 * 5)
    labels = np.arange(6000)
    found = reference_of("abc", (train, labels), (made.test, made.test_labels), None, 7)
    assert found.train.shape == (500, 5)
    assert np.array_equal(found.train, train[found.train_labels])
    assert len(set(found.train_labels)) == 500
    assert not found.complete
    assert len(found.test_nearest) == 0
    assert found.test_probabilities.shape == (1000, 0)
    assert np.array_equal(found.mean, made.mean)
    assert found.frechet_floor(2000) == found.floor == made.frechet_floor(2000)
    assert found.frechet_floor(100) == pytest.approx(made.frechet_floor(100), rel=0.2)
    assert np.isnan(found.frechet_floor(251))


class Fake:
    """A feature network that counts how often it is asked."""

    name, frechet_key, weights_sha256, dimensions, preprocessing = "fake", "fd_fake", "abc", 4, "none"
    asked = 0

    def features(self, images: np.ndarray, label: str) -> Features:  # noqa: ARG002
        self.asked += 1
        return Features(images.reshape(len(images), -1).astype(np.float32))


def test_a_stored_reference_is_used_if_weights_and_seed_are_the_same(tmp_path: Path, rng: np.random.Generator):
    def images(count: int) -> ImageSet:
        pictures = rng.integers(256, size=(count, 1, 2, 2), dtype=np.uint8)
        return ImageSet(pictures, np.zeros(count, np.int64), np.arange(count), 1)

    train, test = images(100), images(30)
    path, fake = tmp_path / "fake.npz", Fake()
    found = find_reference(path, fake, train, test, 7)
    assert fake.asked == 2
    found.save(path)
    find_reference(path, fake, train, test, 7)
    assert fake.asked == 2
    find_reference(path, fake, train, test, 8)
    fake.weights_sha256 = "other"
    find_reference(path, fake, train, test, 7)
    assert fake.asked == 6


def test_what_is_stored_of_other_images_is_not_used(tmp_path: Path, rng: np.random.Generator):
    pictures = rng.integers(256, size=(140, 1, 2, 2), dtype=np.uint8)
    train, test, other = (
        ImageSet(pictures[part], np.zeros(len(pictures[part]), np.int64), np.arange(len(pictures[part])), 1)
        for part in (slice(100), slice(100, 120), slice(120, 140))
    )
    made = [find_reference(tmp_path / "none.npz", Fake(), train, part, 7) for part in (test, other)]
    made[0].save(path := tmp_path / "fake.npz")
    stored = load_arrays(path)
    stored.pop("images_sha256")
    save_arrays(older := tmp_path / "older.npz", **stored)
    assert find_reference(older, Fake(), train, test, 7).images_sha256 == made[0].images_sha256
    found = find_reference(path, Fake(), train, other, 7)
    assert found.images_sha256 == made[1].images_sha256 != made[0].images_sha256
    assert np.array_equal(found.test, made[1].test)
    by_pixels = tmp_path / "pixels.npz"
    for part in (test, other, other):
        assert np.array_equal(find_nearest_pixels(by_pixels, train, part), nearest_pixels(train, part))
    written = by_pixels.stat().st_mtime_ns
    find_nearest_pixels(by_pixels, train, other)
    assert by_pixels.stat().st_mtime_ns == written


def floor(train: np.ndarray, count: int, seed: int = 1) -> float:
    return frechet_floor(train, fit_gaussian(train), count, np.random.default_rng(seed))


def test_the_floor_follows_from_the_stream_and_shrinks_with_the_count(train: np.ndarray, made: Reference):
    small, again, other = (floor(train, 100, seed) for seed in (1, 1, 2))
    assert small == again != other
    assert 0 < floor(train, 1000) < small
    assert made.frechet_floor(100) == made.frechet_floor(100) == pytest.approx(small, rel=0.2)


def test_the_floor_of_normal_features_is_what_sampling_theory_says(train: np.ndarray):
    # Of n samples in d dimensions: d/n from the mean, about d(d+1)/(4n) from the covariance, of a subset less 1/60.
    count, d = 100, 5
    expected = d / count + d * (d + 1) / (4 * count)
    assert floor(train, count) == pytest.approx(expected, rel=0.15)


def test_the_floor_is_never_that_of_all_training_images_and_never_that_of_fewer(train: np.ndarray):
    assert floor(train, len(train) // 2) > 1e-4
    assert np.isnan(floor(train, len(train) // 2 + 1))


def test_the_floor_has_the_class_labels_that_are_given(train: np.ndarray, made: Reference):
    far = train + 10 * (made.train_labels[:, None] == np.arange(5))
    everything, given = fit_gaussian(far), np.arange(1000) % 10

    def of(labels: np.ndarray | None) -> float:
        both = None if labels is None else (made.train_labels, labels)
        return frechet_floor(far, everything, 1000, np.random.default_rng(1), both)

    assert 0 < of(given) < 0.5 * of(None)
    assert of(given) == of(given[::-1])
    assert np.isnan(of(np.full(1000, 3)))  # there are 600 of it
    assert of(np.arange(1000) % 2 + 3) > 50


def test_a_reference_knows_the_labels_of_all_its_images_or_sees_none(made: Reference):
    even, one = np.arange(2000) % 10, np.zeros(2000, np.int64)
    assert made.frechet_floor(2000, even) != made.floor
    assert np.isnan(made.frechet_floor(2000, one))
    part = replace(made, train=made.train[:500], train_labels=made.train_labels[:500])
    assert not part.complete
    assert part.frechet_floor(2000, one) == made.floor
    assert part.frechet_floor(100, one[:100]) == part.frechet_floor(100)


def test_pixels_are_points_in_the_unit_cube():
    images = np.array([[[[0, 255], [51, 102]]]], np.uint8)
    np.testing.assert_allclose(pixels(images), [[0, 1, 0.2, 0.4]], rtol=1e-6)
