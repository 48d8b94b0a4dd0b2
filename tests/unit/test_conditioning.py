from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2

from ddpm.data.image_set import ImageSet
from ddpm.models.conditioning import Conditioning, count, fit_conditioning, plus_plus
from ddpm.utils.errors import DdpmError

BRIGHT = (20, 90, 160, 230)


@pytest.fixture
def images(rng: np.random.Generator) -> ImageSet:
    """300 images of 3 channels and two classes, in each of which they are of four brightnesses, in unequal numbers."""
    brightness = rng.choice(BRIGHT, 300, p=[0.1, 0.2, 0.3, 0.4])
    noise = rng.integers(-8, 9, size=(300, 3, 20, 20))
    pixels = (brightness[:, None, None, None] + noise).astype(np.uint8)
    return ImageSet(pixels, rng.integers(2, size=300), np.arange(300), 2)


def brightness(images: ImageSet) -> np.ndarray:
    return np.abs(images.images.mean((1, 2, 3))[:, None] - np.array(BRIGHT)).argmin(1)


@pytest.mark.parametrize("classes", [2, 0])
def test_clusters_are_the_groups_of_alike_images_within_each_class(images: ImageSet, classes: int):
    found = fit_conditioning(images, classes, 4, 5)
    labels = found.labels(images)
    assert labels is not None
    groups = brightness(images) + 4 * images.labels * bool(classes)
    # As many labels as groups, and each label of one group.
    pairs = set(zip(labels.tolist(), groups.tolist(), strict=True))
    assert len(pairs) == found.count == max(1, classes) * 4
    assert found.frequencies.shape == (max(1, classes), 4)
    counts = np.bincount(labels, minlength=found.count)
    np.testing.assert_allclose(found.frequencies.flatten() * 300, counts, rtol=1e-12)
    shares = images.class_frequencies() if classes else [1.0]
    np.testing.assert_allclose(found.frequencies.sum(1), shares, rtol=1e-12)
    class_labels = found.class_labels(labels.numpy())
    assert class_labels is None if not classes else np.array_equal(class_labels, images.labels)


def test_other_images_belong_to_the_nearest_centroid_of_their_class(images: ImageSet):
    found = fit_conditioning(images.take(np.arange(200)), 2, 4, 5)
    labels = found.labels(images.take(np.arange(200, 300)))
    assert labels is not None
    assert found.centroids is not None
    for image, label, true in zip(images.images[200:], labels.tolist(), images.labels[200:], strict=True):
        level = image.mean() / 255
        assert label // 4 == true
        assert abs(found.centroids[true, label % 4].mean() - level) == pytest.approx(
            (found.centroids[true].mean(1) - level).abs().min().item()
        )


def test_the_same_seed_gives_the_same_clusters(images: ImageSet):
    first, again, other = (fit_conditioning(images, 2, 3, seed) for seed in (5, 5, 6))
    assert first.centroids is not None
    assert again.centroids is not None
    assert other.centroids is not None
    assert torch.equal(first.centroids, again.centroids)
    assert not torch.equal(first.centroids, other.centroids)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_k_means_starts_from_the_points_that_scipy_chooses(rng: np.random.Generator, count: int):
    points = rng.random((200, 6))
    points[50:100] = points[:50]  # drawn once, such points are at distance 0
    start = plus_plus(points, count, np.random.default_rng(3))
    expected, _ = kmeans2(points, count, iter=1, minit="++", rng=np.random.default_rng(3))
    assert np.array_equal(kmeans2(points, start, iter=1, minit="matrix")[0], expected)


def test_without_clusters_the_labels_are_those_of_the_classes(images: ImageSet):
    found = fit_conditioning(images, 2, 1, 5)
    labels = found.labels(images)
    assert labels is not None
    np.testing.assert_array_equal(labels, images.labels)
    assert found == replace(Conditioning.by_class(images.class_frequencies()), frequencies=found.frequencies)
    assert found.frequencies.flatten().tolist() == images.class_frequencies()


def test_a_network_without_labels_is_given_none(images: ImageSet):
    found = fit_conditioning(images, 0, 1, 5)
    assert found.count == count(0, 1) == 0
    assert found.labels(images) is None
    assert found.in_turn(5) is None
    assert found.class_labels(np.zeros(3, np.int64)) is None


def test_chosen_classes_are_alike_and_their_clusters_as_frequent_as_in_training():
    frequencies = torch.tensor([[0.1, 0.3], [0.15, 0.05], [0.2, 0.2]], dtype=torch.float64)
    found = Conditioning(3, frequencies, torch.zeros(3, 2, 1))
    np.testing.assert_array_equal(found.weights(None), frequencies.flatten())
    np.testing.assert_allclose(found.weights([0, 1]), [0.25, 0.75, 0.75, 0.25, 0, 0], rtol=1e-12)


def test_labels_in_turn_go_through_the_classes_first():
    found = Conditioning(3, torch.full((3, 2), 1 / 6), torch.zeros(3, 2, 1)).in_turn(8)
    assert found is not None
    assert found.tolist() == [0, 2, 4, 1, 3, 5, 0, 2]


@pytest.mark.parametrize("harm", ["few", "alike"])
def test_images_that_cannot_be_divided_are_named(images: ImageSet, harm: str):
    part = images.take(np.arange(5)) if harm == "few" else replace(images, images=np.zeros_like(images.images))
    with pytest.raises(DdpmError, match=r"^model\.clusters=8: class 0 has \d+ images, too few or too many alike"):
        fit_conditioning(part, 2, 8, 5)


@pytest.mark.parametrize("classes", [2, 0])
def test_alike_clusters_begin_with_alike_embeddings(images: ImageSet, classes: int):
    found = fit_conditioning(images, classes, 4, 5)
    torch.manual_seed(0)
    before = torch.randn(found.count + 1, 500) / 2
    embedding = before.clone()
    found.spread(embedding)
    assert torch.equal(embedding[-1], before[-1])
    assert embedding[:-1].std().item() == pytest.approx(before[:-1].std().item(), rel=0.1)
    # Of one class, distances between the rows are those between the centroids, times a constant.
    assert found.centroids is not None
    ratios = [
        torch.pdist(rows) / torch.pdist(centroids)
        for rows, centroids in zip(embedding[:-1].split(4), found.centroids, strict=True)
    ]
    assert torch.cat(ratios).max() < 1.2 * torch.cat(ratios).min()
    if classes:  # alike images of two classes differ by the vectors of these
        offsets = (
            embedding[:4][found.centroids[0].mean(1).argsort()] - embedding[4:8][found.centroids[1].mean(1).argsort()]
        )
        assert offsets.std(0).mean() < 0.1 * offsets.abs().mean()


def test_without_clusters_embeddings_begin_as_they_are():
    embedding = torch.randn(4, 7)
    Conditioning.by_class([0.5, 0.2, 0.3]).spread(given := embedding.clone())
    assert torch.equal(given, embedding)
