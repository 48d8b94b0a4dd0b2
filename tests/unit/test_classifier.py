import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data.image_set import ImageSet
from ddpm.evaluation.features import (
    EXTRACTORS,
    FeatureExtractor,
    Features,
    UnavailableExtractor,
    classifier,
    open_extractors,
)
from ddpm.evaluation.features.classifier import (
    CLASSES,
    FEATURES,
    WEIGHTS,
    WEIGHTS_SHA256,
    MnistExtractor,
    load_classifier,
)
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile
from ddpm.utils.files import sha256
from ddpm.utils.images import to_rgb

CPU = torch.device("cpu")


def test_the_shipped_weights_are_the_ones_the_code_names():
    assert sha256(WEIGHTS) == WEIGHTS_SHA256
    assert WEIGHTS.stat().st_size <= 1_000_000


def test_it_classifies_real_digits(test_digits: ImageSet, by_classifier: Features):
    probabilities = by_classifier.probabilities
    assert probabilities is not None
    assert (probabilities.argmax(1) == test_digits.labels).mean() >= 0.995


def test_features_are_not_negative_and_probabilities_sum_to_one(by_classifier: Features):
    features, probabilities = by_classifier.values, by_classifier.probabilities
    assert probabilities is not None
    assert features.shape == (10_000, FEATURES)
    assert probabilities.shape == (10_000, CLASSES)
    assert features.min() >= 0
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (features.std(0) > 0).sum() > 0.9 * FEATURES


def test_features_do_not_depend_on_the_batch(test_digits: ImageSet, by_classifier: Features):
    network = MnistExtractor(CPU)
    for places in ([1234], [9999, 0, 3], list(range(490, 530))):
        found = network.features(test_digits.images[places], "some")
        np.testing.assert_allclose(found.values, by_classifier.values[places], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.probabilities, by_classifier.probabilities[places], atol=1e-5)


def test_a_grey_image_in_rgb_has_the_features_of_the_grey_one(test_digits: ImageSet):
    images = test_digits.images[:50]
    grey, rgb = (MnistExtractor(CPU).features(part, "some").values for part in (images, to_rgb(images)))
    assert np.array_equal(grey, rgb)


@pytest.mark.parametrize("size", [14, 56])
def test_other_sizes_are_resized(test_digits: ImageSet, by_classifier: Features, size: int):
    resized = [Image.fromarray(image[0]).resize((size, size), 3) for image in test_digits.images[:100]]
    found = MnistExtractor(CPU).features(np.stack([np.asarray(image) for image in resized])[:, None], "some")
    assert found.probabilities is not None
    assert (found.probabilities.argmax(1) == test_digits.labels[:100]).mean() > 0.9


def opened(train: ImageSet, *names: str, swd: str = "off") -> tuple[list[FeatureExtractor], dict[str, str]]:
    """The feature networks of these names."""
    return open_extractors(SimpleNamespace(extractors=names, swd=swd), train, CPU, Path("absent.safetensors"))


def test_a_network_that_cannot_be_had_is_left_out_with_the_reason(test_digits: ImageSet):
    networks, skipped = opened(test_digits, "mnist")
    assert [network.name for network in networks] == ["mnist"]
    assert skipped == {}

    @EXTRACTORS.register("absent")
    def absent() -> None:
        raise UnavailableExtractor("no such network here")

    try:
        assert opened(test_digits, "mnist", "absent")[1] == {"absent": "no such network here"}
        with pytest.raises(DdpmError, match=r"none of fid\.extractors .*absent: no such network here.*fid\.swd to on"):
            opened(test_digits, "absent")
        assert opened(test_digits, "absent", swd="auto") == ([], {"absent": "no such network here"})
    finally:
        del EXTRACTORS._entries["absent"]


def test_the_network_is_fixed():
    network = load_classifier(CPU)
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())


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
