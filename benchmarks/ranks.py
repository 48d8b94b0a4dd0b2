"""What a training step costs, part by part, and what follows for more ranks: `python -m benchmarks.ranks --help`.

Of the default's recipe on this machine's CPU, one thread a rank: forward and backward of a shard, by its size; the
exchange of all shards' gradients between real processes (gloo); the optimizer and the average, which every rank
computes. The model: a step of n ranks takes

    shards / n · compute(batch / shards) + exchange(n) + update

where all ranks have a core of their own. It is compared with steps measured here for as many ranks as there are cores;
what they lose beyond it are the memory that cores share and waiting for the slowest. Nothing else should run.
"""

import os
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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

COUNTS = (1, 2, 4, 8)
REPEATS = 12


def median(work: Any, repeats: int = REPEATS) -> float:  # noqa: ANN401
    """Seconds of one call, the median of several after two."""
    found = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return sorted(found[2:])[repeats // 2]


def compute_and_update(config: Config, size: int) -> tuple[float, float]:
    """Seconds of a shard of so many images, forward and backward, and of optimizer and average together."""
    runtime = choose_runtime(config.runtime, float("inf"))
    torch.compiler.reset()
    torch.manual_seed(0)
    with one_thread(runtime.device):
        network = runtime.prepare(build_network(config.model, SPEC), trains=True).train()
        objective, predict = build_objective(config.diffusion, config.train), runtime.predictor(network)
        errors = runtime.compile(partial(objective.squared_errors, predict))
        optimizer, ema = Optimizer(config.train.optimizer, network, config.train), Ema(network, config.train.ema_decay)
        gradients = ShardGradients(network, 1, ALONE)
        images = torch.randint(256, (size, *SPEC.shape), dtype=torch.uint8)
        t, labels = torch.randint(1000, (size,)), torch.zeros(size, dtype=torch.int64)
        eps = torch.randn(size, *SPEC.shape)

        def update() -> None:
            gradients.exchange(stop=False, ask=False)
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.train.grad_clip)
            optimizer.step(1e-6)
            ema.update()

        work = median(lambda: gradients.backward(0, errors(images, t, eps, labels).mean()))
        return work, median(update)


_ranks = ALONE


def meet(number: int, size: int, place: str) -> None:
    global _ranks
    torch.set_num_threads(1)
    _ranks = Ranks(number, size)
    _ranks.connect(place, torch.device("cpu"))


def exchange(values: int) -> float:
    return median(lambda: _ranks.gather(torch.zeros(1, values)))


def exchange_seconds(ranks: int, values: int) -> float:
    """Seconds in which each of so many ranks sends a row of gradients to all others."""
    if ranks == 1:
        return 0.0
    with TemporaryDirectory() as name, worker_processes(ranks, "met", meet, ranks, f"file://{name}/ranks") as executor:
        return max(task.result() for task in [executor.submit(exchange, values) for _ in range(ranks)])


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


def main() -> None:
    given = arguments(__doc__).parse_args()
    config = settings(QUIET)
    shards = max(COUNTS)
    config = config.model_copy(update={"train": config.train.model_copy(update={"shards": shards})})
    compute, update = compute_and_update(config, config.train.batch_size // shards)
    values = sum(weight.numel() for weight in build_network(config.model, SPEC).parameters())
    rows: list[dict[str, Any]] = []
    for ranks in COUNTS:
        sent = exchange_seconds(ranks, shards // ranks * values)
        row = {
            "ranks": ranks,
            "compute_s": shards / ranks * compute,
            "exchange_s": sent,
            "update_s": update,
            "model_s": shards / ranks * compute + sent + update,
            "measured_s": measured_step(config, ranks) if ranks <= (os.cpu_count() or 1) else None,
        }
        rows.append(row | {"model_speedup": rows[0]["model_s"] / row["model_s"] if rows else 1.0})
        save(rows, given.json, {"batch_size": config.train.batch_size, "shards": shards, "values": values})
    show(rows)


if __name__ == "__main__":
    run(main)
