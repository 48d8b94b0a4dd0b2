"""The conditioning labels of images whose class is given, or of which only a part is known."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor

from ddpm.diffusion.editing import repaint
from ddpm.diffusion.samplers import Denoise, Noise
from ddpm.diffusion.schedule import Schedule
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
    clusters = torch.empty_like(rows)
    for label, centroids in enumerate(conditioning.centroids.double()):
        w, x = weights[members := rows == label], points[members]
        # Σ w (x − c)², but for Σ w x², which is the same for every centroid c.
        clusters[members] = (w @ (centroids**2).T - 2.0 * (w * x) @ centroids.T).argmin(1)
    return rows * conditioning.clusters + clusters


def known_error(denoise: Denoise, x_0: Tensor, known: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
    """How badly a denoiser of some label predicts the known pixels: float64 [n]; the least is the label they have.

    x_0: float32 [n, c, h, w] in [-1, 1]. known: bool, shaped to broadcast against it. schedule: ten steps do. denoise:
    without guidance. The same noise for every label makes their differences exact sooner.

    The diffusion classifier (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier", eq. 6) for
    images of which a part is unknown: `repaint` without resampling paints that part by the label, and at each of its
    steps Σ ‖v − v̂‖² = Σ ‖x_0 − x̂_0‖² / (1 − ᾱ_t) sums over the known pixels alone. As there, the weights are those of
    a training loss, here of v-prediction (Salimans & Ho 2022, §4), not those of the bound on log p(x_0).
    """
    total, alpha_bar = torch.zeros(len(x_0), dtype=torch.float64), schedule.alpha_bar.flip(0).tolist()

    def add(taken: int, x_t: Tensor, x_0_hat: Tensor) -> None:  # noqa: ARG001
        if taken < len(alpha_bar):
            squares = ((x_0 - x_0_hat).square() * known).flatten(1).sum(1)
            total.add_(squares.cpu().double() / (1.0 - alpha_bar[taken]))

    repaint(denoise, x_0, ~known, schedule, noise, jump_length=1, resamplings=1, on_step=add)
    return total
