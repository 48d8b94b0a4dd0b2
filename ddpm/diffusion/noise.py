"""Standard normal noise that is a pure function of seed, purpose, image, draw and pixel.

So an image's noise depends neither on what is sampled beside it, nor on how many processes share the work, nor on the
device: only whole numbers are computed, and they look up one table. The generator is Philox4x32-10 of Salmon et al.
2011, "Parallel Random Numbers: As Easy as 1, 2, 3".
"""

from collections.abc import Sequence
from functools import cache
from math import fsum, prod, sqrt
from statistics import NormalDist

import torch
from torch import Tensor

from ddpm.utils.seeds import stream_number

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_PER_BLOCK = 8  # normal numbers from the 128 bits of one counter


def philox(counter: tuple[Tensor, Tensor | int, Tensor, Tensor | int], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four random words for each counter of four words and a key of two.

    counter: int64 tensors whose shapes broadcast, or numbers; all words in 0 … 2³²−1. Returns int64 tensors of the
    common shape.
    """
    a, b, c, d = counter
    key_0, key_1 = key
    for _ in range(_ROUNDS):
        # The products have 64 bits: as signed numbers they may be negative, hence the mask after the shift.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = ((second >> 32) & _WORD) ^ b ^ key_0, second & _WORD
        c, d = ((first >> 32) & _WORD) ^ d ^ key_1, first & _WORD
        key_0, key_1 = (key_0 + _KEY_STEPS[0]) & _WORD, (key_1 + _KEY_STEPS[1]) & _WORD
    return tuple(torch.as_tensor(word) for word in (a, b, c, d))


@cache
def normal_table(device: torch.device) -> Tensor:
    """The 65,536 equally likely values of the noise: float32 on the device.

    The normal quantiles of (i + ½) / 65,536, scaled to unit variance: at most 4.33 in size, 4·10⁻⁵ apart around zero.
    """
    half = [NormalDist().inv_cdf((number + 0.5) / 65536) for number in range(32768)]
    scale = sqrt(fsum(value * value for value in half) / len(half))
    lower = [value / scale for value in half]
    return torch.tensor(lower + [-value for value in reversed(lower)], dtype=torch.float32).to(device)


def normal_noise(seed: int, stream: int, draw: int | Tensor, images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Independent standard normal noise of some images: float32 [n, *shape] on their device.

    seed: 0 … 2⁶⁴−1. stream: what it is for, see `stream_number`. draw: 0, 1, … for one image's noises, one after
    another, of all images or, int64 [n, 1] on their device, of each its own. images: int64 [n], their numbers. The
    16-bit halves of Philox's words, low half first, are the places in `normal_table`; counter: (place // 8, draw,
    image, stream), key: (low, high word of the seed).
    """
    size, device = prod(shape), images.device
    blocks = torch.arange(-(-size // _PER_BLOCK), device=device)
    words = philox((blocks, draw, images[:, None], stream), (seed & _WORD, seed >> 32))
    halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=-1)
    return normal_table(device)[halves.flatten(1)[:, :size]].view(-1, *shape)


class ImageNoise:
    """The noises of some images, one after another.

    seed: the run's. replicate: which set of images (another number gives other images of the same model).
    numbers: the images' numbers. shape: (channels, height, width).
    """

    def __init__(
        self, seed: int, replicate: int, numbers: Sequence[int], shape: tuple[int, int, int], device: torch.device
    ) -> None:
        self._seed, self._stream, self._draws = seed, stream_number("generate", replicate), 0
        self._numbers, self._shape = torch.tensor(list(numbers)).to(device), shape

    def __call__(self) -> Tensor:
        """The next standard normal noise of every image: float32 [n, channels, height, width] on the device."""
        self._draws += 1
        return normal_noise(self._seed, self._stream, self._draws - 1, self._numbers, self._shape)
