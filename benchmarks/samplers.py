"""Fréchet distance against network evaluations, sampler by sampler: `python -m benchmarks.samplers --help`.

Draws from the pipeline's checkpoint with its guidance; every other setting of `generate` is varied. The same noises
belong to every row. Writes a plot, too.
"""

import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from benchmarks.common import arguments, draw, prepare, quality, save, settings, show
from ddpm.config import load_config
from ddpm.files import atomic_path
from ddpm.model.checkpoint import load_checkpoint
from ddpm.runtime import choose_runtime
from ddpm.sampling import CPU_BATCH, CUDA_BATCH, evaluations, make_source
from stages import MODEL, PARAMS

STEPS = (5, 10, 15, 25, 50, 100, 1000)
SAMPLERS = {
    "ddpm": {"generate.sampler": "ddpm"},
    "ddpm, large variance": {"generate.sampler": "ddpm", "generate.variance": "large"},
    "ddpm, log-SNR": {"generate.sampler": "ddpm", "generate.spacing": "log_snr"},
    "ddim": {"generate.sampler": "ddim", "generate.eta": 0.0},
    "dpmpp_2m": {"generate.sampler": "dpmpp_2m", "generate.eta": 0.0},
    "dpmpp_2m, stochastic": {"generate.sampler": "dpmpp_2m", "generate.eta": 1.0},
    "dpmpp_2m, log-SNR": {"generate.sampler": "dpmpp_2m", "generate.eta": 0.0, "generate.spacing": "log_snr"},
    "heun": {"generate.sampler": "heun"},
}
COMMON = {"generate.spacing": "even", "generate.variance": "small"}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=2000, help="per row (default 2000)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help=f"default {' '.join(map(str, STEPS))}")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS), help="default: all")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    asked = parser.parse_args()
    checkpoint = load_checkpoint(MODEL / f"{load_config(PARAMS).generate.checkpoint}.safetensors")
    runtime = choose_runtime(load_config(PARAMS).runtime, float("inf"))
    network = prepare(checkpoint, runtime)
    batch = CUDA_BATCH if runtime.device.type == "cuda" else CPU_BATCH
    rows = []
    cases = [(steps, name) for steps in sorted(asked.steps) for name in asked.samplers]
    for steps, name in tqdm(cases, desc="samplers", unit="row"):
        config = settings(COMMON, SAMPLERS[name], {"generate.steps": steps})
        drawing = make_source(checkpoint, network, config.generate, config.seed, runtime)
        started = time.perf_counter()
        images = draw(drawing, asked.images, batch)
        seconds = time.perf_counter() - started
        found = quality(images, drawing.labels(range(1, asked.images + 1)), config.seed)
        row = {
            "sampler": name,
            "steps": steps,
            "nfe": evaluations(config.generate, drawing.schedule, checkpoint.model.classes),
            "fd_mnist": found["fd_mnist"],
            "over_floor": found["fd_mnist_over_floor"],
            "sure_share": found["sure_share"],
            "seconds": seconds,
        }
        rows.append(row)
        # Written as it goes: the longest rows come last, and a run cut short keeps the others.
        tqdm.write(f"{name:24} {steps:5} steps  {row['fd_mnist']:8.3f}  {seconds:7.1f} s")
        facts = {"images": asked.images, "guidance": config.generate.guidance, "floor": found["fd_mnist_floor"]}
        save(rows, asked.json, facts | runtime.describe())
    show(rows)
    if asked.plot:
        plot(rows, asked.plot, found["fd_mnist_floor"])


def plot(rows: list[dict[str, float | str]], path: Path, floor: float) -> None:
    """One line a sampler, both axes logarithmic, with the floor of as many real images."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(str(row["sampler"]) for row in rows):
        line = np.array([[row["nfe"], row["fd_mnist"]] for row in rows if row["sampler"] == name], np.float64)
        axes.plot(*line.T, marker="o", markersize=4, label=name)
    axes.axhline(floor, color="grey", linestyle="--", linewidth=1, label="real digits")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per image", ylabel="Fréchet distance")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    main()
