"""Fréchet distance against network evaluations, sampler by sampler: `python -m benchmarks.samplers --help`.

Draws from the pipeline's checkpoint; every setting of `generate` is varied. The same noises belong to every row. With
--json, rows that the file has already are not drawn again. Writes a plot, too.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from benchmarks.common import arguments, check, defaults, draw, earlier, prepare, quality, run, save, settings, show
from ddpm.config import load_config
from ddpm.models.checkpoint import load_checkpoint
from ddpm.sampling.generator import evaluations, fitting_batch, make_source
from ddpm.utils.files import atomic_path, sha256
from ddpm.utils.runtime import choose_runtime
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
    parser.add_argument("--guidance", type=float, default=1.0, help="default 1: none, one evaluation a step")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help=f"default {' '.join(map(str, STEPS))}")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS), help="default: all")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    asked = parser.parse_args()
    path = MODEL / f"{load_config(PARAMS).generate.checkpoint}.safetensors"
    checkpoint = load_checkpoint(path)
    runtime = choose_runtime(load_config(PARAMS).runtime, float("inf"))
    network = prepare(checkpoint, runtime)
    batch = fitting_batch(asked.images, runtime.device)
    check(asked.images)
    facts = {"images": asked.images, "guidance": asked.guidance, "checkpoint": sha256(path)}
    facts |= runtime.describe() | defaults()
    rows = earlier(asked.json, facts)
    known = {(row["steps"], row["sampler"]) for row in rows}
    cases = [
        (steps, name)
        for steps in sorted(asked.steps)
        for name in asked.samplers
        # Of all times, none are left to choose among: these rows would repeat the evenly spaced ones.
        if (steps, name) not in known and not (steps == checkpoint.diffusion.timesteps and "log-SNR" in name)
    ]
    for steps, name in tqdm(cases, desc="samplers", unit="row"):
        changes = {"generate.steps": steps, "generate.guidance": asked.guidance}
        config = settings(COMMON, SAMPLERS[name], changes)
        drawing = make_source(checkpoint, network, config.generate, config.seed, runtime)
        images = draw(drawing, asked.images, batch)
        found = quality(images, config.seed)
        rows.append(
            {
                "sampler": name,
                "steps": steps,
                "nfe": evaluations(config.generate, drawing.schedule, checkpoint.model.classes),
                **found,
            }
        )
        save(rows, asked.json, facts)
    show(rows)
    if asked.plot:
        plot(rows, asked.plot)


def plot(rows: list[dict[str, float | str]], path: Path) -> None:
    """One line a sampler, both axes logarithmic, with the floor of as many real images."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(str(row["sampler"]) for row in rows):
        line = sorted((row["nfe"], row["fd_mnist"]) for row in rows if row["sampler"] == name)
        axes.plot(*np.array(line, np.float64).T, marker="o", markersize=4, label=name)
    floor = float(rows[0]["fd_mnist"]) / float(rows[0]["over_floor"])
    axes.axhline(floor, color="grey", linestyle="--", linewidth=1, label="real digits")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per image", ylabel="Fréchet distance")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    run(main)
