"""Bits per dimension of the test images under the model."""

from pathlib import Path

import torch

from ddpm.config import Config
from ddpm.data.image_set import read_image_set
from ddpm.diffusion.likelihood import Likelihood, bits_per_dimension
from ddpm.models.checkpoint import load_checkpoint
from ddpm.sampling.generator import make_denoiser
from ddpm.utils.files import significant, write_json
from ddpm.utils.processes import process_pool
from ddpm.utils.runtime import Runtime, choose_runtime, process_count
from ddpm.utils.seeds import numpy_generator
from stages.paths import EVALUATION, MODEL, SPLIT
from stages.runner import run


def open_likelihood(config: Config, runtime: Runtime, path: Path, number: int = 0) -> Likelihood:
    runtime, checkpoint = runtime.of_rank(number), load_checkpoint(path)
    random = numpy_generator(config.seed, "likelihood", "images")
    test = read_image_set(SPLIT / "test.npz").sample(config.likelihood.images, random)
    denoiser = make_denoiser(checkpoint, str(path), runtime)
    given = torch.from_numpy(test.images).to(runtime.device), checkpoint.conditioning.labels(test, runtime.device)
    schedule, times = denoiser.schedule, config.likelihood.times_per_image
    return Likelihood(denoiser.conditioned, *given, schedule, times, config.seed, denoiser.learned_variance)


def likelihood(config: Config) -> None:
    path, runtime = MODEL / f"{config.generate.checkpoint}.safetensors", choose_runtime(config.runtime, 1.0)
    found = open_likelihood(*(given := (config, runtime, path)))
    processes = process_count(config.runtime, runtime, found.batches, float("inf") if found.groups > 20 else 0.0)
    with process_pool(processes, open_likelihood, *given) as pool:
        bits = bits_per_dimension(found, load_checkpoint(path).conditioning.frequencies.flatten().tolist(), pool)
    write_json(EVALUATION / "likelihood.json", significant({"likelihood_images": len(found.images), **bits}))


if __name__ == "__main__":
    run(likelihood)
