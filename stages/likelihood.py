"""Bits per dimension of the test images under the model."""

import torch

from ddpm.config import Config
from ddpm.data.image_set import read_image_set
from ddpm.diffusion.likelihood import bits_per_dimension
from ddpm.models.checkpoint import load_checkpoint, restore_network
from ddpm.sampling.generator import make_denoiser
from ddpm.utils.files import significant, write_json
from ddpm.utils.runtime import choose_runtime
from stages.paths import EVALUATION, MODEL, SPLIT
from stages.runner import run


def likelihood(config: Config) -> None:
    path = MODEL / f"{config.generate.checkpoint}.safetensors"
    checkpoint = load_checkpoint(path)
    runtime = choose_runtime(config.runtime, 0.0)
    network = runtime.prepare(restore_network(checkpoint, str(path)), trains=False)
    denoiser = make_denoiser(checkpoint, network, runtime, clip=True)
    settings, frequencies = config.likelihood, checkpoint.class_frequencies
    test = read_image_set(SPLIT / "test.npz")
    parts = (part[: settings.images] for part in (test.images, test.labels))
    images, labels = (torch.from_numpy(part).to(runtime.device) for part in parts)
    known = (labels if frequencies else None, frequencies)
    found = bits_per_dimension(
        denoiser.conditioned, images, *known, denoiser.schedule, settings.times_per_image, config.seed
    )
    write_json(EVALUATION / "likelihood.json", significant({"likelihood_images": len(images), **found}))


if __name__ == "__main__":
    run(likelihood)
