"""Validation on a fixed grid of (image, t, eps): the same at every call, so that losses of two moments compare."""

import torch
from torch import Tensor

from ddpm.utils.seeds import torch_generator

BUCKETS = 4


class FixedGrid:
    """``count`` held-out images, or as many as there are, each with one time and one noise that never change.

    images: uint8 [n, c, h, w] on the device. labels: int64 [n] there, or None. The times are spread evenly over
    0 … timesteps−1.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, timesteps: int, count: int, seed: int) -> None:
        count = min(count, len(images))
        generator = torch_generator(seed, "validation")
        chosen = torch.randperm(len(images), generator=generator)[:count].to(images.device)
        self.images = images[chosen]
        self.labels = None if labels is None else labels[chosen]
        self.t = (torch.arange(count, device=images.device) * timesteps) // count
        self.eps = torch.randn(count, *images.shape[1:], generator=generator).to(images.device)
        self.timesteps = timesteps

    def batches(self, size: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """The grid as batches (images, t, eps, labels) of exactly ``size``; the last wraps round to the beginning."""
        places = torch.arange(-(-len(self.t) // size) * size, device=self.t.device) % len(self.t)
        return [
            (self.images[part], self.t[part], self.eps[part], None if self.labels is None else self.labels[part])
            for part in places.split(size)
        ]

    def summarize(self, squared_errors: Tensor, weights: Tensor) -> dict[str, float]:
        """Means over the grid, from one squared error per image [≥ count] and the objective's weight of each time [T].

        Returns val_loss, weighted as in training; val_mse, unweighted and so comparable between weightings; and the
        same for each quarter of the times, val_mse_t1of4 (least noise) to val_mse_t4of4.
        """
        errors = squared_errors[: len(self.t)].cpu().double()
        bucket = (self.t * BUCKETS // self.timesteps).cpu()
        weighted = errors * weights.cpu().double()[self.t.cpu()]
        summary = {"val_loss": weighted.mean().item(), "val_mse": errors.mean().item()}
        for i in range(BUCKETS):
            inside = errors[bucket == i]
            if len(inside):
                summary[f"val_mse_t{i + 1}of{BUCKETS}"] = inside.mean().item()
        return summary
