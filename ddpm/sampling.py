"""Drawing images from a trained network: many, streamed to disk while the next are drawn, or a few with their way."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddpm.config import GenerateConfig
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.samplers import (
    Denoise,
    OnStep,
    Sampler,
    ddim_sampler,
    ddpm_sampler,
    dpmpp_2m_sampler,
    heun_sampler,
)
from ddpm.diffusion.schedule import Schedule, even_times, log_snr_times, respace
from ddpm.errors import DamagedFile, DdpmError
from ddpm.files import load_arrays, save_arrays
from ddpm.images import to_uint8, write_rgb_pngs
from ddpm.model.checkpoint import Checkpoint, build_schedule
from ddpm.model.denoiser import is_guided, make_denoiser
from ddpm.rescue import begin_anew
from ddpm.runtime import Runtime

MAX_FRAMES = 101
_LARGEST_BATCH = {"cpu": 250, "cuda": 4096}


def make_sampler(config: GenerateConfig) -> Sampler:
    """The sampler that the settings name."""
    match config.sampler:
        case "ddpm":
            return ddpm_sampler(config.variance)
        case "ddim":
            return ddim_sampler(config.eta)
        case "dpmpp_2m":
            return dpmpp_2m_sampler(config.eta)
        case "heun":
            return heun_sampler()


def taken_steps(config: GenerateConfig, schedule: Schedule) -> Schedule:
    """The steps of the sampling run: the training's schedule, respaced."""
    spread = log_snr_times if config.spacing == "log_snr" else even_times
    return respace(schedule, spread(schedule, config.steps))


def evaluations(config: GenerateConfig, schedule: Schedule, classes: int) -> int:
    """Network evaluations per image (NFE) of a network that is told ``classes`` labels, 0 for none."""
    times = taken_steps(config, schedule).times
    if config.sampler == "heun":
        times = torch.cat([times, times[:-1]])
    guided = is_guided(schedule.alpha_bar, config.guidance, config.guidance_interval)[times]
    return len(times) + (int(guided.sum()) if classes else 0)


def spread_labels(numbers: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    """The label of each image number: int64 [n], each label as often as its share of ``shares``, in any run of numbers.

    Number i takes the place frac(i · 0.618…) of the unit interval divided among the labels (the additive recurrence of
    the golden ratio, whose first n places are spread evenly for every n); numbers count from 1.
    """
    places = np.modf(np.asarray(numbers, np.float64) * ((5**0.5 - 1) / 2))[0]
    edges = np.cumsum(np.asarray(shares, np.float64) / np.sum(shares))
    return np.searchsorted(edges[:-1], places, side="right")


@dataclass(frozen=True)
class Source:
    """What images are drawn from: a network, the schedule it was trained on, and the settings of the sampling run.

    make_denoiser: (labels int64 [n] on the device, or None) -> the denoiser of images with these labels.
    class_shares: how often the network met each label; empty for a network that is told none.
    Image number i (from 1) is decided by ``seed``, ``config.draw`` and i alone, whatever is drawn beside it, up to the
    rounding of the network's matrix products.
    """

    make_denoiser: Callable[[Tensor | None], Denoise]
    class_shares: Sequence[float]
    schedule: Schedule
    config: GenerateConfig
    image_size: int
    seed: int
    device: torch.device

    @property
    def steps(self) -> Schedule:
        """The steps taken."""
        return taken_steps(self.config, self.schedule)

    def labels(self, numbers: Sequence[int]) -> np.ndarray | None:
        """The label that each image is drawn with, int64 [n], by ``config.digits``; None for a network without labels.

        Raises DdpmError for digits that the network does not know.
        """
        classes, digits = len(self.class_shares), self.config.digits
        if digits == "all":
            return spread_labels(numbers, self.class_shares) if classes else None
        if not classes:
            raise DdpmError(
                f"generate.digits={list(digits)}, but this network was trained without labels: set it to all."
            )
        if max(digits) >= classes:
            raise DdpmError(f"generate.digits={list(digits)}: the network knows the labels 0 to {classes - 1}.")
        return spread_labels(numbers, [float(label in digits) for label in range(classes)])

    @torch.inference_mode()
    def draw(self, numbers: Sequence[int], on_step: OnStep | None = None) -> Tensor:
        """The images of these numbers: float32 [n, 1, h, w] around [-1, 1]."""
        noise = ImageNoise(self.seed, self.config.draw, numbers, (1, self.image_size, self.image_size), self.device)
        labels = self.labels(numbers)
        denoise = self.make_denoiser(None if labels is None else torch.from_numpy(labels).to(self.device))
        return make_sampler(self.config)(denoise, noise(), self.steps, noise, on_step)


def make_source(
    checkpoint: Checkpoint, network: nn.Module, config: GenerateConfig, seed: int, runtime: Runtime
) -> Source:
    """The source of images from ``network``, restored from ``checkpoint`` and ready on the runtime's device."""
    schedule = build_schedule(checkpoint.diffusion)
    denoiser = partial(
        make_denoiser,
        network,
        checkpoint.diffusion,
        schedule,
        runtime,
        config.clip,
        config.guidance,
        config.guidance_interval,
    )
    return Source(denoiser, checkpoint.class_shares, schedule, config, checkpoint.image_size, seed, runtime.device)


class Way:
    """Keeps the way of the first ``count`` images of a batch from noise to digit, at up to `MAX_FRAMES` moments."""

    def __init__(self, steps: Schedule, count: int) -> None:
        self._wanted = set(np.linspace(0, len(steps), min(len(steps) + 1, MAX_FRAMES)).round().astype(int).tolist())
        self._times = [*steps.times.flip(0).tolist(), -1]
        self._count = count
        self._frames: dict[str, list[np.ndarray]] = {"x_t": [], "x_0": [], "t": []}

    def __call__(self, step: int, x_t: Tensor, x_0: Tensor) -> None:
        """See `ddpm.diffusion.samplers`."""
        if step in self._wanted:
            self._frames["x_t"].append(to_uint8(x_t[: self._count]))
            self._frames["x_0"].append(to_uint8(x_0[: self._count]))
            self._frames["t"].append(np.array(self._times[step]))

    def arrays(self) -> dict[str, np.ndarray]:
        """x_t and x_0 (the network's guess of the end), both uint8 [frames, n, h, w], and t int64 [frames].

        t is the training time of each frame, −1 for the finished images.
        """
        return {name: np.stack(values) for name, values in self._frames.items()}


def fitting_batch(images: int, device: torch.device) -> int:
    """A batch size that is fast on the device, and divides so many images with next to nothing over."""
    return math.ceil(images / math.ceil(images / _LARGEST_BATCH[device.type]))


@dataclass(frozen=True)
class Batch:
    """Images number ``first`` and on, uint8 [n, h, w]; the way of the watched ones among them (see `Way.arrays`).

    seconds: that drawing them took.
    """

    first: int
    images: np.ndarray
    way: dict[str, np.ndarray]
    seconds: float


def draw_batches(source: Source, batch_size: int | str, kept: Path, label: str = "generate") -> Iterator[Batch]:
    """Draw all images of the run, batch by batch. Each is kept in the folder ``kept``, from where a killed run goes on.

    ``batch_size`` "auto" starts large on CUDA; a batch that does not fit into memory is halved and drawn again.
    ``label`` names the progress bar. Raises OSError where a batch cannot be kept.
    """
    total = source.config.num_images
    size = min(batch_size, total) if isinstance(batch_size, int) else fitting_batch(total, source.device)
    steps = source.steps
    first = 1
    with tqdm(total=total, desc=label, unit="image", smoothing=0.1) as progress:
        while first <= total:
            path = kept / f"batch_{first:08d}.npz"
            batch = _read_batch(path, first)
            if batch is None:
                started = time.perf_counter()
                count = min(size, total - first + 1)
                watched = min(count, source.config.trajectories - first + 1)
                way = Way(steps, watched) if watched > 0 else None

                def show(
                    step: int, x_t: Tensor, x_0: Tensor, first: int = first, count: int = count, way: Way | None = way
                ) -> None:
                    progress.update(first - 1 + count * step // len(steps) - progress.n)
                    if way:
                        way(step, x_t, x_0)

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
                batch = Batch(first, images, way.arrays() if way else {}, time.perf_counter() - started)
                save_arrays(path, images=batch.images, seconds=batch.seconds, **batch.way)
            yield batch
            first += len(batch.images)
            progress.update(first - 1 - progress.n)


def _read_batch(path: Path, first: int) -> Batch | None:
    if not path.exists():
        return None
    try:
        arrays = load_arrays(path)
    except DamagedFile as error:
        raise begin_anew(error, path.parent) from error
    return Batch(first, arrays.pop("images"), seconds=float(arrays.pop("seconds")), way=arrays)


def generate(
    source: Source, folder: Path, batch_size: int | str, workers: int, kept: Path
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Draw all images of the run into ``folder`` as RGB PNGs 00001.png, 00002.png, …; see `draw_batches`.

    Memory does not grow with the number of images. Returns (seconds, images per second and the largest batch; the way
    of the first ``config.trajectories`` images, see `Way.arrays`). Raises OSError when a PNG cannot be written.
    """
    total, size = source.config.num_images, source.config.output_size
    writing: list[Future[None]] = []
    ways: list[dict[str, np.ndarray]] = []
    seconds, largest = 0.0, 0
    with ThreadPoolExecutor(workers) as pool:
        for batch in draw_batches(source, batch_size, kept):
            for part in writing:
                part.result()
            writing = [
                pool.submit(write_rgb_pngs, folder, batch.images[rows], batch.first + int(rows[0]), total, size)
                for rows in np.array_split(np.arange(len(batch.images)), workers)
                if len(rows)
            ]
            if batch.way:
                ways.append(batch.way)
            seconds, largest = seconds + batch.seconds, max(largest, len(batch.images))
        drawn = time.perf_counter()
        for part in writing:
            part.result()
    seconds += time.perf_counter() - drawn
    cost = {
        "generate_seconds": seconds,
        "generate_images_per_second": total / seconds,
        "generate_batch_size": largest,
    }
    together = {name: np.concatenate([way[name] for way in ways], 1) for name in ("x_t", "x_0")}
    return cost, together | {"t": ways[0]["t"]}
