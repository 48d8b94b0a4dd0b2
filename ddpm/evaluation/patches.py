"""The sliced Wasserstein distance of patches of Laplacian pyramids: two sets of images compared without a network.

Karras et al. 2018, "Progressive Growing of GANs", §5, with the constants of the code that they published.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor

from ddpm.utils.threads import in_threads

PATCH = 7  # pixels a side
PATCHES = 128  # of each image, at each level
DIRECTIONS = 512
REPEATS = 4  # parts that the directions are taken in
IMAGES = 4096  # of either set, at most: a quarter of the paper's, as sorting is all of the work
_BLURRED = 64  # images at a time
_BLOCK = 16  # directions at a time, for the sake of memory
_BINOMIAL = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def level_sizes(size: int) -> list[int]:
    """Pixels a side of the levels, the finest first: halved, rounded up, while two patches fit side by side.

    Of powers of two the last is 16, as in the paper.
    """
    sizes = [size]
    while (half := -(-sizes[-1] // 2)) >= 2 * PATCH:
        sizes.append(half)
    return sizes


def laplacian_pyramid(images: np.ndarray) -> list[Tensor]:
    """What each level of images [n, c, s, s] has beyond the next, and the last as it is: float32 [n, c, ·, ·] each.

    Burt & Adelson 1983: a level is the one before, blurred by a binomial filter of 5 × 5 pixels, every second pixel
    of it. Adding each to the enlarged next gives the images back.
    """
    levels = [torch.tensor(images).float()]
    for _ in level_sizes(images.shape[-1])[1:]:
        fine = levels[-1]
        coarse = _blur(fine)[..., ::2, ::2]
        spread = torch.zeros_like(fine)
        spread[..., ::2, ::2] = coarse
        levels[-1] = fine - 4 * _blur(spread)
        levels.append(coarse)
    return levels


def descriptors(levels: Tensor, generator: np.random.Generator) -> Tensor:
    """`PATCHES` random patches of each image of one level [n, c, s, s]: float32 [n · PATCHES, c · PATCH²].

    Those of one image follow one another. Over the set every channel has mean 0 and standard deviation 1.
    """
    count, channels, size, _ = levels.shape
    tops, lefts = torch.from_numpy(generator.integers(size - PATCH + 1, size=(2, count, PATCHES)))
    windows = levels.unfold(2, PATCH, 1).unfold(3, PATCH, 1)
    found = windows[torch.arange(count)[:, None], :, tops, lefts].reshape(-1, channels, PATCH * PATCH)
    std, mean = torch.std_mean(found, (0, 2), correction=0, keepdim=True)
    return found.sub_(mean).div_(std.clamp_min(1e-6)).flatten(1)


def random_directions(dimensions: int, generator: np.random.Generator) -> Tensor:
    """`DIRECTIONS` columns of length 1, uniform on the sphere: float32 [dimensions, DIRECTIONS]."""
    found = torch.from_numpy(generator.standard_normal((dimensions, DIRECTIONS))).float()
    return found / found.norm(dim=0)


def sliced_wasserstein(a: Tensor, b: Tensor, directions: Tensor, label: str = "") -> np.ndarray:
    """The Wasserstein distance of points [n, d] from as many others, projected on each of directions [d, k].

    On a line it is the mean distance of the i-th smallest of the one set from the i-th smallest of the other (Rabin et
    al. 2011, eq. 3). Returns float64 [k]; their mean is the sliced distance. ``label`` names the progress bar.
    """

    def along(block: Tensor) -> np.ndarray:
        x, y = (np.sort((block.T @ part.T).numpy()) for part in (a, b))
        return np.abs(x - y).mean(1, dtype=np.float64)

    return np.concatenate(_by_blocks(along, directions, label))


def influences(a: Tensor, b: Tensor, directions: Tensor, channels: int, label: str = "") -> np.ndarray:
    """By how much each image of ``a`` moves the sliced distance of ``a`` from ``b``: float64 [n], of mean 0.

    a, b: `descriptors` of ``channels`` channels. The distance of a set in which image i has the weight w_i, Σ w_i = 1,
    is to first order that of ``a`` plus Σ w_i influence_i: resampled means of the influences are what a bootstrap of
    the distance would be, without sorting again (Efron & Tibshirani 1993, §21.4 and 22.4). For two sets from one source
    the first order is not all, and the spread is about a quarter too large.

    The derivative of a Wasserstein distance by the weight of a point z is the Kantorovich potential φ(z), whose slope
    is the sign s of the way that z is moved (Santambrogio 2015, §7.2.2). Weights change the mean and the deviation of a
    channel, too, by which its patches are normalized: less m_c E[s] Σ v_c for a mean of m_c, and less (q_c − 1)/2
    E[s z_c] for a mean square of q_c, z_c being the channel's part of z and v_c its part of the direction.
    """
    by_image = a.view(-1, PATCHES, channels, PATCH * PATCH)
    means = by_image.mean((1, 3), dtype=torch.float64).numpy()
    squares = (by_image**2).mean((1, 3), dtype=torch.float64).numpy()

    def along(block: Tensor) -> np.ndarray:
        z, others = ((block.T @ part.T).numpy() for part in (a, b))
        order = z.argsort()
        ordered = np.take_along_axis(z, order, 1)
        sign = np.sign(ordered - np.sort(others))
        steps = np.diff(ordered, prepend=ordered[:, :1]) * (sign + np.roll(sign, 1, 1)) / 2
        potential, moved = np.empty(z.shape), np.empty_like(z)
        np.put_along_axis(potential, order, steps.cumsum(1, dtype=np.float64), 1)
        np.put_along_axis(moved, order, sign, 1)
        by_channel = block.T.reshape(-1, channels, PATCH * PATCH)
        pulled = (torch.from_numpy(moved) @ a / len(a)).reshape(by_channel.shape)
        of_mean = sign.mean(1, keepdims=True) * by_channel.sum(2).numpy()
        of_square = (by_channel * pulled).sum(2).numpy() / 2
        of_image = potential.reshape(len(z), -1, PATCHES).mean(2).sum(0)
        return of_image - means @ of_mean.sum(0) - (squares - 1) @ of_square.sum(0)

    found = np.sum(_by_blocks(along, directions, label), 0) / directions.shape[1]
    return found - found.mean()


def compare_patches(
    images: np.ndarray,
    real: np.ndarray,
    stream: Callable[..., np.random.Generator],
    influence: bool = False,
    repeat: int | None = None,
    label: str = "",
) -> tuple[list[float], list[np.ndarray]]:
    """The sliced distance of images [n, c, s, s] from as many real ones, level by level, the finest first.

    Patches lie at the same places in both sets, which are those of every two sets of as many images: identical sets
    have the distance 0. stream: gives the random generator of a purpose. influence: whether to add, of each level, what
    `influences` gives for the first of the `REPEATS` parts of the directions. repeat: the number of that part which
    alone is taken. ``label`` names the progress bars.
    """
    distances, moved = [], []
    for a, b in zip(laplacian_pyramid(images), laplacian_pyramid(real), strict=True):
        channels, size = a.shape[1:3]
        x, y = (descriptors(part, stream("places", size)) for part in (a, b))
        directions = random_directions(x.shape[1], stream("directions", size))
        parts = directions.chunk(REPEATS, 1)
        what = f"{label}, {size} × {size}"
        distances.append(float(sliced_wasserstein(x, y, directions if repeat is None else parts[repeat], what).mean()))
        if influence:
            moved.append(influences(x, y, parts[0], channels, f"interval, {what}"))
    return distances, moved


def _by_blocks(along: Callable[[Tensor], np.ndarray], directions: Tensor, label: str) -> list[np.ndarray]:
    """``along`` of a few directions [d, ·] at a time."""
    blocks = directions.split(_BLOCK, 1)
    return in_threads(along, blocks, len(blocks), f"patches, {label}", "block")


def _blur(images: Tensor) -> Tensor:
    """Images [n, c, h, w] smoothed by the binomial filter, mirrored at their edges."""
    blurred = torch.empty_like(images)
    # A convolution of one channel needs many times the memory of its images: a few at a time.
    for part, result in zip(images.split(_BLURRED), blurred.split(_BLURRED), strict=True):
        planes = F.pad(part.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="reflect")
        rows = F.conv2d(planes, _BINOMIAL[None, None, None])
        result.copy_(F.conv2d(rows, _BINOMIAL[None, None, :, None]).view_as(part))
    return blurred
