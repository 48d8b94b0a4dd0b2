"""The early distance: which of two sets of images is nearer to the training set, of any data set."""

import pickle

import numpy as np
import pytest
import torch

from ddpm.data.image_set import ImageSet
from ddpm.evaluation import early
from ddpm.evaluation.early import EarlyDistance
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.evaluation.frechet import fit_gaussian, frechet_distance
from ddpm.utils.errors import DdpmError


def noisier(images: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    return np.clip(images + rng.normal(0, deviation, images.shape), 0, 255).astype(np.uint8)


def test_of_digits_it_is_the_frechet_distance_of_the_shipped_classifier(
    digits: ImageSet, test_digits: ImageSet, capfd: pytest.CaptureFixture[str]
):
    training, samples = digits.take(np.arange(2000)), test_digits.images[:500]
    found = EarlyDistance(training, 1)(samples)
    assert capfd.readouterr().err == ""
    extractor = MnistExtractor(torch.device("cpu"))
    real, sampled = (fit_gaussian(extractor.features(images, "").values) for images in (training.images, samples))
    assert found == pytest.approx(frechet_distance(real, sampled), rel=1e-6)


def test_of_other_images_it_is_that_of_their_patches_and_falls_with_the_noise(
    coloured: tuple[ImageSet, ImageSet], rng: np.random.Generator, capfd: pytest.CaptureFixture[str]
):
    training, test = coloured
    distance = EarlyDistance(training, 1)
    found = [distance(noisier(test.images[:300], rng, deviation)) for deviation in (0.0, 40.0, 120.0)]
    assert found == sorted(found)
    assert found[2] > 2 * found[0]
    assert capfd.readouterr().err == ""


def test_the_training_images_themselves_have_the_distance_nothing(coloured: tuple[ImageSet, ImageSet]):
    training, _ = coloured
    distance = EarlyDistance(training, 1)
    assert distance(distance.real(300)) == pytest.approx(0, abs=1e-6)


def test_more_samples_than_training_images_are_compared_with_as_many_as_there_are(coloured: tuple[ImageSet, ImageSet]):
    training, test = coloured
    few = training.take(np.arange(100))
    assert EarlyDistance(few, 1)(test.images[:400]) == EarlyDistance(few, 1)(test.images[:100])


def test_the_seed_alone_decides_it_in_any_process(
    digits: ImageSet, test_digits: ImageSet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(early, "REAL", 500)
    training, samples = digits.take(np.arange(1000)), test_digits.images[:200]
    first, again, other = (EarlyDistance(training, seed) for seed in (1, 1, 2))
    value = first(samples)
    assert first(samples) == value
    assert pickle.loads(pickle.dumps(again))(samples) == value
    assert other(samples) != value


def test_too_few_samples_are_refused(digits: ImageSet):
    with pytest.raises(DdpmError, match="holds 100 images, too few for 128 features"):
        EarlyDistance(digits.take(np.arange(1000)), 1)(digits.images[:100])
