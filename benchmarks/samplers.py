"""Fréchet distance against network evaluations, sampler by sampler: `python -m benchmarks.samplers --help`.

Samples from the pipeline's checkpoint with the same noise in every row. With --json, rows that the file has already are
not sampled again.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
from tqdm import tqdm

from benchmarks.common import arguments, check, defaults, earlier, quality, run, sample, save, settings, show
from ddpm.models.checkpoint import load_checkpoint
from ddpm.sampling.generator import make_generator
from ddpm.utils.devices import fitting_batch
from ddpm.utils.files import atomic_path, sha256
from ddpm.utils.runtime import choose_runtime
from stages.paths import MODEL

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
COMMON = {"generate.spacing": "even", "generate.variance": "small", "generate.autoguidance": 1.0}
DEFINITIONS = {"sampler": SAMPLERS}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=2000, help="per row (default 2000)")
    parser.add_argument("--guidance", type=float, default=1.0, help="default 1: none, one evaluation a step")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help=f"default {' '.join(map(str, STEPS))}")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS), help="default: all")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    given = parser.parse_args()
    config = settings(COMMON)
    path = MODEL / f"{config.generate.checkpoint}.safetensors"
    checkpoint = load_checkpoint(path)
    runtime = choose_runtime(config.runtime, float("inf"))
    generator = make_generator(checkpoint, str(path), config.generate, config.seed, runtime)
    batch = fitting_batch(given.images, runtime.device)
    check(given.images)
    metadata = {"images": given.images, "guidance": given.guidance, "checkpoint": sha256(path)}
    metadata |= runtime.describe() | defaults(COMMON)
    rows = earlier(given.json, metadata, DEFINITIONS)
    known = {(row["steps"], row["sampler"]) for row in rows}
    cases = [
        (steps, name)
        for steps in sorted(given.steps)
        for name in given.samplers
        # Of all times, none are left to choose among: these rows would repeat the evenly spaced ones.
        if (steps, name) not in known and not (steps == checkpoint.diffusion.timesteps and "log-SNR" in name)
    ]
    for steps, name in tqdm(cases, desc="samplers", unit="row"):
        changes = {"generate.steps": steps, "generate.guidance": given.guidance}
        chosen = settings(COMMON, SAMPLERS[name], changes).generate
        chosen_generator = replace(generator, config=chosen)
        found = quality(sample(chosen_generator, given.images, batch))
        rows.append({"sampler": name, "steps": steps, "nfe": chosen_generator.nfe, **found})
        save(rows, given.json, metadata, DEFINITIONS)
    show(rows)
    if given.plot:
        plot(rows, given.images, given.plot)


def plot(rows: list[dict[str, float | str]], images: int, path: Path) -> None:
    """One line a sampler, both axes logarithmic, its lowest and its last point in the legend; dashed: real images."""
    figure, axes = plt.subplots(figsize=(11, 4.8), layout="constrained")

    def point(row: dict[str, float | str]) -> str:
        return f"{row['fd_mnist']:.2f} in {row['steps']:,} steps, {row['nfe']:,} evaluations"

    for name in dict.fromkeys(row["sampler"] for row in rows):
        line = sorted((row for row in rows if row["sampler"] == name), key=lambda row: row["nfe"])
        label = f"{name}\n  lowest: {point(min(line, key=lambda row: row['fd_mnist']))}\n  last: {point(line[-1])}"
        axes.plot([row["nfe"] for row in line], [row["fd_mnist"] for row in line], "o-", markersize=4, label=label)
    real = float(rows[0]["fd_mnist"]) / float(rows[0]["over_floor"])
    label = f"{images:,} real training images: {real:.2f}"
    axes.axhline(real, color="grey", linestyle="--", linewidth=1, label=label)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per image", ylabel="Fréchet distance (fd_mnist)")
    axes.set_title(f"{images:,} generated images per point, all by one model from the same noise", fontsize=10)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside right center", fontsize=8)
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


if __name__ == "__main__":
    run(main)
