"""Quality against seconds of training, recipe by recipe: `python -m benchmarks.frontier --help`.

First of all, on a machine that should be quiet, each recipe is trained for a few steps; from the speed found, its
epochs are chosen to fill the seconds allowed, and its learning rate decays over just these. So the seconds are those of
the images that a row has seen, at that speed, compiling (half a minute) not counted, and the machine may be busy later.
Sampling is each recipe's own, but where it has a thousand steps, in 16 (textbook) or 30.
With --json, rows that the file has are left out; trainings lie in the folder of --work, where a killed one resumes.
Speeds lie there too, in speeds.json: a recipe that has changed can be trained anew at that of its earlier rows, once
these are taken out of the file.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
from tqdm import tqdm

from benchmarks.common import (
    LAST,
    QUIET,
    arguments,
    check,
    earlier,
    fit,
    floor,
    quality,
    run,
    sampling,
    save,
    settings,
    show,
    slug_of,
    split,
    written_out,
)
from ddpm.models.build import flops_per_image
from ddpm.utils.files import atomic_path, read_json, write_json
from ddpm.utils.images import enlarge, tile, write_png
from ddpm.utils.runtime import choose_runtime

SECONDS = (30, 60, 120, 300, 600, 1800, 7200)
TEXTBOOK: dict[str, Any] = {
    "model.classes": 0,
    "model.clusters": 1,
    "diffusion.schedule": "linear",
    "diffusion.target": "eps",
    "train.optimizer": "adamw",
    "train.lr": 0.0002,
    "train.adam_beta2": 0.999,
    "train.warmup_steps": 0,
    "train.lr_decay": "none",
    "train.ema_decay": 0.0,
    "train.weighting": "simple",
    "train.time_density": "uniform",
    "train.time_sampling": "uniform",
    "train.label_dropout": 0.0,
    "train.guide_fraction": 0.0,
    "generate.guidance": 1.0,
    "generate.autoguidance": 1.0,
    "generate.guidance_rescale": 0.0,
    "generate.sampler": "ddpm",
    "generate.steps": 16,
    "generate.spacing": "even",
    "generate.variance": 0.4,
}
# As the default was sampled when its rows were made; since then recall is half a hundredth higher.
SAMPLING = {"generate.guidance_rescale": 0.0, "generate.variance": 0.5}
RECIPES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "default": (None, SAMPLING),
    "unconditional": ("unconditional", SAMPLING),
    "textbook recipe on the default's network": (None, TEXTBOOK),
    "predecessor's recipe, base 32": ("baseline", {"model.base_channels": 32, "generate.steps": 30}),
}
PROBE_STEPS = 40


def speeds(recipes: Sequence[str], rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, float]:
    """Images per second of each recipe's training: of its earlier rows, or over a few steps.

    What was measured is kept in the folder: a run that is killed in its first row resumes with the same epochs.
    """
    note = folder / "speeds.json"
    found = read_json(note) if note.exists() else {}
    found |= {row["recipe"]: row["images_per_second"] for row in rows}
    for name in [name for name in recipes if name not in found]:
        preset, changes = RECIPES[name]
        probe = settings(changes, QUIET, preset=preset)
        epochs = PROBE_STEPS * probe.train.batch_size / len(split()[0])
        config = settings(changes, QUIET, {"train.epochs": epochs}, preset=preset)
        for _ in range(2):  # the first one compiles
            with TemporaryDirectory() as scratch:
                _, _, cost = fit(config, choose_runtime(config.runtime, float("inf")), Path(scratch) / "probe")
        found[name] = cost["train_images_per_second"]
        write_json(note, found)
    return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One line a recipe, both axes logarithmic; dashed: as many real images."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for name in dict.fromkeys(row["recipe"] for row in rows):
        line = sorted((row for row in rows if row["recipe"] == name), key=lambda row: row["seconds"])
        axes.plot([row["seconds"] for row in line], [row["fd_mnist"] for row in line], "o-", label=name)
    images = rows[0]["images"]
    axes.axhline(floor(images), color="grey", linestyle="--", label=f"{images:,} real training images")
    axes.set(xscale="log", yscale="log", xlabel="seconds of training", ylabel="Fréchet distance (fd_mnist)")
    seconds = sorted({row["seconds"] for row in rows})
    axes.set_xticks(seconds, [f"{each:,}" for each in seconds])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter("{x:,.4g}")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=int, nargs="+", default=list(SECONDS), help=f"default {SECONDS}")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--images", type=int, default=5000, help="per row (default 5000)")
    parser.add_argument("--work", type=Path, default=Path(".ckpt/frontier"), help="where the trainings lie")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="a sheet of 100 images of each row")
    given = parser.parse_args()
    check(given.images)
    recipes = {name: written_out(settings(changes, preset=preset)) for name, (preset, changes) in RECIPES.items()}
    definitions = {"recipe": recipes}
    metadata = {"images": given.images} | choose_runtime(settings().runtime, float("inf")).describe()
    rows = earlier(given.json, metadata, definitions)
    speed = speeds(given.recipes, rows, given.work)
    known = {(row["recipe"], row["seconds"]) for row in rows}
    for seconds in sorted(given.seconds):
        for name in [name for name in given.recipes if (name, seconds) not in known]:
            tqdm.write(f"\n{name}, {seconds} s")
            preset, changes = RECIPES[name]
            slug = slug_of(name)
            folder = given.work / f"{slug}_{seconds}"
            common = changes | QUIET | {"generate.num_images": given.images, "generate.trajectories": 1}
            size, count = settings(common, preset=preset).train.batch_size, len(split()[0])
            epochs = max(seconds * speed[name], size) / count
            config = settings(common, {"train.epochs": epochs}, preset=preset)
            runtime = choose_runtime(config.runtime, float("inf"))
            checkpoint, results, _ = fit(config, runtime, folder)
            with sampling(folder / LAST, config, runtime) as (generator, sampled):
                images = sampled(generator, name)
            row = {
                "recipe": name,
                "seconds": seconds,
                "mflop": flops_per_image(checkpoint.model, checkpoint.spec) / 1e6,
                "images_seen": results["images_seen"],
                "images_per_second": speed[name],
                "images": given.images,
                "nfe": generator.nfe,
            }
            rows.append(row | quality(images))
            save(rows, given.json, metadata, definitions)
            if given.pictures:
                given.pictures.mkdir(parents=True, exist_ok=True)
                write_png(given.pictures / f"{slug}_{seconds}.png", enlarge(tile(images[:100], 10), 2))
            show(rows[-1:])
    show(rows)
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    run(main)
