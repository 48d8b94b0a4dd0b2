"""Terms of the variational bound on −log p(x_0), in nats an image, for training on them and for measuring them."""

import math

import torch
from torch import Tensor

from ddpm.utils.devices import with_float64

_HALF_STEP = 1.0 / 255.0  # half the distance of two grey values in [-1, 1]


def divergence(difference: Tensor, log_variance_q: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(q ‖ p) of Gaussians whose means differ by ``difference`` [n, …], summed over all but the first axis: [n].

    Log-variances are of every element, or one of all: L_{t−1} of reverse steps (DDPM, eq. 5).
    """
    ratio = log_variance_q - log_variance_p
    return 0.5 * (difference.square() * torch.exp(-log_variance_p) + ratio.exp() - 1.0 - ratio).flatten(1).sum(1)


def decoder_term(x_0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """L_0 = −log p(x_0 | x_1): the Gaussian N(mean, variance) summed up over each grey value's interval: float64 [n],
    on the CPU where the device has no float64.

    x_0: in [-1, 1], of 256 grey values; the intervals of the darkest and the brightest are open. variance: of every
    pixel, or one of all. DDPM, eq. 13.
    """
    if (exact := with_float64(x_0.device)) != x_0.device:
        x_0, mean, variance = x_0.to(exact), mean.to(exact), variance.to(exact)
    x_0, mean, sigma = x_0.double(), mean.double(), variance.sqrt()
    above = torch.where(x_0 > 1.0 - _HALF_STEP, math.inf, (x_0 + _HALF_STEP - mean) / sigma)
    below = torch.where(x_0 < -1.0 + _HALF_STEP, -math.inf, (x_0 - _HALF_STEP - mean) / sigma)
    # Of an interval in the upper tail, the mirror image: log Φ loses all digits where Φ is nearly 1.
    flip = below > 0
    high, low = torch.where(flip, -below, above), torch.where(flip, -above, below)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return -(log_high + torch.log1p(-torch.exp(log_low - log_high))).flatten(1).sum(1)
