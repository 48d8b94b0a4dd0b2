"""Drawing images from a trained network: many, streamed to disk while the next are drawn, or a few with their way."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.config import GenerateConfig
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.samplers import Denoise, OnStep, Sampler, ddim_sampler, ddpm_sampler
from ddpm.diffusion.schedule import Schedule, even_times, respace
from ddpm.images import to_uint8, write_rgb_pngs

MAX_FRAMES = 101
CPU_BATCH = 250
CUDA_BATCH = 4096


def make_sampler(config: GenerateConfig) -> Sampler:
    """The sampler that the settings name."""
    return ddpm_sampler(config.variance) if config.sampler == "ddpm" else ddim_sampler(config.eta)


@dataclass(frozen=True)
class Source:
    """What images are drawn from: a denoiser, the schedule it was trained on, and the settings of the sampling run.

    Image number i (from 1) is decided by ``seed``, ``config.draw`` and i alone, whatever is drawn beside it, up to the
    rounding of the network's matrix products.
    """

    denoise: Denoise
    schedule: Schedule
    config: GenerateConfig
    image_size: int
    seed: int
    device: torch.device

    @property
    def steps(self) -> Schedule:
        """The steps taken, a respaced schedule."""
        return respace(self.schedule, even_times(len(self.schedule), self.config.steps))

    @torch.inference_mode()
    def draw(self, numbers: Sequence[int], on_step: OnStep | None = None) -> Tensor:
        """The images of these numbers: float32 [n, 1, h, w] around [-1, 1]."""
        noise = ImageNoise(self.seed, self.config.draw, numbers, (1, self.image_size, self.image_size), self.device)
        return make_sampler(self.config)(self.denoise, noise(), self.steps, noise, on_step)


def generate(source: Source, folder: Path, batch_size: int | str, workers: int) -> dict[str, float]:
    """Draw all images of the run into ``folder`` as RGB PNGs 00001.png, 00002.png, ….

    ``batch_size`` "auto" starts large on CUDA; a batch that does not fit into memory is halved and drawn again. Memory
    does not grow with the number of images. Returns seconds, images per second and the batch size in the end.
    Raises OSError when a PNG cannot be written.
    """
    total = source.config.num_images
    size = batch_size if isinstance(batch_size, int) else CUDA_BATCH if source.device.type == "cuda" else CPU_BATCH
    size = min(size, total)
    started = time.perf_counter()
    writing: list[Future[None]] = []
    first = 1
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=total, desc="generate", unit="image", smoothing=0.1) as progress,
    ):
        while first <= total:
            count = min(size, total - first + 1)

            def show(step: int, *_: Tensor, first: int = first, count: int = count) -> None:
                progress.update(first - 1 + count * step // len(source.steps) - progress.n)

            try:
                # The last batch is drawn at the common size too, so that one compiled network serves all.
                x_0 = source.draw(range(first, first + size), show)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2
                progress.n = first - 1
                progress.write(f"out of memory: going on with batches of {size}")
                continue
            images = to_uint8(x_0[:count])
            for part in writing:
                part.result()
            writing = [
                pool.submit(
                    write_rgb_pngs, folder, images[rows], first + int(rows[0]), total, source.config.output_size
                )
                for rows in np.array_split(np.arange(count), workers)
                if len(rows)
            ]
            first += count
        for part in writing:
            part.result()
    seconds = time.perf_counter() - started
    return {
        "generate_seconds": seconds,
        "generate_images_per_second": total / seconds,
        "generate_batch_size": size,
    }


def trace(source: Source) -> dict[str, np.ndarray]:
    """The first images' way from noise to digit, at up to `MAX_FRAMES` evenly spread moments.

    Returns x_t and x_0 (the network's guess of the end), both uint8 [frames, n, h, w], and t int64 [frames], the
    training time of each frame, −1 for the finished images.
    """
    steps = len(source.steps)
    wanted = set(np.linspace(0, steps, min(steps + 1, MAX_FRAMES)).round().astype(int).tolist())
    times = [*source.steps.times.flip(0).tolist(), -1]
    frames: dict[str, list[np.ndarray | int]] = {"x_t": [], "x_0": [], "t": []}

    def on_step(step: int, x_t: Tensor, x_0: Tensor) -> None:
        if step in wanted:
            frames["x_t"].append(to_uint8(x_t))
            frames["x_0"].append(to_uint8(x_0))
            frames["t"].append(times[step])

    source.draw(range(1, source.config.trajectories + 1), on_step)
    return {name: np.stack(values) for name, values in frames.items()}
