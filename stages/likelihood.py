"""Bits per dimension of the test images under the model."""

import numpy as np
import torch

from ddpm.config import Config
from ddpm.data.image_set import read_image_set
from ddpm.diffusion.likelihood import bits_per_dimension
from ddpm.models.checkpoint import load_checkpoint
from ddpm.sampling.generator import make_denoiser
from ddpm.utils.files import significant, write_json
from ddpm.utils.runtime import choose_runtime
from stages.paths import EVALUATION, MODEL, SPLIT
from stages.runner import run


def likelihood(config: Config) -> None:
    path = MODEL / f"{config.generate.checkpoint}.safetensors"
    checkpoint = load_checkpoint(path)
    runtime = choose_runtime(config.runtime, 0.0)
    denoiser = make_denoiser(checkpoint, str(path), runtime, clip=True)
    settings, conditioning = config.likelihood, checkpoint.conditioning
    test = read_image_set(SPLIT / "test.npz")
    test = test.take(np.arange(min(settings.images, len(test))))
    images, labels = torch.from_numpy(test.images).to(runtime.device), conditioning.labels(test, runtime.device)
    known = (labels, conditioning.frequencies.flatten().tolist())
    found = bits_per_dimension(
        denoiser.conditioned, images, *known, denoiser.schedule, settings.times_per_image, config.seed
    )
    write_json(EVALUATION / "likelihood.json", significant({"likelihood_images": len(images), **found}))


if __name__ == "__main__":
    run(likelihood)
