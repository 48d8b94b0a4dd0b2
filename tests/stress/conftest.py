"""What several stress tests share."""

import pytest
import torch

from ddpm.data.image_set import ImageSet
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.evaluation.reference import Reference, make_reference


@pytest.fixture(scope="session")
def full(digits: ImageSet, test_digits: ImageSet) -> Reference:
    """The real digits as the pipeline's `reference` stage has them."""
    return make_reference(MnistExtractor(torch.device("cpu")), digits, test_digits, 3407)
