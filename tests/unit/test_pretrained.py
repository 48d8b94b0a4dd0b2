"""The models that ship: what their files hold, and that they draw what their cards claim."""

import numpy as np
import pytest
import torch
from cards import bounds

import ddpm
from ddpm import pretrained
from ddpm.evaluation.classes import ambiguous, class_fractions
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.models.checkpoint import load_checkpoint

NAMES = ["mnist", "mnist_unconditional"]
IMAGES = 100


def test_the_models_are_these_and_each_has_its_card():
    assert pretrained.names() == NAMES
    assert sorted(path.stem for path in pretrained.FOLDER.glob("*.md")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_small_and_holds_what_sampling_needs_and_no_more(name: str):
    path = pretrained.path_of(name)
    assert path.stat().st_size <= 2_500_000
    found = load_checkpoint(path)
    guided = found.metadata["sampling"]["autoguidance"] != 1.0
    assert set(found.tensors) == ({"ema", "guide"} if guided else {"ema"})
    assert {tensor.dtype for group in found.tensors.values() for tensor in group.values()} == {torch.float16}
    card = (pretrained.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    parameters = sum(tensor.numel() for tensor in found.tensors["ema"].values())
    for fact in (f"{parameters:,}", found.metadata["commit"][:7], f"{found.metadata['step']:,}", "MIT"):
        assert fact in card


def test_the_digits_are_those_that_are_asked_for():
    model, classes = ddpm.load(), np.arange(IMAGES) % 10
    images = model.sample(IMAGES, labels=classes, seed=11)
    read = MnistExtractor(torch.device("cpu")).features(np.asarray(images), "mnist").probabilities
    assert read is not None
    assert (read.argmax(1) == classes).mean() >= bounds("mnist", "label_accuracy", IMAGES)[0]
    assert ambiguous(read).mean() <= bounds("mnist", "ambiguous_fraction", IMAGES)[1]


def test_the_model_that_knows_no_classes_draws_all_of_them():
    images = ddpm.load("mnist_unconditional").sample(IMAGES, seed=11)
    read = MnistExtractor(torch.device("cpu")).features(np.asarray(images), "unconditional").probabilities
    assert read is not None
    assert ambiguous(read).mean() <= bounds("mnist_unconditional", "ambiguous_fraction", IMAGES)[1]
    assert class_fractions(read).min() > 0.02
    assert class_fractions(read).max() < 0.25
