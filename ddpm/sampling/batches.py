"""All images of a run, batch by batch: each batch is kept, so that a killed run resumes, and written while the next
one is sampled.
"""

import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.config import Config, GenerateConfig
from ddpm.data.image_set import denormalize
from ddpm.sampling.generator import Generator
from ddpm.sampling.trajectory import Trajectory
from ddpm.utils.devices import fitting_batch
from ddpm.utils.errors import lacks_memory
from ddpm.utils.files import load_arrays, save_arrays
from ddpm.utils.image_files import FORMATS
from ddpm.utils.images import resize
from ddpm.utils.processes import Pool
from ddpm.utils.resume import restarting, stop_signals


@dataclass(frozen=True)
class Batch:
    """Images number ``first`` and on, uint8 [n, c, h, w]; the trajectory of the first ones (`Trajectory.arrays`).

    seconds: that sampling them took, over the number of processes that sampled. memory: bytes of a CUDA device that the
    process held at most; 0 elsewhere.
    """

    first: int
    images: np.ndarray
    trajectory: dict[str, np.ndarray]
    seconds: float
    memory: int


def batch_count(config: Config, device: torch.device) -> int:
    """How many batches the images of the run are, see `sample_batches`."""
    images, size = config.generate.num_images, config.runtime.generate_batch_size
    return math.ceil(images / (size if isinstance(size, int) else fitting_batch(images, device)))


def sample_batches(
    generator: Generator, batch_size: int | str, kept: Path, label: str = "generate", pool: Pool | None = None
) -> Iterator[Batch]:
    """Sample all images of the run, batch by batch. Each is kept in the folder ``kept``: a killed run resumes there.

    ``batch_size`` "auto" starts large on CUDA; a batch that does not fit into memory is halved and sampled again.
    ``label`` names the progress bar. ``pool``: processes with such a generator, to share the batches among.
    Raises OSError where a batch cannot be kept, SystemExit after keeping one on SIGINT and SIGTERM.
    """
    total = generator.config.num_images
    size = min(batch_size, total) if isinstance(batch_size, int) else fitting_batch(total, generator.device)
    first = 1
    with tqdm(total=total, desc=label, unit="image", smoothing=0.1) as progress, stop_signals("batch") as stop:
        missing = _missing(first, total, size, kept)
        if missing and missing[0] > 1:
            progress.write(f"resuming {label} from image {missing[0]} of {total}, kept in {kept}")
        shared = _share(pool, generator.config, missing, size, kept)
        while first <= total:
            try:
                if first in shared:
                    shared[first].result()
                batch = _read_batch(kept, first)
                if not batch:
                    batch = _keep_batch(generator, generator.config, first, size, kept, 1, progress)
            except RuntimeError as error:
                if size == 1 or not lacks_memory(error):
                    raise
                size //= 2
                progress.n = first - 1
                progress.write(f"out of memory: going on with batches of {size}")
                # Those under way cannot be cancelled: the smaller ones must not meet them in memory.
                wait([future for future in shared.values() if not future.cancel()])
                shared = _share(pool, generator.config, _missing(first, total, size, kept), size, kept)
                continue
            yield batch
            first += len(batch.images)
            progress.update(first - 1 - progress.n)
            if stop:  # after the last batch too: another set may follow, and what is kept is not sampled again
                raise SystemExit(
                    f"stopped after image {first - 1} of {total} of {label}; the next `dvc repro` resumes there."
                )


def write_images(
    generator: Generator, folder: Path, workers: int, batch_size: int | str, kept: Path, pool: Pool | None = None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Sample all images of the run into ``folder``, as files of ``config.format``; see `sample_batches`.

    Memory does not grow with the number of images. Returns (seconds, images per second, the largest batch and the
    bytes of a CUDA device that a process held at most; the trajectory of the first ``config.trajectories`` images).
    Raises OSError when a file cannot be written.
    """
    config = generator.config
    trajectories: list[dict[str, np.ndarray]] = []
    seconds, largest, memory = 0.0, 0, 0
    with FORMATS[config.format](folder, config.num_images, generator.output_size, workers) as files:
        for batch in sample_batches(generator, batch_size, kept, pool=pool):
            files.add(batch.images)
            if batch.trajectory:
                trajectories.append(batch.trajectory)
            seconds += batch.seconds
            largest, memory = max(largest, len(batch.images)), max(memory, batch.memory)
        sampled = time.perf_counter()
        files.finish()
    seconds += time.perf_counter() - sampled
    cost = {
        "generate_seconds": seconds,
        "generate_images_per_second": config.num_images / seconds,
        "generate_batch_size": largest,
        "device_bytes": memory,
    }
    together = {name: np.concatenate([part[name] for part in trajectories], 1) for name in ("x_t", "x_0")}
    return cost, together | {"t": trajectories[0]["t"]}


def sample_replicates(
    generator: Generator, count: int, batch_size: int | str, kept: Path, pool: Pool | None = None
) -> dict[str, np.ndarray]:
    """Further sets of as many images, by other noise: uint8 [n, c, h, w] each, by the name of its replicate."""
    sets = {}
    for replicate in range(generator.config.replicate + 1, generator.config.replicate + 1 + count):
        other, name = generator.changed(replicate=replicate, trajectories=1), f"replicate_{replicate}"
        batches = sample_batches(other, batch_size, kept / name, name.replace("_", " "), pool)
        sets[name] = np.concatenate([resize(batch.images, generator.output_size) for batch in batches])
    return sets


def _keep_batch(
    generator: Generator,
    config: GenerateConfig,
    first: int,
    size: int,
    kept: Path,
    processes: int,
    progress: tqdm | None = None,
) -> Batch:
    """Sample the images ``first`` and on, a batch of ``size`` but for those beyond the last, and keep them.

    processes: how many do so.
    """
    generator = replace(generator, config=config)
    count = min(size, config.num_images - first + 1)
    started, steps = time.perf_counter(), generator.steps
    watched = min(count, config.trajectories - first + 1)
    trajectory = Trajectory(steps, watched) if watched > 0 else None

    def on_step(step: int, x_t: Tensor, x_0: Tensor) -> None:
        if progress is not None:
            progress.update(first - 1 + count * step // len(steps) - progress.n)
        if trajectory:
            trajectory(step, x_t, x_0)

    # The last batch is sampled at the common size too, so that one compiled network serves all.
    images = denormalize(generator.sample(range(first, first + size), on_step)[:count])
    seconds = (time.perf_counter() - started) / processes
    watched_steps = trajectory.arrays() if trajectory else {}
    memory = torch.cuda.max_memory_allocated(generator.device) if generator.device.type == "cuda" else 0
    batch = Batch(first, images, watched_steps, seconds, memory)
    save_arrays(_path(kept, first), images=images, seconds=seconds, memory=memory, **batch.trajectory)
    return batch


def _missing(first: int, total: int, size: int, kept: Path) -> list[int]:
    """The first images of the batches that are not kept, from image ``first`` on: those have ``size`` images."""
    missing = []
    while first <= total:
        batch = _read_batch(kept, first)
        if not batch:
            missing.append(first)
        first += len(batch.images) if batch else size
    return missing


def _share(
    pool: Pool | None, config: GenerateConfig, starts: list[int], size: int, kept: Path
) -> dict[int, Future[None]]:
    """Have the pool sample the batches that begin with these images; by these."""
    if not pool:
        return {}
    return {start: pool.submit(_keep_only, config, start, size, kept, pool.processes) for start in starts}


def _keep_only(*given: Any) -> None:  # noqa: ANN401
    """`_keep_batch` in another process, which need not send the batch back: it is read from where it is kept."""
    _keep_batch(*given)


def _path(kept: Path, first: int) -> Path:
    return kept / f"batch_{first:08d}.npz"


def _read_batch(kept: Path, first: int) -> Batch | None:
    if not _path(kept, first).exists():
        return None
    with restarting(kept):
        arrays = load_arrays(_path(kept, first))
    images, seconds, memory = (arrays.pop(name) for name in ("images", "seconds", "memory"))
    return Batch(first, images, arrays, float(seconds), int(memory))
