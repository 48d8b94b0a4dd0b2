"""The model that ships, against the numbers of its card: by other samples than those that were measured for it."""

import numpy as np
import torch
from cards import bounds

import ddpm
from ddpm.evaluation.classes import ambiguous
from ddpm.evaluation.features.classifier import MnistExtractor

IMAGES, SEED = 2_000, 12


def test_two_thousand_samples_have_the_fractions_of_the_card():
    model = ddpm.load(device="cpu")
    images, asked = np.asarray(model.sample(IMAGES, seed=SEED)), model.class_labels(IMAGES)
    read = MnistExtractor(torch.device("cpu")).features(images, "mnist").probabilities
    assert read is not None
    found = {"label_accuracy": (read.argmax(1) == asked).mean(), "ambiguous_fraction": ambiguous(read).mean()}
    for key, fraction in found.items():
        low, high = bounds("mnist", key, IMAGES)
        assert low <= fraction <= high, key
