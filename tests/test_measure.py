from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ddpm.data.split import ImageSet
from ddpm.errors import DamagedFile, MissingFile
from ddpm.evaluation.classifier import classify, load_classifier
from ddpm.evaluation.frechet import Gaussian, fit_gaussian, frechet_distance
from ddpm.evaluation.measure import (
    class_shares,
    label_agreement,
    measure_inception,
    measure_mnist,
    read_labels,
    sure_share,
    to_mnist,
    write_class_shares,
)
from ddpm.evaluation.reference import MnistReference

Verdicts = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def reference(verdicts: Verdicts, test_digits: ImageSet) -> MnistReference:
    """6,000 of the test digits as the training set, 2,000 as the test set; the last 2,000 are left to be measured."""
    features, probabilities = verdicts
    return MnistReference(features[:6000], features[6000:8000], probabilities[6000:8000], test_digits.labels[6000:8000])


def test_real_digits_score_near_the_floor(verdicts: Verdicts, reference: MnistReference, test_digits: ImageSet):
    features, probabilities = (part[8000:] for part in verdicts)
    measured = measure_mnist(features, probabilities, test_digits.labels[8000:], reference, 20, 3407)
    numbers = measured.numbers
    assert numbers["fd_mnist"] == pytest.approx(numbers["fd_mnist_floor_test"], rel=0.9)
    assert numbers["fd_mnist_low"] < numbers["fd_mnist"] < numbers["fd_mnist_high"]
    assert numbers["sure_share"] > 0.97
    assert numbers["sure_share_real"] > 0.97
    assert numbers["fd_mnist_over_floor"] == numbers["fd_mnist"] / numbers["fd_mnist_floor"]
    assert numbers["label_agreement"] > 0.98
    assert numbers["label_agreement_real"] > 0.98
    np.testing.assert_allclose(measured.class_shares.sum(0), 1)
    assert 0.05 < numbers["rarest_class_share"] < numbers["commonest_class_share"] < 0.15


def test_noise_scores_terribly(verdicts: Verdicts, reference: MnistReference, rng: np.random.Generator):
    noise = rng.integers(256, size=(300, 28, 28), dtype=np.uint8)
    features, probabilities = classify(load_classifier(torch.device("cpu")), noise, "noise")
    numbers = measure_mnist(features, probabilities, None, reference, 0, 3407).numbers
    assert numbers["fd_mnist"] > 20
    assert numbers["fd_mnist_over_floor"] > 50
    assert "fd_mnist_low" not in numbers
    assert "label_agreement" not in numbers
    assert numbers["commonest_class_share"] > 0.5


def test_a_missing_digit_shows(verdicts: Verdicts, reference: MnistReference, test_digits: ImageSet):
    chosen = np.flatnonzero((test_digits.labels != 4) & (np.arange(10_000) >= 6000))[:2000]
    with_all = measure_mnist(verdicts[0][8000:], verdicts[1][8000:], None, reference, 0, 1).numbers
    without = measure_mnist(verdicts[0][chosen], verdicts[1][chosen], None, reference, 0, 1).numbers
    assert without["fd_mnist"] > 3 * with_all["fd_mnist"]
    assert without["rarest_class_share"] < 0.01


def test_the_distance_is_the_one_of_the_gaussians(verdicts: Verdicts, reference: MnistReference):
    found = measure_mnist(verdicts[0][8000:], verdicts[1][8000:], None, reference, 0, 1).numbers["fd_mnist"]
    expected = frechet_distance(fit_gaussian(reference.train), fit_gaussian(verdicts[0][8000:]))
    assert found == pytest.approx(expected, rel=1e-9)


def test_shares_by_hand():
    probabilities = np.eye(10)[[3, 3, 3, 7]] * 0.95 + 0.005
    probabilities[2] = [0.1] * 3 + [0.2] + [0.1] * 5 + [0.1]
    assert class_shares(probabilities).tolist() == [0, 0, 0, 0.75, 0, 0, 0, 0.25, 0, 0]
    assert sure_share(probabilities) == 0.75


def test_label_agreement_by_hand():
    assert label_agreement(np.eye(10)[[3, 3, 5, 7]], np.array([3, 4, 5, 8])) == 0.5


def test_labels_are_read_as_they_were_written(tmp_path: Path):
    path = tmp_path / "labels.csv"
    path.write_text("image,digit\n1,7\n2,0\n")
    labels = read_labels(path, 2)
    assert labels is not None
    assert labels.tolist() == [7, 0]
    path.write_text("image,digit\n")
    assert read_labels(path, 2) is None


@pytest.mark.parametrize("content", ["", "image,digit\n1,7\n", "image,digit\n1,7\n2,x\n", "image\n1\n2\n"])
def test_a_damaged_table_of_labels_is_named(tmp_path: Path, content: str):
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(DamagedFile, match=r"labels\.csv"):
        read_labels(path, 2)
    path.unlink()
    with pytest.raises(MissingFile, match=r"labels\.csv is missing"):
        read_labels(path, 2)


def test_class_shares_are_a_table_of_two_sets(tmp_path: Path):
    shares = np.stack([np.arange(10) / 45, np.full(10, 0.1)], 1)
    write_class_shares(tmp_path / "shares.csv", shares)
    table = pd.read_csv(tmp_path / "shares.csv")
    assert list(table.columns) == ["digit", "set", "share"]
    for place, name in enumerate(("generated", "real")):
        part = table[table["set"] == name]
        assert part["digit"].tolist() == list(range(10))
        assert part["share"].tolist() == shares[:, place].tolist()


def test_inception_numbers_are_the_distance_and_its_interval(rng: np.random.Generator):
    features = rng.normal(size=(300, 6)).astype(np.float32)
    known = Gaussian(np.ones(6), np.eye(6), 60_000)
    with_interval, without = (measure_inception(features, known, resamples, 1) for resamples in (30, 0))
    assert without == {"fid_inception": pytest.approx(frechet_distance(known, fit_gaussian(features)), rel=1e-12)}
    assert with_interval["fid_inception_low"] < without["fid_inception"] < with_interval["fid_inception_high"]


def test_grey_images_reach_the_classifier_unchanged(test_digits: ImageSet):
    images = test_digits.images[:50]
    assert np.array_equal(to_mnist(np.repeat(images[..., None], 3, -1)), images)


def test_colours_become_luma(rng: np.random.Generator):
    colours = rng.integers(256, size=(5, 28, 28, 3), dtype=np.uint8)
    luma = colours @ np.array([0.299, 0.587, 0.114])
    assert np.abs(to_mnist(colours) - luma).max() < 1


@pytest.mark.parametrize("size", [14, 56])
def test_other_sizes_are_resized_to_28_pixels(test_digits: ImageSet, size: int):
    images = [np.asarray(Image.fromarray(image).resize((size, size), 3)) for image in test_digits.images[:20]]
    found = to_mnist(np.repeat(np.stack(images)[..., None], 3, -1))
    assert found.shape == (20, 28, 28)
    assert np.corrcoef(found.ravel(), test_digits.images[:20].ravel())[0, 1] > 0.9
