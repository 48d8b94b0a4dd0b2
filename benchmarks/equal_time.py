"""The same seconds of training and of sampling for every recipe: `python -m benchmarks.equal_time --help`.

Each recipe is first trained for a few steps and samples one batch; from the speed found, its epochs and sampler steps
are chosen to fill the time allowed. These first steps also fill the compiler's cache, so compiling (half a minute for
each recipe) is not counted. Quality is measured as the `fid` stage does. With --json, recipes that the file has already
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
    earlier,
    prepare,
    quality,
    run,
    sample,
    save,
    settings,
    show,
    split,
)
from ddpm.config import Config
from ddpm.data.image_set import ImageSet
from ddpm.models.build import flops_per_image
from ddpm.models.checkpoint import Checkpoint, load_checkpoint
from ddpm.sampling.batches import fitting_batch
from ddpm.sampling.generator import Generator, make_generator
from ddpm.training.loop import train
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
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
    "train.weighting": "simple",
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
    with TemporaryDirectory() as name, RunFolder(Path(name) / "out", Path(name) / "kept") as folder:
        recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
        results, cost = train(recipe, training, validation, runtime, folder, math.inf)
        return load_checkpoint(folder.output / "last.safetensors"), results, cost


def train_for(
    seconds: float, preset: str | None, changes: dict[str, Any], runtime: Runtime
) -> tuple[Checkpoint, Any, Any]:
    """What `fit` returns for as many epochs as fill the time at the speed of a first few steps."""
    training, validation = split()
    size = settings(changes, preset=preset).train.batch_size

    def trained(epochs: float) -> tuple[Checkpoint, Any, Any]:
        config = settings(changes, QUIET, {"train.epochs": epochs}, preset=preset)
        return fit(config, training, validation, runtime)

    _, _, cost = trained(PROBE_STEPS * size / len(training))
    return trained(max(seconds * cost["train_images_per_second"], size) / len(training))


def generator_for(
    seconds: float, images: int, checkpoint: Checkpoint, config: Config, runtime: Runtime
) -> tuple[Generator, int]:
    """What to sample from, with as many sampler steps as fill the time for so many images, and the size of a batch."""
    generator = make_generator(checkpoint, prepare(checkpoint, runtime), config.generate, config.seed, runtime)
    batch, probe = fitting_batch(images, runtime.device), generator.changed(steps=2)
    sample(probe, batch, batch)
    started = time.perf_counter()
    sample(probe, batch, batch)
    batches = math.ceil(images / batch)
    allowed = seconds * probe.nfe / (batches * (time.perf_counter() - started))
    fitting = (
        steps for steps in range(2, config.diffusion.timesteps + 1) if generator.changed(steps=steps).nfe <= allowed
    )
    return generator.changed(steps=max(fitting, default=2)), batch


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--train-seconds", type=float, default=480.0)
    parser.add_argument("--sample-seconds", type=float, default=60.0)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="a sheet of 100 images of each recipe")
    given = parser.parse_args()
    described = choose_runtime(settings().runtime, math.inf, trains=True).describe()
    metadata = {key: getattr(given, key) for key in ("train_seconds", "sample_seconds", "images")}
    metadata |= described | defaults()
    rows = earlier(given.json, metadata)
    known = {row["recipe"] for row in rows}
    check(given.images)
    for name in [name for name in given.recipes if name not in known]:
        tqdm.write(f"\n{name}")
        preset, changes = RECIPES[name]
        config = settings(changes, preset=preset)
        training = choose_runtime(config.runtime, math.inf, trains=True)
        checkpoint, results, cost = train_for(given.train_seconds, preset, changes, training)
        sampling = choose_runtime(config.runtime, math.inf)
        generator, batch = generator_for(given.sample_seconds, given.images, checkpoint, config, sampling)
        started = time.perf_counter()
        images = sample(generator, given.images, batch)
        seconds = time.perf_counter() - started
        rows.append(
            {
                "recipe": name,
                "mflop": flops_per_image(checkpoint.model, checkpoint.spec) / 1e6,
                "train_s": cost["train_seconds"],
                "images_seen": results["images_seen"],
                "sample_s": seconds,
                "nfe": generator.nfe,
                **quality(images),
            }
        )
        save(rows, given.json, metadata)
        if given.pictures:
            given.pictures.mkdir(parents=True, exist_ok=True)
            slug = "".join(letter if letter.isalnum() else "_" for letter in name)
            write_png(given.pictures / f"{slug}.png", enlarge(tile(images[:100], 10), 2))
        show(rows[-1:])
    show(rows)


if __name__ == "__main__":
    run(main)
