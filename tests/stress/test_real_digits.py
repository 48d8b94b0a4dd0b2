"""What the whole evaluation says of images whose quality is known: real ones, noise, one image, the training set."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ddpm.data.image_set import ImageSet
from ddpm.data.load import GivenLabels
from ddpm.evaluation.evaluator import Evaluator
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.evaluation.reference import Reference

pytestmark = pytest.mark.long

Numbers = dict[str, float]
COUNT = 3000


@pytest.fixture(scope="module")
def evaluated(full: Reference, test_nearest: np.ndarray, digits: ImageSet) -> Callable[..., Numbers]:
    """All numbers of images and their conditioning labels, as the `fid` stage has them."""
    evaluator = Evaluator([(MnistExtractor(torch.device("cpu")), full)], {}, 3407)

    def measure(images: np.ndarray, labels: np.ndarray | None = None) -> Numbers:
        found = evaluator.measure(images, GivenLabels(labels), 20, "test")
        return found.numbers | evaluator.memorization(images, found.features, digits, test_nearest)[0]

    return measure


def test_the_test_digits_score_at_the_floor_on_every_metric(evaluated: Callable[..., Numbers], test_digits: ImageSet):
    numbers = evaluated(test_digits.images, test_digits.labels)
    real = [key for key in numbers if key.endswith("_real")]
    assert len(real) == 20
    # These are means over random orders or subsets, or compare one half of the test images with the other.
    random = ("nearest_auc", "memorized_fraction", "kd_mnist", "fd_mnist_infinity")
    for key in real:
        tolerance = {"abs": 0.15} if key.startswith(random) else {"rel": 0.02}
        assert numbers[key.removesuffix("_real")] == pytest.approx(numbers[key], **tolerance), key
    assert numbers["nearest_auc_pixel"] == pytest.approx(0.5, abs=1e-9)
    # Nobody dealt them their labels; training digits of the very same ones lie nearer than random ones.
    drawn = evaluated(test_digits.images)
    assert drawn["fd_mnist_over_floor"] < 3
    assert drawn["fd_mnist"] == numbers["fd_mnist"]
    assert 0.5 * drawn["fd_mnist_floor"] < numbers["fd_mnist_floor"] < drawn["fd_mnist_floor"]


def test_noise_scores_terribly(evaluated: Callable[..., Numbers], rng: np.random.Generator):
    numbers = evaluated(rng.integers(256, size=(COUNT, 1, 28, 28), dtype=np.uint8))
    assert numbers["fd_mnist_over_floor"] > 1000
    assert numbers["fd_mnist_infinity"] > 100
    assert numbers["kd_mnist"] > 20
    assert numbers["recall_mnist"] < 0.05
    assert numbers["coverage_mnist"] < 0.05
    assert numbers["classifier_score"] < 3
    assert numbers["class_kl"] > 0.5
    assert numbers["nearest_pixel"] > 2 * numbers["nearest_pixel_real"]
    assert numbers["nearest_auc_pixel"] < 0.01
    assert numbers["memorized_fraction_pixel"] == 0
    assert "label_accuracy" not in numbers


def test_copies_of_one_digit_score_terribly(evaluated: Callable[..., Numbers], test_digits: ImageSet):
    numbers = evaluated(np.repeat(test_digits.images[:1], COUNT, 0))
    assert numbers["fd_mnist_over_floor"] > 1000
    assert numbers["kd_mnist"] > 20
    assert numbers["recall_mnist"] < 0.01
    assert numbers["coverage_mnist"] < 0.01
    assert numbers["classifier_score"] == pytest.approx(1, abs=1e-6)
    assert numbers["class_kl"] > 2
    assert numbers["max_class_fraction"] == 1
    assert "fd_mnist_per_class" not in numbers


def test_a_copied_training_set_is_caught(evaluated: Callable[..., Numbers], digits: ImageSet, rng: np.random.Generator):
    numbers = evaluated(digits.images[rng.permutation(len(digits))[:COUNT]])
    for kind in ("pixel", "feature"):
        assert numbers[f"nearest_{kind}"] == 0
        assert numbers[f"nearest_auc_{kind}"] == 1
        assert numbers[f"memorized_fraction_{kind}"] == 1
    # By every other number these are the best of digits.
    assert numbers["fd_mnist"] < numbers["fd_mnist_real"]
    assert numbers["precision_mnist"] > numbers["precision_mnist_real"]
