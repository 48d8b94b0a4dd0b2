"""Noise that belongs to an image, not to a batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddpm.seeds import numpy_generator


class ImageNoise:
    """One random stream per image, so that an image does not depend on which others are drawn beside it.

    seed: the run's. draw: which set of images (another number gives other images of the same model).
    indices: the images' numbers. shape: (channels, height, width).
    """

    def __init__(
        self, seed: int, draw: int, indices: Sequence[int], shape: tuple[int, int, int], device: torch.device
    ) -> None:
        self._streams = [numpy_generator(seed, "generate", draw, index) for index in indices]
        self._shape = (len(indices), *shape)
        self._device = device

    def __call__(self) -> Tensor:
        """The next standard normal noise of every image: float32 [n, channels, height, width] on the device."""
        values = np.empty(self._shape, np.float32)
        for row, stream in zip(values, self._streams, strict=True):
            stream.standard_normal(dtype=np.float32, out=row)
        return torch.from_numpy(values).to(self._device)
