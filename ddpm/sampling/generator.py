"""Image numbers in, images out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.config import GenerateConfig
from ddpm.data.image_set import ImageSpec
from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.guidance import Guidance
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.objective import Predict
from ddpm.diffusion.process import TARGETS
from ddpm.diffusion.samplers import SAMPLERS, OnStep, Sampler, evaluated_times
from ddpm.diffusion.schedule import Schedule, build_schedule, spaced
from ddpm.models.checkpoint import Checkpoint, load_checkpoint, restore_network
from ddpm.models.conditioning import Conditioning
from ddpm.sampling.labels import balanced_labels, class_number, known_classes
from ddpm.utils.errors import DdpmError
from ddpm.utils.runtime import Runtime


@dataclass(frozen=True)
class Generator:
    """The images of one model, by number.

    denoiser: of the network, not yet conditioned or guided. conditioning: the labels that it knows. null_label: whether
    it was trained with the null label, too. Image number i (from 1) is decided by ``seed``, ``config.replicate`` and i
    alone, whatever is sampled beside it, up to the rounding of the network's matrix products.
    """

    denoiser: Denoiser
    conditioning: Conditioning
    config: GenerateConfig
    spec: ImageSpec
    seed: int
    device: torch.device
    null_label: bool = True

    def changed(self, **settings: Any) -> "Generator":  # noqa: ANN401
        """The same model with other settings of the section `generate`."""
        return replace(self, config=self.config.model_copy(update=settings))

    @property
    def steps(self) -> Schedule:
        """The steps of the sampling run: the training's schedule, respaced. Raises DdpmError where it has fewer."""
        return spaced(self.denoiser.schedule, self.config.steps, self.config.spacing)

    @property
    def sampler(self) -> Sampler:
        """The sampler that the settings name. Raises DdpmError for a variance that the network has not learned."""
        if self.config.variance == "learned" and not self.denoiser.learned_variance:
            raise DdpmError(
                "generate.variance=learned, but this network predicts no variance: set it to small, large or a "
                "fraction, or train with model.learned_variance=true."
            )
        sampler: Sampler = SAMPLERS.build(self.config.sampler, self.config)
        return sampler

    @property
    def guided(self) -> Denoiser:
        """The denoiser with clipping and guidance as set. Raises DdpmError for what the checkpoint has nothing for."""
        config = self.config
        if config.guidance != 1.0:
            self.needs_null_label(f"generate.guidance={config.guidance}", "set it to 1")
        if config.autoguidance != 1.0 and self.denoiser.guide is None:
            raise DdpmError(
                f"generate.autoguidance={config.autoguidance} needs a guide, which this checkpoint does not hold: set "
                "it to 1, take a later one (generate.checkpoint=last), or train with train.guide_fraction above 0."
            )
        towards_label = Guidance(config.guidance, config.guidance_interval)
        away_from_guide = Guidance(config.autoguidance, config.autoguidance_interval)
        return replace(
            self.denoiser,
            clip=config.clip,
            guidance=towards_label,
            autoguidance=away_from_guide,
            rescale=config.guidance_rescale,
        )

    def needs_null_label(self, what: str, instead: str) -> None:
        """Raise DdpmError where this network was not trained with the null label, which ``what`` needs."""
        if self.conditioning.count and not self.null_label:
            raise DdpmError(
                f"{what}: this network was not trained with the null label: {instead}, or train one with "
                "train.label_dropout above 0."
            )

    @property
    def output_size(self) -> int:
        """Pixels a side of the images that are written."""
        return self.spec.size if self.config.output_size == "auto" else self.config.output_size

    @property
    def nfe(self) -> int:
        """Network evaluations per image, those of guidance included."""
        return self.guided.nfe(evaluated_times(self.sampler, self.steps), labelled=bool(self.conditioning.count))

    def labels(self, numbers: Sequence[int]) -> np.ndarray | None:
        """The conditioning label of each image, int64 [n], by ``config.classes``; None for a network that knows none.

        Raises DdpmError for class labels that the network does not know.
        """
        classes = self._classes()
        if not self.conditioning.count:
            return None
        return balanced_labels(numbers, self.conditioning.weights(classes))

    def _classes(self) -> list[int] | None:
        """The class labels that ``config.classes`` names, see `class_number`; None for all. Raises DdpmError."""
        count, wanted, names = self.conditioning.classes, self.config.classes, self.spec.class_names
        if wanted == "all":
            return None
        given = f"generate.classes=[{', '.join(map(str, wanted))}]"
        if not count:
            raise DdpmError(f"{given}, but this network knows no class labels: set it to all.")
        labels = [class_number(label, names) for label in wanted]
        found = [label for label in labels if label is not None]
        if len(found) < len(labels):
            raise DdpmError(f"{given}: the network knows {known_classes(names or tuple(map(str, range(count))))}.")
        return found

    def class_labels(self, numbers: Sequence[int]) -> np.ndarray | None:
        """The class label of each image, int64 [n]; None for a network that is given no class labels."""
        labels = self.labels(numbers)
        return None if labels is None else self.conditioning.class_labels(labels)

    def label_table(self, numbers: Sequence[int]) -> tuple[Sequence[str], list[tuple[int, ...]]]:
        """Names of the columns, and a row an image: its number, class label and cluster of that class, where given.

        No rows for a network that is given neither.
        """
        labels, known = self.labels(numbers), self.conditioning
        if labels is None:
            return ("image", "label"), []
        given = {"label": known.class_labels(labels), "cluster": known.cluster_labels(labels)}
        columns = {"image": list(numbers)} | {name: part.tolist() for name, part in given.items() if part is not None}
        return tuple(columns), list(zip(*columns.values(), strict=True))

    @torch.inference_mode()
    def sample(self, numbers: Sequence[int], on_step: OnStep | None = None) -> Tensor:
        """The images of these numbers: float32 [n, c, h, w] around [-1, 1]."""
        noise = ImageNoise(self.seed, self.config.replicate, numbers, self.spec.shape, self.device)
        labels = self.labels(numbers)
        denoiser = self.guided.conditioned(None if labels is None else torch.from_numpy(labels).to(self.device))
        return self.sampler(denoiser.remembering(), noise(), self.steps, noise, on_step)


def make_generator(checkpoint: Checkpoint, name: str, config: GenerateConfig, seed: int, runtime: Runtime) -> Generator:
    """The generator of images from a checkpoint, which messages call ``name``, ready on the runtime's device.

    Raises what `restore_network` does.
    """
    denoiser = make_denoiser(checkpoint, name, runtime)
    if checkpoint.tensors.get("guide"):
        denoiser = replace(denoiser, guide=_predictor(checkpoint, "guide", name, runtime))
    facts = checkpoint.conditioning, config, checkpoint.spec, seed, runtime.device, checkpoint.null_label
    return Generator(denoiser, *facts)


def restore_generator(path: Path, config: GenerateConfig, seed: int, runtime: Runtime, number: int = 0) -> Generator:
    """The generator of a checkpoint file, in process number ``number``, which computes in one thread on a CPU.

    However many such processes share the images, those have the same bits.
    """
    return make_generator(load_checkpoint(path), str(path), config, seed, runtime.of_rank(number))


def make_denoiser(checkpoint: Checkpoint, name: str, runtime: Runtime) -> Denoiser:
    """The denoiser of a checkpoint's averaged weights, clipped, without guidance, not conditioned on labels yet."""
    schedule, target = build_schedule(checkpoint.diffusion), TARGETS[checkpoint.diffusion.target]
    return Denoiser(
        _predictor(checkpoint, "ema", name, runtime),
        target,
        schedule,
        clip=True,
        learned_variance=checkpoint.model.learned_variance,
        self_conditioning=checkpoint.model.self_conditioning,
    )


def _predictor(checkpoint: Checkpoint, weights: str, name: str, runtime: Runtime) -> Predict:
    network = restore_network(checkpoint, name, weights)
    return runtime.predictor(runtime.compile(runtime.prepare(network)))
