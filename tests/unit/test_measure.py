from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data.split import ImageSet
from ddpm.evaluation.features.classifier import classify, load_classifier
from ddpm.evaluation.frechet import fit_gaussian, frechet_distance
from ddpm.evaluation.measure import (
    mean_interval,
    measure_memorisation,
    measure_mnist,
    refuse_constant,
    to_mnist,
)
from ddpm.evaluation.neighbours import nearest
from ddpm.evaluation.reference import MnistReference, pixels
from ddpm.evaluation.tables import number_table, read_labels, scatter
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile

Verdicts = tuple[np.ndarray, np.ndarray]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reference(verdicts: Verdicts, test_digits: ImageSet) -> MnistReference:
    """6,000 of the test digits as the training set, 2,000 as the test set; the last 2,000 are left to be measured."""
    features, probabilities = verdicts
    images, labels = pixels(test_digits.images), test_digits.labels
    held_out = slice(6000, 8000)
    return MnistReference(
        features[:6000],
        features[held_out],
        probabilities[held_out],
        labels[:6000],
        labels[held_out],
        nearest(features[held_out], features[:6000], "test")[1],
        nearest(images[held_out], images[:6000], "test")[1],
    )


Numbers = dict[str, float]


def evaluated(images: np.ndarray, labels: np.ndarray | None, known: MnistReference, train: np.ndarray) -> Numbers:
    """All numbers of images, as the stage has them."""
    features, probabilities = classify(load_classifier(CPU), images, "test")
    numbers = measure_mnist(features, probabilities, labels, known, 20, 3407).numbers
    return numbers | measure_memorisation(images, features, train, known).numbers


def test_the_test_digits_score_at_the_floor_on_every_metric(
    full: MnistReference, digits: ImageSet, test_digits: ImageSet
):
    numbers = evaluated(test_digits.images, test_digits.labels, full, digits.images)
    real = [key for key in numbers if key.endswith("_real")]
    assert len(real) == 20
    for key in real:
        # The limit is the mean over random orders, the kernel distance over random subsets.
        random = key.startswith(("closer_share", "copied_share", "kd_mnist", "fd_mnist_limit"))
        tolerance = {"abs": 0.15} if random else {"rel": 0.02}
        assert numbers[key.removesuffix("_real")] == pytest.approx(numbers[key], **tolerance), key
    assert numbers["fd_mnist_over_floor"] < 3
    assert numbers["closer_share_pixel"] == pytest.approx(0.5, abs=1e-9)
    intervals = [key.removesuffix("_low") for key in numbers if key.endswith("_low")]
    assert len(intervals) == 9
    for key in intervals:
        assert numbers[f"{key}_low"] <= numbers[key] <= numbers[f"{key}_high"], key


def test_noise_scores_terribly(full: MnistReference, digits: ImageSet, rng: np.random.Generator):
    numbers = evaluated(rng.integers(256, size=(10_000, 28, 28), dtype=np.uint8), None, full, digits.images)
    assert numbers["fd_mnist_over_floor"] > 1000
    assert numbers["fd_mnist_limit"] > 100
    assert numbers["kd_mnist"] > 20
    assert numbers["recall_mnist"] < 0.05
    assert numbers["coverage_mnist"] < 0.05
    assert numbers["class_score"] < 3
    assert numbers["class_divergence"] > 0.5
    assert numbers["nearest_pixel"] > 2 * numbers["nearest_pixel_real"]
    assert numbers["closer_share_pixel"] < 0.01
    assert numbers["copied_share_pixel"] == 0
    assert "label_agreement" not in numbers


def test_copies_of_one_digit_score_terribly(full: MnistReference, digits: ImageSet, test_digits: ImageSet):
    numbers = evaluated(np.repeat(test_digits.images[:1], 10_000, 0), None, full, digits.images)
    assert numbers["fd_mnist_over_floor"] > 1000
    assert numbers["kd_mnist"] > 20
    assert numbers["recall_mnist"] < 0.01
    assert numbers["coverage_mnist"] < 0.01
    assert numbers["class_score"] == pytest.approx(1, abs=1e-6)
    assert numbers["class_divergence"] > 2
    assert numbers["commonest_class_share"] == 1
    assert "fd_mnist_per_class" not in numbers


def test_a_copied_training_set_is_caught(full: MnistReference, digits: ImageSet, rng: np.random.Generator):
    copied = digits.images[rng.permutation(60_000)[:10_000]]
    numbers = evaluated(copied, None, full, digits.images)
    for kind in ("pixel", "feature"):
        assert numbers[f"nearest_{kind}"] == 0
        assert numbers[f"closer_share_{kind}"] == 1
        assert numbers[f"copied_share_{kind}"] == 1
    # Nothing else would have told: by all the others these are the best of digits.
    assert numbers["fd_mnist"] < numbers["fd_mnist_real"]
    assert numbers["precision_mnist"] > numbers["precision_mnist_real"]


def test_a_few_copies_among_fresh_digits_are_counted(
    verdicts: Verdicts, reference: MnistReference, test_digits: ImageSet
):
    mixed = np.r_[np.arange(100), np.arange(8000, 9900)]
    found = measure_memorisation(test_digits.images[mixed], verdicts[0][mixed], test_digits.images[:6000], reference)
    assert found.numbers["copied_share_pixel"] == pytest.approx(0.05 + 0.01, abs=0.01)
    assert found.pixel_index[:100].tolist() == list(range(100))
    rows = list(found.rows())
    assert rows[3] == (4, 3, 0.0, 3, 0.0)
    assert len(rows) == 2000


def test_few_images_have_no_limit_and_no_distance_per_class(verdicts: Verdicts, reference: MnistReference):
    numbers = measure_mnist(verdicts[0][8000:8200], verdicts[1][8000:8200], None, reference, 0, 1).numbers
    assert not {"fd_mnist_limit", "fd_mnist_per_class", "fd_mnist_low"} & set(numbers)
    assert numbers["fd_mnist"] > 0


def test_blank_images_are_named(test_digits: ImageSet):
    images = test_digits.images[:50].copy()
    refuse_constant(images, str)
    images[[3, 17, 20, 41]] = np.array([0, 0, 9, 255], np.uint8)[:, None, None]
    with pytest.raises(DdpmError, match=r"4 of 50 images are blank \(3, 17, 20, …\)"):
        refuse_constant(images, str)


def test_the_interval_of_a_mean_is_the_normal_ones_for_many(rng: np.random.Generator):
    values = rng.normal(size=2000)
    low, high = mean_interval(values, 1000, 1, "test")
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 2000**0.5, rel=0.1)


def test_the_table_has_a_row_a_number():
    numbers = {"fd": 1.23456, "fd_low": 1.0, "fd_high": 1.5, "fd_real": 0.4, "fd_floor": 0.2, "share": 0.5}
    head, first, second, third = number_table(numbers | {"images": 10_000}).splitlines()
    assert head.split() == ["value", "95", "%", "interval", "real", "floor"]
    assert first.split() == ["fd", "1.235", "1", "to", "1.5", "0.4", "0.2"]
    assert second.split() == ["share", "0.5"]
    assert third.split() == ["images", "10000"]


def test_the_scatter_is_mean_and_deviation_over_the_sets_that_all_have_the_number():
    found = scatter({"fd": 1.0, "kd": 5.0}, [{"fd": 2.0, "kd": 5.0, "more": 1.0}, {"fd": 6.0}])
    assert found == {"fd_draws_mean": 3.0, "fd_draws_deviation": pytest.approx(7**0.5)}
    assert scatter({"fd": 1.0}, []) == {}


def test_numbers_alone_are_those_beside_what_real_digits_score(
    verdicts: Verdicts, reference: MnistReference, test_digits: ImageSet
):
    arguments = (verdicts[0][8000:], verdicts[1][8000:], test_digits.labels[8000:].astype(np.int64), reference, 0, 1)
    together, alone = (measure_mnist(*arguments, alone=alone).numbers for alone in (False, True))
    assert alone.items() <= together.items()
    assert {key for key in together if f"{key}_real" in together} <= set(alone)
    assert not [key for key in alone if key.endswith(("_real", "_floor"))]


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
