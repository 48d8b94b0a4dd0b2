import numpy as np
import pytest

from ddpm.data.image_set import ImageSet
from ddpm.data.split import stratified_split
from ddpm.utils.errors import DdpmError


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.013])
def test_every_class_keeps_its_share(digits: ImageSet, fraction: float):
    train, validation = stratified_split(digits.labels, fraction, 3407)
    everything = np.bincount(digits.labels)
    assert (np.abs(np.bincount(digits.labels[train], minlength=10) - fraction * everything) <= 0.5).all()
    assert len(train) + len(validation) == 60_000


def test_the_parts_are_disjoint_and_together_all(digits: ImageSet):
    train, validation = stratified_split(digits.labels, 0.9, 3407)
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(60_000))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()


def test_the_split_follows_from_the_seed(digits: ImageSet):
    first, again, other = (stratified_split(digits.labels, 0.9, seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    # Two independent tenths share a tenth of themselves.
    assert np.isin(first, other).mean() == pytest.approx(0.1, abs=0.02)


def test_validation_images_come_from_the_whole_file(digits: ImageSet):
    validation = stratified_split(digits.labels, 0.9, 3407)[1]
    tenths = np.bincount(validation // 6000)
    assert tenths.min() > 500
    assert tenths.max() < 700


@pytest.mark.parametrize(
    ("fraction", "words"),
    [(0.01, "no image for training: raise it"), (0.99, "no image for validation: lower it")],
)
def test_an_empty_side_is_refused(fraction: float, words: str):
    with pytest.raises(DdpmError, match=rf"split\.train_fraction={fraction} leaves {words}"):
        stratified_split(np.repeat(np.arange(10), 3), fraction, 0)
