"""The conditioning labels of images whose class is given, or of which only a part is known."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor

from ddpm.models.conditioning import Conditioning
from ddpm.sampling.labels import balanced_labels


def labels_of_classes(conditioning: Conditioning, numbers: Sequence[int], classes: np.ndarray) -> np.ndarray:
    """The conditioning label of images with these numbers and class labels, int64 [n] both: int64 [n].

    The clusters of a class are as frequent as in the training set: they are those that `Generator.labels` gives to the
    same numbers where every image is of that class.
    """
    labels, places = np.empty_like(classes), np.asarray(numbers)
    for label in np.unique(classes):
        of_it = classes == label
        labels[of_it] = balanced_labels(places[of_it].tolist(), conditioning.weights([int(label)]))
    return labels


def nearest_labels(
    conditioning: Conditioning, images: np.ndarray, known: np.ndarray, classes: np.ndarray | None
) -> Tensor | None:
    """The conditioning label of images by their known pixels: int64 [n]; None where there is none to be known.

    images: uint8 [n, c, h, w]. known: bool [n, 1, h, w], which pixels count. classes: int64 [n], the class labels; None
    for images without: a network that knows class labels is then given the null label, None. An image belongs to the
    cluster of its class whose mean is nearest in the known pixels: where all are known, as by `Conditioning.labels`.
    """
    if not conditioning.count or (conditioning.classes and classes is None):
        return None
    rows = torch.zeros(len(images), dtype=torch.int64) if classes is None else torch.from_numpy(classes)
    if conditioning.centroids is None:
        return rows
    cells = conditioning.centroids.shape[-1] // images.shape[1]
    side = round(cells**0.5)
    there = torch.from_numpy(known).double()
    share = F.adaptive_avg_pool2d(there, side)
    values = F.adaptive_avg_pool2d(torch.from_numpy(images).double() / 255 * there, side)
    points = torch.where(share > 0, values / share.clamp(min=1e-9), 0.0).flatten(1)
    weights = share.expand(-1, images.shape[1], -1, -1).flatten(1)
    differences = points[:, None] - conditioning.centroids[rows].double()
    clusters = (weights[:, None] * differences**2).sum(-1).argmin(1)
    return rows * conditioning.clusters + clusters
