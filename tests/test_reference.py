from pathlib import Path

import numpy as np
import pytest

from ddpm.errors import DamagedFile, MissingFile
from ddpm.evaluation import reference
from ddpm.evaluation.frechet import fit_gaussian, frechet_distance
from ddpm.evaluation.reference import InceptionReference, MnistReference, floors, make_inception_reference


@pytest.fixture
def train(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(6000, 5)).astype(np.float32)


@pytest.fixture
def test_set(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(1000, 5)).astype(np.float32)


def test_a_reference_comes_back_from_its_file(tmp_path: Path, train: np.ndarray, test_set: np.ndarray):
    path = tmp_path / "mnist.npz"
    MnistReference(train, test_set, test_set[:, :2], test_set[:, 0]).save(path)
    found = MnistReference.load(path)
    assert np.array_equal(found.train, train)
    assert np.array_equal(found.test, test_set)
    assert np.array_equal(found.test_probabilities, test_set[:, :2])


def test_a_file_of_another_kind_is_named(tmp_path: Path, train: np.ndarray):
    path = tmp_path / "reference.npz"
    with pytest.raises(MissingFile, match=r"reference\.npz"):
        MnistReference.load(path)
    MnistReference(train, train, train, train).save(path)
    with pytest.raises(DamagedFile, match=r"reference\.npz.*InceptionReference"):
        InceptionReference.load(path)


def test_floors_follow_from_the_seed_and_shrink_with_the_count(train: np.ndarray, test_set: np.ndarray):
    small, again, other = (floors(train, test_set, 100, seed) for seed in (1, 1, 2))
    large = floors(train, test_set, 1000, 1)
    assert small == again != other
    assert 0 < large[0] < small[0]
    assert 0 < large[1] < small[1]


def test_the_floor_of_normal_features_is_what_sampling_theory_says(train: np.ndarray, test_set: np.ndarray):
    # Of n samples in d dimensions: d/n from the mean, about d(d+1)/(8n) from the covariance, of a subset less 1/60.
    count, d = 100, 5
    expected = d / count + d * (d + 1) / (8 * count)
    assert floors(train, test_set, count, 1)[0] == pytest.approx(expected, rel=0.3)


def test_the_floor_is_never_that_of_all_training_images_and_few_test_images_are_all_taken(
    train: np.ndarray, test_set: np.ndarray
):
    floor, floor_test = floors(train, test_set, len(train), 1)
    assert floor == floors(train, test_set, len(train) // 2, 1)[0] > 1e-4
    assert floor_test == pytest.approx(frechet_distance(fit_gaussian(train), fit_gaussian(test_set)), rel=1e-9)


def test_an_inception_reference_is_the_gaussian_and_the_floors(
    train: np.ndarray, test_set: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reference, "INCEPTION_FLOOR_IMAGES", 500)
    make_inception_reference(train, test_set, "abc", 7).save(tmp_path / "inception.npz")
    found = InceptionReference.load(tmp_path / "inception.npz")
    expected = fit_gaussian(train)
    assert np.array_equal(found.gaussian.mean, expected.mean)
    assert np.array_equal(found.gaussian.covariance, expected.covariance)
    assert found.gaussian.count == 6000
    assert (float(found.floor), float(found.floor_test)) == floors(train, test_set, 500, 7)
    assert found.weights_sha256 == "abc"
