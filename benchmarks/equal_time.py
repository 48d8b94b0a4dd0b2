"""The same seconds of training and of drawing for every recipe: `python -m benchmarks.equal_time --help`.

Each recipe is first trained for a few steps and draws one batch; from the speed found, its epochs and sampler steps are
chosen to fill the time allowed. These first steps also fill the compiler's cache, so compiling counts for nothing (half
a minute for each recipe). Quality is measured as the `fid` stage does. With --json, recipes that the file has already
are left out.
"""

import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.common import (
    arguments,
    check,
    defaults,
    digits,
    draw,
    earlier,
    prepare,
    quality,
    run,
    save,
    settings,
    show,
)
from ddpm.config import Config
from ddpm.data.split import ImageSet
from ddpm.models.checkpoint import Checkpoint, flops_per_image, load_checkpoint
from ddpm.sampling.generator import Source, evaluations, fitting_batch, make_source
from ddpm.training.loop import Recipe, train
from ddpm.training.run_folder import RunFolder
from ddpm.utils.images import enlarge, tile, write_png
from ddpm.utils.runtime import Runtime, choose_runtime

TEXTBOOK: dict[str, Any] = {
    "diffusion.schedule": "linear",
    "diffusion.target": "eps",
    "train.optimizer": "adamw",
    "train.lr": 0.0002,
    "train.adam_beta2": 0.999,
    "train.warmup_steps": 0,
    "train.lr_decay": "none",
    "train.ema_decay": 0.0,
    "train.weighting": "none",
    "train.time_density": "uniform",
    "train.time_sampling": "uniform",
    "train.label_dropout": 0.0,
    "generate.guidance": 1.0,
    "generate.sampler": "ddpm",
    "generate.spacing": "even",
}
UNCONDITIONAL: dict[str, Any] = {"model.classes": 0, "generate.guidance": 1.0}
RECIPES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "default": (None, {}),
    "default, without labels": (None, UNCONDITIONAL),
    "default network, textbook training": (None, TEXTBOOK),
    "default network, textbook, no labels": (None, TEXTBOOK | UNCONDITIONAL),
    "small U-Net at 28 x 28": (None, {"model.patch_size": 1, "model.channel_multipliers": [1, 2, 2]} | UNCONDITIONAL),
    "predecessor's recipe, base 32": ("baseline", {"model.base_channels": 32}),
    "predecessor's recipe, base 64": ("baseline", {"model.base_channels": 64}),
}
# No validation or preview on the way: the time is for training.
QUIET = {"train.validate_every": 10**9, "train.preview_every": 0, "train.validation_images": 64}
PROBE_STEPS = 30


def fit(config: Config, training: ImageSet, validation: ImageSet, runtime: Runtime) -> tuple[Checkpoint, Any, Any]:
    """Train in a folder of its own; returns the last checkpoint, the results and the cost."""
    torch.compiler.reset()  # else a limit on compiled versions of one function leaves the last recipes eager, silently
    with TemporaryDirectory() as name, RunFolder(Path(name) / "out", Path(name) / "rescue") as folder:
        recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
        results, cost = train(recipe, training, validation, runtime, folder, math.inf)
        return load_checkpoint(folder.output / "last.safetensors"), results, cost


def train_for(
    seconds: float, preset: str | None, changes: dict[str, Any], runtime: Runtime
) -> tuple[Checkpoint, Any, Any]:
    """What `fit` returns for as many epochs as fill the time at the speed of a first few steps."""
    training, validation = digits()
    size = settings(changes, preset=preset).train.batch_size

    def trained(epochs: float) -> tuple[Checkpoint, Any, Any]:
        config = settings(changes, QUIET, {"train.epochs": epochs}, preset=preset)
        return fit(config, training, validation, runtime)

    _, _, cost = trained(PROBE_STEPS * size / len(training))
    return trained(max(seconds * cost["train_images_per_second"], size) / len(training))


def draw_for(
    seconds: float, images: int, checkpoint: Checkpoint, config: Config, runtime: Runtime
) -> tuple[Source, int]:
    """Where to draw from, with as many sampler steps as fill the time for so many images, and the batch to draw in."""
    network = prepare(checkpoint, runtime)
    batch = fitting_batch(images, runtime.device)

    def source(steps: int) -> tuple[Source, int]:
        chosen = config.generate.model_copy(update={"steps": steps})
        made = make_source(checkpoint, network, chosen, config.seed, runtime)
        return made, evaluations(chosen, made.schedule, checkpoint.model.classes)

    probe, nfe = source(2)
    draw(probe, batch, batch)
    started = time.perf_counter()
    draw(probe, batch, batch)
    batches = math.ceil(images / batch)
    allowed = seconds * nfe / (batches * (time.perf_counter() - started))
    fitting = [steps for steps in range(2, config.diffusion.timesteps + 1) if source(steps)[1] <= allowed]
    return source(max(fitting, default=2))[0], batch


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--train-seconds", type=float, default=480.0)
    parser.add_argument("--draw-seconds", type=float, default=60.0)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="a sheet of 100 digits of each recipe")
    asked = parser.parse_args()
    described = choose_runtime(settings().runtime, math.inf, trains=True).describe()
    facts = {key: getattr(asked, key) for key in ("train_seconds", "draw_seconds", "images")} | described | defaults()
    rows = earlier(asked.json, facts)
    known = {row["recipe"] for row in rows}
    check(asked.images)
    for name in [name for name in asked.recipes if name not in known]:
        tqdm.write(f"\n{name}")
        preset, changes = RECIPES[name]
        config = settings(changes, preset=preset)
        training = choose_runtime(config.runtime, math.inf, trains=True)
        checkpoint, results, cost = train_for(asked.train_seconds, preset, changes, training)
        drawing = choose_runtime(config.runtime, math.inf)
        source, batch = draw_for(asked.draw_seconds, asked.images, checkpoint, config, drawing)
        started = time.perf_counter()
        sheet = draw(source, asked.images, batch)
        seconds = time.perf_counter() - started
        found = quality(sheet, config.seed)
        rows.append(
            {
                "recipe": name,
                "mflop": flops_per_image(checkpoint.model, checkpoint.image_size) / 1e6,
                "train_s": cost["train_seconds"],
                "images_seen": results["images_seen"],
                "draw_s": seconds,
                "nfe": evaluations(source.config, source.schedule, checkpoint.model.classes),
                **found,
            }
        )
        save(rows, asked.json, facts)
        if asked.pictures:
            asked.pictures.mkdir(parents=True, exist_ok=True)
            slug = "".join(letter if letter.isalnum() else "_" for letter in name)
            write_png(asked.pictures / f"{slug}.png", enlarge(tile(sheet[:100], 10), 2))
        show(rows[-1:])
    show(rows)


if __name__ == "__main__":
    run(main)
