"""What a network is conditioned on: class labels, and clusters of alike images within each class.

The clusters are found by the images alone, so that they are there for images without class labels, too. Given one, a
network has less to decide while it samples: Bao et al. 2022, "Why Are Conditional Generative Models Better Than
Unconditional Ones?"; Hu et al. 2023, "Self-Guided Diffusion Models". With each as frequent as in the training set, the
samples are of all images as before.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.spatial.distance import cdist
from torch import Tensor

from ddpm.data.image_set import ImageSet
from ddpm.utils.errors import DdpmError
from ddpm.utils.seeds import numpy_generator

_SIDE = 14  # images are compared at this size: a coarse look is what tells one cluster from another
_ITERATIONS = 25
# Memory does not limit the number of images: those of a class that the clusters are fitted to are so many at most, and
# so many images, and points, are worked on at once.
_FITTED_TO_MOST, _STRIP, _POINTS = 60_000, 1024, 8192
# The first centroids are chosen among some of the images: that takes time that grows with clusters × images.
_STARTING_FROM, _STARTING_FROM_MOST = 20, 2000  # images for each cluster, but at most


@dataclass(frozen=True)
class Conditioning:
    """The conditioning labels: of an image of class c in its cluster k of K, c · K + k.

    classes: the class labels that the network is conditioned on; 0: none, and c is 0. frequencies: float64
    [max(1, classes), K], of each conditioning label among the training images. centroids: float32 [max(1, classes), K,
    d], the mean of each cluster; None where K is 1.
    """

    classes: int
    frequencies: Tensor
    centroids: Tensor | None = None

    @classmethod
    def by_class(cls, frequencies: Sequence[float]) -> Self:
        """On the class label alone, of these frequencies; on nothing, where there are none."""
        return cls(len(frequencies), torch.tensor(frequencies or [1.0], dtype=torch.float64)[:, None])

    @property
    def clusters(self) -> int:
        """K."""
        return self.frequencies.shape[1]

    @property
    def count(self) -> int:
        """How many conditioning labels there are; 0 for a network that is given none."""
        return count(self.classes, self.clusters)

    def labels(self, images: ImageSet, device: torch.device | str = "cpu") -> Tensor | None:
        """The conditioning label of each image, int64 [n] on the device; None where `count` is 0.

        An image belongs to the nearest centroid of its class.
        """
        if not self.count:
            return None
        classes = torch.from_numpy(images.labels if self.classes else np.zeros_like(images.labels))
        if self.centroids is None:
            return classes.to(device)
        clusters = torch.empty_like(classes)
        for label, centroids in enumerate(self.centroids.double()):
            members = classes == label
            for part in members.nonzero()[:, 0].split(_POINTS):
                clusters[part] = torch.cdist(_coarse(images.images, part.numpy()), centroids).argmin(1)
        return (classes * self.clusters + clusters).to(device)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps beside ``classes``: the other fields that are there, by name."""
        return {"frequencies": self.frequencies} | ({} if self.centroids is None else {"centroids": self.centroids})

    def class_labels(self, labels: np.ndarray) -> np.ndarray | None:
        """The class label of each conditioning label [n]; None where the network is conditioned on no class label."""
        return labels // self.clusters if self.classes else None

    def cluster_labels(self, labels: np.ndarray) -> np.ndarray | None:
        """The cluster of its class of each conditioning label, int64 [n]; None without clusters."""
        return labels % self.clusters if self.clusters > 1 else None

    def in_turn(self, number: int) -> np.ndarray | None:
        """Conditioning labels of as many images, of one class after the other: int64 [number]; None as in `labels`."""
        turn, label = np.divmod(np.arange(number), max(1, self.classes))
        return label * self.clusters + turn % self.clusters if self.count else None

    @torch.no_grad()
    def spread(self, embedding: Tensor) -> None:
        """Make the rows of a new network's embedding, float32 [count + 1, d], alike for clusters that are alike.

        The row of a conditioning label becomes a random projection of its centroid (Johnson & Lindenstrauss 1984), plus
        a random vector of its class, and all of them keep their standard deviation: what the network learns of one
        label then holds for its neighbours. The last row, of the null label, and all rows where there is one cluster
        stay. By torch's global generator, as the weights.
        """
        if self.centroids is None:
            return
        rows, points = embedding[: self.count], self.centroids.flatten(0, 1)
        projected = (points - points.mean(0)) @ torch.randn(points.shape[1], rows.shape[1])
        projected /= projected.std()
        if self.classes:
            own = torch.randn(self.classes, rows.shape[1]).repeat_interleave(self.clusters, 0)
            projected = (projected + own) / math.sqrt(2.0)
        rows.copy_(rows.std() * projected)

    def weights(self, classes: Collection[int] | None) -> np.ndarray:
        """How often each conditioning label is wanted: as in training, or of these classes alone, each alike.

        Returns float64 [count].
        """
        frequencies = self.frequencies.numpy()
        if classes is not None:
            chosen = np.isin(np.arange(len(frequencies)), list(classes))
            frequencies = frequencies / frequencies.sum(1, keepdims=True) * chosen[:, None]
        return frequencies.flatten()


def count(classes: int, clusters: int) -> int:
    """How many conditioning labels so many class labels and clusters of each make; 0 for a single one."""
    return max(1, classes) * clusters if classes or clusters > 1 else 0


def fit_conditioning(training: ImageSet, classes: int, clusters: int, seed: int) -> Conditioning:
    """Divide each class of the training images, or all of them where classes is 0, into clusters by k-means.

    Lloyd 1982, starting from the centroids of Arthur & Vassilvitskii 2007, "k-means++". Raises DdpmError where a class
    has too few images, or too many alike.
    """
    if clusters == 1:
        return Conditioning.by_class(training.class_frequencies() if classes else [])
    centroids = []
    for label in range(max(1, classes)):
        members = np.flatnonzero(training.labels == label) if classes else np.arange(len(training))
        stream = numpy_generator(seed, "clusters", label)
        if len(members) > _FITTED_TO_MOST:
            members = np.sort(stream.permutation(members)[:_FITTED_TO_MOST])
        points = _coarse(training.images, members).numpy()
        try:
            most = max(clusters, min(_STARTING_FROM * clusters, _STARTING_FROM_MOST))
            some = points[stream.permutation(len(points))[:most]]
            start, _ = kmeans2(some, plus_plus(some, clusters, stream), iter=1, minit="matrix")
            found, _ = kmeans2(points, start, iter=_ITERATIONS, minit="matrix", missing="raise")
        except (ClusterError, ValueError) as error:
            raise DdpmError(
                f"model.clusters={clusters}: class {label} has {len(points)} images, too few or too many alike to be "
                "divided into so many: lower it."
            ) from error
        centroids.append(torch.from_numpy(found))
    equal = torch.full((len(centroids), clusters), 1.0 / (len(centroids) * clusters), dtype=torch.float64)
    conditioning = Conditioning(classes, equal, torch.stack(centroids).float())
    labels = conditioning.labels(training)
    assert labels is not None
    frequencies = labels.bincount(minlength=conditioning.count).double().view_as(equal) / len(training)
    return replace(conditioning, frequencies=frequencies)


def plus_plus(points: np.ndarray, count: int, stream: np.random.Generator) -> np.ndarray:
    """As many of the ``points``, float64 [n, d], far from each other, for k-means to start from: float64 [count, d].

    Each next one is drawn with the squared distance from the nearest of those before as its probability. Arthur &
    Vassilvitskii 2007, "k-means++". They are those of scipy's `kmeans2`, which measures all distances again for each:
    that takes time that grows with count².
    """
    chosen = [points[stream.integers(len(points))]]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, cdist(chosen[-1:], points, "sqeuclidean")[0])
        with np.errstate(invalid="ignore"):  # where all distances are 0: k-means then refuses the equal points
            cumulative = (nearest / nearest.sum()).cumsum()
        chosen.append(points[np.searchsorted(cumulative, stream.uniform())])
    return np.stack(chosen)


def centroid_values(shape: tuple[int, int, int]) -> int:
    """d: how many values a centroid of images of this shape (c, h, w) has."""
    return shape[0] * min(_SIDE, shape[-1]) ** 2


def _coarse(images: np.ndarray, members: np.ndarray) -> Tensor:
    """Those of uint8 images [n, c, h, w] as points: float64 [k, d] in [0, 1], of at most `_SIDE` pixels a side."""
    side = min(_SIDE, images.shape[-1])
    points = torch.empty(len(members), centroid_values(images.shape[1:]), dtype=torch.float64)
    for start in range(0, len(members), _STRIP):
        some = torch.from_numpy(images[members[start : start + _STRIP]]).double() / 255
        points[start : start + _STRIP] = F.adaptive_avg_pool2d(some, side).flatten(1)
    return points
