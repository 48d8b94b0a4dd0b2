import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.data.split import ImageSet
from ddpm.evaluation import classifier
from ddpm.evaluation.features.classifier import CLASSES, FEATURES, WEIGHTS, WEIGHTS_SHA256, classify, load_classifier
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile
from ddpm.utils.files import sha256

CPU = torch.device("cpu")


def test_the_shipped_weights_are_the_ones_the_code_names():
    assert sha256(WEIGHTS) == WEIGHTS_SHA256
    assert WEIGHTS.stat().st_size <= 1_000_000


def test_it_reads_real_digits(test_digits: ImageSet, verdicts: tuple[np.ndarray, np.ndarray]):
    _, probabilities = verdicts
    assert (probabilities.argmax(1) == test_digits.labels).mean() >= 0.995


def test_verdicts_are_probabilities_and_features_not_negative(verdicts: tuple[np.ndarray, np.ndarray]):
    features, probabilities = verdicts
    assert features.shape == (10_000, FEATURES)
    assert probabilities.shape == (10_000, CLASSES)
    assert features.min() >= 0
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (features.std(0) > 0).sum() > 0.9 * FEATURES


def test_verdicts_do_not_depend_on_the_batch(test_digits: ImageSet, verdicts: tuple[np.ndarray, np.ndarray]):
    network = load_classifier(CPU)
    for places in ([1234], [9999, 0, 3], list(range(490, 530))):
        features, probabilities = classify(network, test_digits.images[places], "some")
        np.testing.assert_allclose(features, verdicts[0][places], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(probabilities, verdicts[1][places], atol=1e-5)


def test_the_network_is_fixed():
    network = load_classifier(CPU)
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 28, 28, 3), (28, 28)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]):
    with pytest.raises(DdpmError, match="28 × 28"):
        classify(load_classifier(CPU), np.zeros(shape, np.uint8), "some")


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "mnist_classifier.safetensors"
    monkeypatch.setattr(classifier, "WEIGHTS", path)
    with pytest.raises(MissingFile, match=r"mnist_classifier\.safetensors is missing"):
        load_classifier(CPU)
    shutil.copy(WEIGHTS, path)
    load_classifier(CPU)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"mnist_classifier\.safetensors has SHA-256"):
        load_classifier(CPU)
