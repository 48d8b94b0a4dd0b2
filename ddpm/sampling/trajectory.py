"""The trajectory of a few images from noise to x_0."""

import numpy as np
from torch import Tensor

from ddpm.data.image_set import denormalize
from ddpm.diffusion.schedule import Schedule

MAX_FRAMES = 101


class Trajectory:
    """Keeps x_t and x̂_0 of the first ``count`` images of a batch, at up to `MAX_FRAMES` steps: an `OnStep`."""

    def __init__(self, steps: Schedule, count: int) -> None:
        self._wanted = set(np.linspace(0, len(steps), min(len(steps) + 1, MAX_FRAMES)).round().astype(int).tolist())
        self._times = [*steps.times.flip(0).tolist(), -1]
        self._count = count
        self._frames: dict[str, list[np.ndarray]] = {"x_t": [], "x_0": [], "t": []}

    def __call__(self, step: int, x_t: Tensor, x_0: Tensor) -> None:
        """See `ddpm.diffusion.samplers`."""
        if step in self._wanted:
            self._frames["x_t"].append(denormalize(x_t[: self._count]))
            self._frames["x_0"].append(denormalize(x_0[: self._count]))
            self._frames["t"].append(np.array(self._times[step]))

    def arrays(self) -> dict[str, np.ndarray]:
        """x_t and x_0 (the network's prediction), both uint8 [frames, n, c, h, w], and t int64 [frames].

        t is the training time of each frame, −1 for the finished images.
        """
        return {name: np.stack(values) for name, values in self._frames.items()}
