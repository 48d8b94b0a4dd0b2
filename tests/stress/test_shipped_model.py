"""The models that ship, against the numbers of their cards: by other samples than those that were measured for them."""

import numpy as np
import pytest
import torch
from cards import bounds

import ddpm
from ddpm.evaluation.classes import ambiguous
from ddpm.evaluation.features.classifier import MnistExtractor

pytestmark = pytest.mark.long

IMAGES, SEED = 2_000, 12


@pytest.mark.parametrize("name", ["mnist", "mnist_unconditional"])
def test_two_thousand_samples_have_the_fractions_of_the_card(name: str):
    model = ddpm.load(name, device="cpu")
    images, asked = np.asarray(model.sample(IMAGES, seed=SEED)), model.class_labels(IMAGES)
    read = MnistExtractor(torch.device("cpu")).features(images, "mnist").probabilities
    assert read is not None
    found = {"ambiguous_fraction": ambiguous(read).mean()}
    if asked is not None:
        found["label_accuracy"] = (read.argmax(1) == asked).mean()
    for key, fraction in found.items():
        low, high = bounds(name, key, IMAGES)
        assert low <= fraction <= high, key
