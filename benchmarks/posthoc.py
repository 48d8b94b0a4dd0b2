"""Fréchet distance against the length over which the weights are averaged: `python -m benchmarks.posthoc --help`.

One training of the default recipe, for fewer epochs and with snapshots, gives averages of every length afterwards
(post-hoc EMA, `ddpm.training.posthoc`). Each samples the same noise, with the default's guidance and without. With
--json, rows that the file has are left out; the training lies in the folder of --work, where a killed one resumes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.common import (
    QUIET,
    arguments,
    check,
    defaults,
    earlier,
    fit,
    floor,
    quality,
    run,
    sample,
    save,
    settings,
    show,
)
from ddpm.sampling.generator import make_generator
from ddpm.training.posthoc import averaged
from ddpm.utils.devices import fitting_batch
from ddpm.utils.files import atomic_path
from ddpm.utils.runtime import choose_runtime

LENGTHS = (0.02, 0.04, 0.07, 0.1, 0.14, 0.2, 0.25)
SAMPLINGS: dict[str, dict[str, Any]] = {
    "with guidance": {},
    "no guidance": {"generate.guidance": 1.0, "generate.autoguidance": 1.0},
}
DEFINITIONS = {"sampling": SAMPLINGS}


def plot(rows: list[dict[str, Any]], images: int, path: Path) -> None:
    """A line for each sampling, dotted: the exponential average of the training; dashed: as many real images."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, name in enumerate(SAMPLINGS):
        ema, *line = sorted((row for row in rows if row["sampling"] == name), key=_length)
        axes.plot([row["length"] for row in line], [row["fd_mnist"] for row in line], "o-", label=name)
        label = f"{name}, exponential average: {ema['fd_mnist']:.2f}"
        axes.axhline(ema["fd_mnist"], color=f"C{number}", linestyle=":", label=label)
    real = floor(images)
    axes.axhline(real, color="grey", linestyle="--", linewidth=1, label=f"{images:,} real images: {real:.2f}")
    axes.set(xscale="log", xlabel="length of the average, as a fraction of the training")
    axes.set_ylabel("Fréchet distance (fd_mnist)")
    axes.set_xticks(lengths := [row["length"] for row in line], [f"{length:g}" for length in lengths])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _length(row: dict[str, Any]) -> float:
    return 0.0 if row["length"] == "ema" else float(row["length"])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=float, default=1.5, help="of the training (default 1.5)")
    parser.add_argument("--snapshots", type=int, default=32, help="of the training (default 32)")
    parser.add_argument("--images", type=int, default=1000, help="per row (default 1000)")
    parser.add_argument(
        "--lengths", type=float, nargs="+", default=LENGTHS, help=f"default {' '.join(map(str, LENGTHS))}"
    )
    parser.add_argument("--work", type=Path, default=Path(".ckpt/posthoc"), help="where the training lies")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    given = parser.parse_args()
    check(given.images)
    changes = QUIET | {"train.epochs": given.epochs, "train.posthoc_snapshots": given.snapshots}
    config = settings(changes)
    metadata = {"images": given.images, "epochs": given.epochs, "snapshots": given.snapshots} | defaults()
    rows = earlier(given.json, metadata, DEFINITIONS)
    known = {(row["length"], row["sampling"]) for row in rows}
    runtime, folder = choose_runtime(config.runtime, float("inf")), given.work / f"{given.epochs:g}"
    last, _, _ = fit(config, runtime, folder)
    for length in ("ema", *given.lengths):
        wanted = [name for name in SAMPLINGS if (length, name) not in known]
        if not wanted:
            continue
        checkpoint, distance = (last, 0.0) if length == "ema" else averaged(folder / "last.safetensors", length)
        generator = make_generator(checkpoint, "the average", config.generate, config.seed, runtime)
        for name in wanted:
            chosen = replace(generator, config=settings(changes, SAMPLINGS[name]).generate)
            images = sample(chosen, given.images, fitting_batch(given.images, runtime.device))
            found = quality(images, chosen.class_labels(range(1, given.images + 1)))
            row = {"length": length, "profile_distance": distance, "sampling": name, "nfe": chosen.nfe}
            rows.append(row | found)
            save(rows, given.json, metadata, DEFINITIONS)
            show(rows[-1:])
    show(rows)
    if given.plot:
        plot(rows, given.images, given.plot)


if __name__ == "__main__":
    run(main)
