"""How likely the model holds the test digits to be."""

from functools import partial

import torch

from ddpm.config import Config
from ddpm.data.split import read_image_set
from ddpm.files import write_json
from ddpm.likelihood import bits_per_dimension
from ddpm.model.checkpoint import build_schedule, load_checkpoint, restore_network
from ddpm.model.denoiser import EVERYWHERE, make_denoiser
from ddpm.runtime import choose_runtime
from stages import METRICS, MODEL, SPLIT, run


def likelihood(config: Config) -> None:
    path = MODEL / f"{config.generate.checkpoint}.safetensors"
    checkpoint = load_checkpoint(path)
    runtime = choose_runtime(config.runtime, 0.0)
    network = runtime.prepare(restore_network(checkpoint, str(path)), trains=False)
    schedule = build_schedule(checkpoint.diffusion)
    test = read_image_set(SPLIT / "test.npz")
    count = config.likelihood.images
    images, labels = (torch.from_numpy(part[:count]).to(runtime.device) for part in (test.images, test.labels))
    denoiser = partial(make_denoiser, network, checkpoint.diffusion, schedule, runtime, True, 1.0, EVERYWHERE)
    found = bits_per_dimension(
        denoiser,
        images,
        labels.long() if checkpoint.model.classes else None,
        checkpoint.class_shares,
        schedule,
        config.likelihood.times_per_image,
        config.seed,
    )
    write_json(METRICS / "likelihood.json", {"likelihood_images": len(images), **found})


if __name__ == "__main__":
    run(likelihood)
