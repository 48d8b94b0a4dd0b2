"""Processes of one thread against one process of many threads: `python -m benchmarks.processes`.

As many of either as there are processors. Measured are training steps and network evaluations of the default, eager and
compiled, in the number format that this machine chooses. All processes of a row compute at the same time, from a
barrier on; `images_per_second` is of all of them together, the median of three rounds in which the rows take turns. A
batch is that of the pipeline: in training each process has its share, in sampling one of its own. What training
processes exchange is left out (`benchmarks.ranks` has it). `against_threads`: over the speed of the one process of many
threads. Nothing else should run.
"""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from functools import partial
from itertools import product
from statistics import median
from tempfile import TemporaryDirectory
from threading import BrokenBarrierError
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.common import arguments, run, save, settings, show
from benchmarks.throughput import evaluate, prepared, random_batch, rate, step
from ddpm.config import Config
from ddpm.training.ema import Ema
from ddpm.training.optimizers import Optimizer
from ddpm.utils.devices import fitting_batch
from ddpm.utils.errors import DdpmError
from ddpm.utils.processes import worker_processes
from ddpm.utils.runtime import choose_runtime, worker_count

ROUNDS = 3
PATIENCE = 900.0  # seconds in which a process compiles and the others wait
_together: Any = None


def meet(_: int, barrier: Any) -> None:  # noqa: ANN401, it is a proxy of multiprocessing
    global _together
    _together = barrier


def images_per_second(config: Config, work: str, compiled: str, threads: int, size: int) -> float:
    """Of this process, in so many threads, beside the others that wait at the same barrier."""
    changes = {"precision": "auto", "compile": compiled}
    runtime = choose_runtime(config.runtime.model_copy(update=changes), float("inf")).of_rank(0)
    torch.set_num_threads(threads)
    loss, network = prepared(config, runtime)
    batch = random_batch(size, config.diffusion.timesteps, runtime.device)
    if work == "train":
        optimizer = Optimizer(config.train.optimizer, network, config.train, runtime.precision)
        once = partial(step, loss, batch, optimizer, Ema(network, config.train.ema_decay))
    else:
        once = partial(evaluate, loss, batch)
    once()
    try:
        _together.wait(PATIENCE)
    except BrokenBarrierError as error:
        raise DdpmError("a process did not begin in time.") from error
    return size * rate(once, runtime)


def together(config: Config, work: str, compiled: str, processes: int, threads: int, size: int) -> float:
    """Of so many processes at the same time."""
    barrier = multiprocessing.get_context("spawn").Barrier(processes)
    with worker_processes(processes, "measured", meet, barrier) as executor:
        # None takes up a second one: it waits at the barrier for the others to take up theirs.
        tasks = [executor.submit(images_per_second, config, work, compiled, threads, size) for _ in range(processes)]
        return sum(task.result() for task in as_completed(tasks))  # the first that fails ends all


def layouts(config: Config, cores: int, modes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows to measure: what each computes, by how many processes of how many threads, of how many images each."""
    sizes = {"train": config.train.batch_size, "sample": fitting_batch(config.generate.num_images, torch.device("cpu"))}
    for work, compiled, (processes, threads) in product(sizes, modes, ((1, 1), (1, cores), (cores, 1))):
        size = sizes[work] // processes if work == "train" else sizes[work]
        yield {"work": work, "compile": compiled, "processes": processes, "threads": threads, "batch": size}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--compile", nargs="+", choices=("off", "on"), default=("off", "on"), help="default: both")
    given = parser.parse_args()
    config, cores = settings({"runtime.device": "cpu"}), worker_count("auto")
    if cores == 1:
        raise DdpmError("there is one processor: nothing to compare.")
    rows = list(layouts(config, cores, given.compile))
    found: list[list[float]] = [[] for _ in rows]
    with TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for _, number in tqdm(list(product(range(ROUNDS), range(len(rows))))):
            found[number].append(together(config, *rows[number].values()))
    for row, speeds in zip(rows, found, strict=True):
        row |= {"images_per_second": median(speeds), "least": min(speeds), "most": max(speeds)}
    for row in rows:
        alike = (other for other in rows if (other["work"], other["compile"]) == (row["work"], row["compile"]))
        threads = next(other["images_per_second"] for other in alike if other["threads"] == cores)
        row["against_threads"] = row["images_per_second"] / threads
    save(rows, given.json, {"rounds": ROUNDS})
    show(rows)


if __name__ == "__main__":
    run(main)
