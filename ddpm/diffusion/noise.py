"""Noise that belongs to an image, not to a batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddpm.utils.seeds import numpy_generator


class ImageNoise:
    """One random stream per image, so that an image does not depend on which others are sampled beside it.

    seed: the run's. replicate: which set of images (another number gives other images of the same model).
    numbers: the images' numbers. shape: (channels, height, width).
    """

    def __init__(
        self, seed: int, replicate: int, numbers: Sequence[int], shape: tuple[int, int, int], device: torch.device
    ) -> None:
        self._streams = [numpy_generator(seed, "generate", replicate, number) for number in numbers]
        self._shape = (len(numbers), *shape)
        self._device = device

    def __call__(self) -> Tensor:
        """The next standard normal noise of every image: float32 [n, channels, height, width] on the device."""
        values = np.empty(self._shape, np.float32)
        for row, stream in zip(values, self._streams, strict=True):
            stream.standard_normal(dtype=np.float32, out=row)
        return torch.from_numpy(values).to(self._device)
