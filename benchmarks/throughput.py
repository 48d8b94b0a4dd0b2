"""Images per second of training and sampling, eager and compiled: `python -m benchmarks.throughput --help`.

One thread, as in each of the pipeline's processes on a CPU. ``first_seconds``: of the first call of a kind of work and
a batch, which compiles where that is on. The network and the objective are those of params.yaml, without class labels.
Beside each rate is its fraction of the matrix-product speed that this machine reaches in the same number format, the
best of two measurements in the same run. Run it on an otherwise idle machine.
"""

import os
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from itertools import product
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import SPEC, arguments, run, save, settings, show
from ddpm.config import Config
from ddpm.diffusion.objective import build_objective
from ddpm.models.build import build_network, flops_per_image
from ddpm.training.ema import Ema
from ddpm.training.optimizers import Optimizer
from ddpm.utils.runtime import Runtime, choose_runtime

Batch = tuple[Tensor, Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

SECONDS = 5.0
BATCHES = {"train": (32, 64, 128), "sample": (50, 125, 250, 1000)}
BACKWARD = 3.0  # a training step costs about three forward passes


def rate(work: Callable[[], object], runtime: Runtime) -> float:
    """Calls of ``work`` per second, after two that are not counted."""
    for _ in range(2):
        work()
    runtime.synchronize()
    calls, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < SECONDS:
        work()
        calls += 1
        runtime.synchronize()
    return calls / seconds


def gemm_flops(runtime: Runtime, size: int = 2048) -> float:
    """Floating-point operations per second of a square matrix product."""
    a = torch.randn(size, size, device=runtime.device, dtype=runtime.precision)
    return 2 * size**3 * rate(lambda: a @ a, runtime)


def prepared(config: Config, runtime: Runtime) -> tuple[Loss, nn.Module]:
    """The training loss of an untrained network, without class labels, and that network."""
    torch.compiler.reset()  # else a limit on compiled versions of one function makes the last ones eager, silently
    network = runtime.prepare(build_network(config.model, SPEC))
    objective = build_objective(config.diffusion, config.train).to(runtime.device)
    predict = runtime.predictor(network)

    @runtime.compile
    def squared_errors(images: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return objective.squared_errors(predict, images, t, eps, None)

    def loss(images: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return objective.loss(squared_errors(images, t, eps), t)

    return loss, network


def random_batch(size: int, timesteps: int, device: torch.device) -> Batch:
    """Images, times and noise of a training step; what they show decides no speed."""
    return (
        torch.randint(256, (size, *SPEC.shape), dtype=torch.uint8, device=device),
        torch.randint(timesteps, (size,), device=device),
        torch.randn(size, *SPEC.shape, device=device),
    )


def step(loss: Loss, batch: Batch, optimizer: Optimizer, ema: Ema) -> None:
    """One training step."""
    loss(*batch).backward()
    optimizer.step(0.0)
    ema.update()


@torch.no_grad()
def evaluate(loss: Loss, batch: Batch) -> None:
    """One network evaluation, as a sampler makes it."""
    loss(*batch)


def main() -> None:
    with TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        measure(arguments(__doc__).parse_args())


def measure(given: Namespace) -> None:
    """Measure all rows, show and save them."""
    config = settings()
    flops = flops_per_image(config.model, SPEC)
    fastest = choose_runtime(config.runtime, 0.0).of_rank(0)
    rows: list[dict[str, Any]] = []
    peaks: dict[str, float] = {}
    for precision, compiled in product(dict.fromkeys(["float32", fastest.describe()["precision"]]), ("off", "on")):
        changes = {"precision": precision, "compile": compiled}
        runtime = choose_runtime(config.runtime.model_copy(update=changes), 0.0).of_rank(0)
        peaks[precision] = max(peaks.get(precision, 0.0), gemm_flops(runtime))
        for kind, sizes in BATCHES.items():
            loss, network = prepared(config, runtime)
            optimizer, ema = (
                Optimizer(config.train.optimizer, network, config.train, runtime.precision),
                Ema(network, config.train.ema_decay),
            )
            for size in sizes:
                batch = random_batch(size, config.diffusion.timesteps, runtime.device)
                work = partial(step, loss, batch, optimizer, ema) if kind == "train" else partial(evaluate, loss, batch)
                started = time.perf_counter()
                work()
                first = time.perf_counter() - started
                speed = size * rate(work, runtime)
                rows.append(
                    {
                        "precision": precision,
                        "mode": "compiled" if runtime.compiled else "eager",
                        "work": kind,
                        "batch": size,
                        "first_seconds": first,
                        "images_per_second": speed,
                        "gflops": speed * flops * (BACKWARD if kind == "train" else 1.0) / 1e9,
                    }
                )
                show(rows[-1:])
    rows = [row | {"gemm_share": row["gflops"] * 1e9 / peaks[row["precision"]]} for row in rows]
    show(rows)
    described = {key: value for key, value in fastest.describe().items() if key not in ("precision", "compiled")}
    save(rows, given.json, {"flops_per_image": flops, "gemm_flops": peaks, **described})


if __name__ == "__main__":
    run(main)
