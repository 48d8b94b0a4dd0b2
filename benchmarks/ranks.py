"""What a training step costs, part by part, and what follows for more ranks: `python -m benchmarks.ranks --help`.

Of the default's recipe on this machine's CPU, one thread a rank, all ranks with a core of their own. The model: a step
of n ranks, of S shards of B bytes of gradients, takes

    slowest(n) + (n - 1) (latency + S/n · B / bandwidth) + update

slowest(n): the mean of the slowest of n draws from the measured times of S/n shards, forward and backward: the
stragglers. Then the ring by which every rank receives the other n - 1 ranks' rows, its constants measured between two
processes (gloo); then the sum of all rows, the optimizer and the average, which every rank computes. It is compared
with steps measured here for as many ranks as there are cores. Nothing else should run. The options put another
machine's constants in place of this one's, such as those of a GPU; nothing is measured then.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.common import QUIET, SPEC, arguments, run, save, settings, show, split
from ddpm.config import Config
from ddpm.diffusion.objective import build_objective
from ddpm.models.build import build_network
from ddpm.training.ema import Ema
from ddpm.training.gradients import ShardGradients
from ddpm.training.launch import train_together
from ddpm.training.loop import train
from ddpm.training.optimizers import Optimizer
from ddpm.training.ranks import ALONE, Ranks
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.processes import worker_processes
from ddpm.utils.runtime import choose_runtime, one_thread

REPEATS = 64


@dataclass(frozen=True)
class Constants:
    """What a step consists of. shard: seconds of a shard, forward and backward, measured many times. update: seconds of
    sum, optimizer and average. latency: seconds of an exchange of nothing. bandwidth: bytes a second beyond it.
    """

    shard: list[float]
    update: float
    latency: float
    bandwidth: float

    def step(self, ranks: int, shards: int, size: int) -> dict[str, float]:
        """The model's seconds of a step of so many ranks, by their parts; size: bytes of a shard's gradients."""
        each = -(-shards // ranks)  # the largest share, which the others wait for
        parts = np.reshape(self.shard[: len(self.shard) // each * each], (-1, each)).sum(1)
        found = {
            "compute_s": float(parts.mean()),
            "waiting_s": max(0.0, slowest(parts, ranks) - float(parts.mean())),  # of equal times it rounds
            "exchange_s": (ranks - 1) * (self.latency + each * size / self.bandwidth),
            "update_s": self.update,
        }
        return found | {"model_s": sum(found.values())}


def slowest(found: np.ndarray, ranks: int) -> float:
    """The mean of the slowest of so many draws, with replacement, from measured times."""
    shares = np.arange(len(found) + 1) / len(found)
    return float(np.sort(found) @ np.diff(shares**ranks))


def times(work: Callable[[], Any], repeats: int = REPEATS) -> list[float]:
    """Seconds of each of several calls, after two."""
    found = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found[2:]


def compute_and_update(config: Config, shards: int) -> tuple[list[float], float]:
    """Seconds of one of so many shards, forward and backward, time after time, and of the update, the median."""
    runtime = choose_runtime(config.runtime, float("inf"))
    torch.compiler.reset()
    torch.manual_seed(0)
    with one_thread(runtime.device):
        network = runtime.prepare(build_network(config.model, SPEC)).train()
        objective, predict = build_objective(config.diffusion, config.train), runtime.predictor(network)
        errors = runtime.compile(partial(objective.squared_errors, predict))
        optimizer = Optimizer(config.train.optimizer, network, config.train, runtime.precision)
        ema = Ema(network, config.train.ema_decay)
        gradients = ShardGradients(network, shards, ALONE)
        size = config.train.batch_size // shards
        images = torch.randint(256, (size, *SPEC.shape), dtype=torch.uint8)
        t, labels = torch.randint(config.diffusion.timesteps, (size,)), torch.zeros(size, dtype=torch.int64)
        eps = torch.randn(size, *SPEC.shape)

        def update() -> None:
            gradients.exchange(stop=False, ask=False)
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.train.grad_clip)
            optimizer.step(1e-6)
            ema.update()

        work = times(lambda: gradients.backward(0, errors(images, t, eps, labels).mean()))
        return work, median(times(update))


_ranks = ALONE


def meet(number: int, size: int, place: str) -> None:
    global _ranks
    torch.set_num_threads(1)
    _ranks = Ranks(number, size)
    _ranks.connect(place, torch.device("cpu"))


def exchange(values: int) -> float:
    return median(times(lambda: _ranks.gather(torch.zeros(1, values))))


def exchange_seconds(values: int) -> float:
    """Seconds in which two processes send each other a row of so many float32 values."""
    with TemporaryDirectory() as name, worker_processes(2, "met", meet, 2, f"file://{name}/ranks") as executor:
        return max(task.result() for task in [executor.submit(exchange, values) for _ in range(2)])


def measured_step(config: Config, ranks: int) -> float:
    """Seconds of a real training step by so many processes."""
    steps = 60
    epochs = steps * config.train.batch_size / len(split()[0])
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})
    runtime = choose_runtime(config.runtime, float("inf"))
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    with TemporaryDirectory() as name, RunFolder(Path(name), Path(name) / "kept") as folder:
        work = partial(train, recipe, *split(), save_every_seconds=1e9)
        _, cost = train_together(ranks, work, runtime, folder)
    return config.train.batch_size / cost["train_images_per_second"]


def measured(config: Config, shards: int, values: int) -> Constants:
    """This machine's constants, of a network of so many values."""
    shard, update = compute_and_update(config, shards)
    latency = exchange_seconds(1)
    return Constants(shard, update, latency, 4 * values / (exchange_seconds(values) - latency))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shards", type=int, default=8, help="train.shards: at most as many ranks (default 8)")
    for name in ("shard-ms", "update-ms", "latency-us", "gb-per-s"):
        parser.add_argument(f"--{name}", type=float, help="in place of measuring it: all four, or none")
    given = parser.parse_args()
    config = settings(QUIET, {"runtime.device": "cpu", "train.shards": given.shards})
    values = sum(weight.numel() for weight in build_network(config.model, SPEC).parameters())
    constants_given = given.shard_ms, given.update_ms, given.latency_us, given.gb_per_s
    if len({value is None for value in constants_given}) > 1:
        parser.error("give all four constants, or none.")
    if None in constants_given:
        constants = measured(config, given.shards, values)
    else:
        shard, update, latency, bandwidth = constants_given
        constants = Constants([shard / 1e3] * given.shards, update / 1e3, latency / 1e6, bandwidth * 1e9)
    metadata = {"batch_size": config.train.batch_size, "shards": given.shards, "values": values}
    metadata |= {"latency_s": constants.latency, "bytes_per_s": constants.bandwidth}
    rows: list[dict[str, Any]] = []
    for ranks in (2**power for power in range(given.shards.bit_length())):
        row: dict[str, Any] = {"ranks": ranks} | constants.step(ranks, given.shards, 4 * values)
        if None in constants_given:
            here = ranks <= (os.cpu_count() or 1)
            row["measured_s"] = measured_step(config, ranks) if here else None
        rows.append(row | {"model_speedup": rows[0]["model_s"] / row["model_s"] if rows else 1.0})
        save(rows, given.json, metadata)
    show(rows)


if __name__ == "__main__":
    run(main)
