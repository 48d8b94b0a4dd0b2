"""Train the network; a killed run goes on where it stopped."""

import hashlib
import os
from pathlib import Path

import torch

from ddpm.config import Config
from ddpm.data.split import read_image_set
from ddpm.files import sha256, write_json
from ddpm.model.checkpoint import flops_per_image
from ddpm.runtime import choose_runtime, peak_memory_bytes
from ddpm.training.loop import Recipe, train
from ddpm.training.run_folder import RunFolder
from stages import COST, MODEL, SPLIT, run

CODE = ("ddpm/diffusion", "ddpm/model", "ddpm/seeds.py", "ddpm/training")


def train_stage(config: Config) -> None:
    training, validation = read_image_set(SPLIT / "train.npz"), read_image_set(SPLIT / "validation.npz")
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    image_size = training.images.shape[-1]
    # A backward pass costs about two forward ones.
    flops = 3.0 * flops_per_image(config.model, image_size) * recipe.steps(len(training)) * config.train.batch_size
    runtime = choose_runtime(config.runtime, flops, trains=True)
    chosen = runtime.describe()
    print(
        f"training on {chosen['device']}, {chosen['precision']}, {'compiled' if runtime.compiled else 'not compiled'}"
    )
    rescue = Path(os.environ.get("DDPM_CKPT_DIR", ".ckpt")) / fingerprint(config, runtime.device)
    with RunFolder(MODEL, rescue) as folder:
        results, cost = train(recipe, training, validation, runtime, folder, config.runtime.checkpoint_every_seconds)
        write_json(MODEL / "results.json", results)
        write_json(
            COST / "train.json",
            cost | {"train_peak_memory_mib": peak_memory_bytes(runtime) / 2**20} | chosen,
        )
        folder.discard()


def fingerprint(config: Config, device: torch.device) -> str:
    """Names the run by all that decides its outcome: parameters, images, code and the kind of device."""
    code = sorted(path for name in CODE for path in (Path(name), *Path(name).rglob("*.py")) if path.is_file())
    sections = config.model_dump_json(include={"seed", "model", "diffusion", "train"})
    files = sha256(*code, SPLIT / "train.npz", SPLIT / "validation.npz")
    return hashlib.sha256(f"{sections}{files}{device.type}".encode()).hexdigest()[:16]


if __name__ == "__main__":
    run(train_stage)
