"""Images per second of training and sampling, eager and compiled: `python -m benchmarks.throughput --help`.

The network is that of params.yaml. Beside each rate stands its share of the matrix-product speed that this machine
reaches in the same number format, measured in the same run. Run it on an otherwise idle machine.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import arguments, save, settings, show
from ddpm.diffusion.process import normalize, q_sample, target_of
from ddpm.model.checkpoint import build_network, build_schedule, flops_per_image
from ddpm.model.ema import Ema
from ddpm.runtime import Runtime, choose_runtime
from ddpm.training.optimizer import Optimizer

Batch = tuple[Tensor, Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

SECONDS = 5.0
BATCHES = {"train": (32, 64, 128), "sample": (50, 250, 1000)}
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
    asked = arguments(__doc__).parse_args()
    config = settings()
    flops = flops_per_image(config.model, 28)
    schedule = build_schedule(config.diffusion)
    rows = []
    for compiled in (False, True):
        runtime = choose_runtime(config.runtime.model_copy(update={"compile": "on" if compiled else "off"}), 0.0)
        peak = gemm_flops(runtime)
        alpha_bar = schedule.alpha_bar.float().to(runtime.device)[:, None, None, None]
        network = runtime.prepare(build_network(config.model), trains=kind == "train")
        optimizer, ema = Optimizer(network, config.train), Ema(network, config.train.ema_decay)

        def errors(
            images: Tensor,
            t: Tensor,
            eps: Tensor,
            network: torch.nn.Module = network,
            runtime: Runtime = runtime,
            alpha_bar: Tensor = alpha_bar,
        ) -> Tensor:
            x_0 = normalize(images)
            with runtime.autocast():
                prediction = network(q_sample(x_0, alpha_bar[t], eps), t)
            return (prediction.float() - target_of(config.diffusion.target, x_0, alpha_bar[t], eps)).square().mean()

        loss = runtime.compile(errors)
        for kind, sizes in BATCHES.items():
            for size in sizes:
                images = torch.randint(256, (size, 28, 28), dtype=torch.uint8, device=runtime.device)
                t = torch.randint(len(schedule), (size,), device=runtime.device)
                eps = torch.randn(size, 1, 28, 28, device=runtime.device)

                work = partial(step if kind == "train" else evaluate, loss, (images, t, eps))
                speed = size * rate(partial(work, optimizer, ema) if kind == "train" else work, runtime)
                share = speed * flops * (BACKWARD if kind == "train" else 1.0) / peak
                mode = "compiled" if compiled else "eager"
                row = {"work": kind, "batch": size, "mode": mode, "images_per_second": speed}
                rows.append(row | {"gflops": share * peak / 1e9, "gemm_share": share})
                show(rows[-1:])
    show(rows)
    save(rows, asked.json, {"flops_per_image": flops, "gemm_flops": peak, **runtime.describe()})


if __name__ == "__main__":
    main()
