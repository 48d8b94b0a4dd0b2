from pathlib import Path

import numpy as np
import pytest

from ddpm.evaluation import reference
from ddpm.evaluation.frechet import fit_gaussian
from ddpm.evaluation.reference import InceptionReference, MnistReference, frechet_floor, pixels, summarize_inception
from ddpm.utils.errors import DamagedFile, MissingFile


@pytest.fixture
def train(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(6000, 5)).astype(np.float32)


@pytest.fixture
def test_set(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(1000, 5)).astype(np.float32)


def test_a_reference_comes_back_from_its_file(tmp_path: Path, train: np.ndarray, test_set: np.ndarray):
    path = tmp_path / "mnist.npz"
    parts = (train, test_set, test_set[:, :2], train[:, 0], test_set[:, 0], test_set[:, 1], test_set[:, 2])
    MnistReference(*parts).save(path)
    found = MnistReference.load(path)
    assert np.array_equal(found.train, train)
    assert np.array_equal(found.test, test_set)
    assert np.array_equal(found.test_probabilities, test_set[:, :2])
    assert np.array_equal(found.test_nearest_pixel, test_set[:, 2])


def test_a_file_of_another_kind_is_named(tmp_path: Path, train: np.ndarray):
    path = tmp_path / "reference.npz"
    with pytest.raises(MissingFile, match=r"reference\.npz"):
        MnistReference.load(path)
    MnistReference(*[train] * 7).save(path)
    with pytest.raises(DamagedFile, match=r"reference\.npz.*InceptionReference"):
        InceptionReference.load(path)


def test_the_floor_follows_from_the_seed_and_shrinks_with_the_count(train: np.ndarray):
    small, again, other = (frechet_floor(train, 100, seed) for seed in (1, 1, 2))
    assert small == again != other
    assert 0 < frechet_floor(train, 1000, 1) < small


def test_the_floor_of_normal_features_is_what_sampling_theory_says(train: np.ndarray):
    # Of n samples in d dimensions: d/n from the mean, about d(d+1)/(8n) from the covariance, of a subset less 1/60.
    count, d = 100, 5
    expected = d / count + d * (d + 1) / (8 * count)
    assert frechet_floor(train, count, 1) == pytest.approx(expected, rel=0.3)


def test_the_floor_is_never_that_of_all_training_images(train: np.ndarray):
    assert frechet_floor(train, len(train), 1) == frechet_floor(train, len(train) // 2, 1) > 1e-4


def test_an_inception_reference_is_the_gaussian_the_floor_and_a_sample(
    train: np.ndarray, test_set: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reference, "INCEPTION_SAMPLE", 500)
    summarize_inception(train, test_set, "abc", 7).save(tmp_path / "inception.npz")
    found = InceptionReference.load(tmp_path / "inception.npz")
    expected = fit_gaussian(train)
    assert np.array_equal(found.real.everything.mean, expected.mean)
    assert np.array_equal(found.real.everything.covariance, expected.covariance)
    assert found.real.everything.count == 6000
    assert float(found.floor) == frechet_floor(train, 500, 7)
    assert found.weights_sha256 == "abc"
    assert found.train.shape == (500, 5)
    assert {row.tobytes() for row in found.train} <= {row.tobytes() for row in train}
    assert np.array_equal(found.test, test_set)


def test_pixels_are_points_in_the_unit_cube():
    images = np.array([[[0, 255], [51, 102]]], np.uint8)
    np.testing.assert_allclose(pixels(images), [[0, 1, 0.2, 0.4]], rtol=1e-6)
