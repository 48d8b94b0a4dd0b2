"""Image numbers in, images out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.config import GenerateConfig
from ddpm.data.image_set import ImageSpec
from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.guidance import UNGUIDED, Guidance
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.process import TARGETS
from ddpm.diffusion.samplers import SAMPLERS, OnStep, Sampler, evaluated_times
from ddpm.diffusion.schedule import SPACINGS, Schedule, build_schedule, respace
from ddpm.models.checkpoint import Checkpoint
from ddpm.sampling.labels import balanced_labels
from ddpm.utils.errors import DdpmError
from ddpm.utils.runtime import Runtime


@dataclass(frozen=True)
class Generator:
    """The images of one model, by number.

    denoiser: of the network, not yet conditioned. class_frequencies: how often the network met each class label in
    training; empty for an unconditional one. Image number i (from 1) is decided by ``seed``, ``config.replicate`` and i
    alone, whatever is sampled beside it, up to the rounding of the network's matrix products.
    """

    denoiser: Denoiser
    class_frequencies: Sequence[float]
    config: GenerateConfig
    spec: ImageSpec
    seed: int
    device: torch.device

    def changed(self, **settings: Any) -> "Generator":  # noqa: ANN401
        """The same model with other settings of the section `generate`."""
        return replace(self, config=self.config.model_copy(update=settings))

    @property
    def steps(self) -> Schedule:
        """The steps of the sampling run: the training's schedule, respaced. Raises DdpmError where it has fewer."""
        schedule, count = self.denoiser.schedule, self.config.steps
        if count > len(schedule):
            raise DdpmError(f"generate.steps={count} exceeds the {len(schedule)} timesteps of the checkpoint.")
        return respace(schedule, SPACINGS[self.config.spacing](schedule, count))

    @property
    def sampler(self) -> Sampler:
        """The sampler that the settings name."""
        sampler: Sampler = SAMPLERS.build(self.config.sampler, self.config)
        return sampler

    @property
    def nfe(self) -> int:
        """Network evaluations per image, the second one of guidance included."""
        times = evaluated_times(self.sampler, self.steps)
        guided = self.denoiser.guidance.is_active(self.denoiser.schedule.alpha_bar[times]).sum()
        return len(times) + (int(guided) if self.class_frequencies else 0)

    def labels(self, numbers: Sequence[int]) -> np.ndarray | None:
        """The class label of each image, int64 [n], by ``config.classes``; None for an unconditional network.

        Raises DdpmError for labels that the network does not know.
        """
        count, wanted = len(self.class_frequencies), self.config.classes
        if wanted == "all":
            return balanced_labels(numbers, self.class_frequencies) if count else None
        if not count:
            raise DdpmError(f"generate.classes={list(wanted)}, but this network is unconditional: set it to all.")
        if max(wanted) >= count:
            raise DdpmError(f"generate.classes={list(wanted)}: the network knows the class labels 0 to {count - 1}.")
        return balanced_labels(numbers, [float(label in wanted) for label in range(count)])

    @torch.inference_mode()
    def sample(self, numbers: Sequence[int], on_step: OnStep | None = None) -> Tensor:
        """The images of these numbers: float32 [n, c, h, w] around [-1, 1]."""
        noise = ImageNoise(self.seed, self.config.replicate, numbers, self.spec.shape, self.device)
        labels = self.labels(numbers)
        denoiser = self.denoiser.conditioned(None if labels is None else torch.from_numpy(labels).to(self.device))
        return self.sampler(denoiser, noise(), self.steps, noise, on_step)


def make_generator(
    checkpoint: Checkpoint, network: nn.Module, config: GenerateConfig, seed: int, runtime: Runtime
) -> Generator:
    """The generator of images from ``network``, restored from ``checkpoint`` and ready on the runtime's device."""
    guidance = Guidance(config.guidance, config.guidance_interval)
    denoiser = make_denoiser(checkpoint, network, runtime, clip=config.clip, guidance=guidance)
    return Generator(denoiser, checkpoint.class_frequencies, config, checkpoint.spec, seed, runtime.device)


def make_denoiser(
    checkpoint: Checkpoint, network: nn.Module, runtime: Runtime, *, clip: bool, guidance: Guidance = UNGUIDED
) -> Denoiser:
    """The denoiser of a restored network, not conditioned on labels yet."""
    schedule, target = build_schedule(checkpoint.diffusion), TARGETS[checkpoint.diffusion.target]
    return Denoiser(runtime.predictor(network), target, schedule, clip, guidance)
