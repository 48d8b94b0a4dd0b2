"""All that a training run carries from one step to the next, and how it is saved and restored."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.config import DiffusionConfig, ModelConfig, TrainConfig
from ddpm.data.image_set import ImageSet
from ddpm.models.build import build_network, conditioning_classes, fit_to_images, flops_per_image
from ddpm.models.checkpoint import Checkpoint, load_checkpoint
from ddpm.models.conditioning import fit_conditioning
from ddpm.training.ema import LENGTHS, Ema, PowerEma
from ddpm.training.loss_aware import LossAware
from ddpm.training.optimizers import Optimizer
from ddpm.training.run_folder import RunFolder
from ddpm.utils.errors import DdpmError
from ddpm.utils.resume import restarting
from ddpm.utils.runtime import Runtime, one_thread
from ddpm.utils.seeds import torch_generator

_LEGIBLE_STEPS = 2000  # about as many as the default takes on MNIST


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run, beside the images."""

    model: ModelConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    seed: int

    def steps_per_epoch(self, images: int) -> int:
        """Optimizer steps for so many training images; the incomplete batch is left out of every epoch.

        Raises DdpmError when the images do not fill one batch.
        """
        if images < self.train.batch_size:
            raise DdpmError(f"train.batch_size={self.train.batch_size} exceeds the {images} training images: lower it.")
        return images // self.train.batch_size

    def steps(self, images: int) -> int:
        """Optimizer steps of the whole run."""
        return max(1, math.ceil(self.train.epochs * self.steps_per_epoch(images)))

    def remarks(self, images: int, processes: int) -> Iterator[str]:
        """What the user would rather know at the beginning of a run on so many training images than at its end."""
        steps, warmup, idle = self.steps(images), self.train.warmup_steps, processes - self.train.shards
        if steps <= warmup:
            per_epoch = self.steps_per_epoch(images)
            enough = math.ceil(_LEGIBLE_STEPS / per_epoch)
            yield (
                f"train.epochs={self.train.epochs:g} are {steps} steps, of which {warmup} are train.warmup_steps: the "
                f"network will hardly learn these {images} images. train.epochs={enough} are {enough * per_epoch}."
            )
        if idle > 0:
            yield (
                f"train.shards={self.train.shards} leaves {idle} of {processes} processes idle: start fewer, or raise "
                "it."
            )

    def flops(self, training: ImageSet) -> float:
        """Floating-point operations of the whole run; a backward pass costs about two forward ones."""
        images = self.steps(len(training)) * self.train.batch_size
        return 3.0 * images * flops_per_image(self.model, training.spec)

    def guide_step(self, images: int) -> int:
        """The step after which the average is kept as the guide of autoguidance; 0 for never."""
        return math.ceil(self.train.guide_fraction * self.steps(images))

    def keeps_snapshot(self, step: int, images: int) -> bool:
        """Whether the averages of `LENGTHS` are kept after that step: at the ends of so many equal parts of the run."""
        parts, total = self.train.posthoc_snapshots, self.steps(images)
        return step * parts // total > (step - 1) * parts // total


class TrainState:
    """network, ema, optimizer: at work. conditioning: on what labels. powers: the averages of `LENGTHS`, where wanted.

    history: plain JSON values: step, best_step, best_val_loss, seconds, and the rows of the curves, log, val, distance.
    sums: float32 [2], loss and gradient norm added up since the last row. guide: the average as it was at the guide's
    step, by parameter name; empty before. times: the losses by time, for a density that follows them; None for another.
    """

    def __init__(self, recipe: Recipe, training: ImageSet, runtime: Runtime) -> None:
        self.spec, self.device = training.spec, runtime.device
        classes = conditioning_classes(recipe.model, self.spec)
        fewest = int(np.bincount(training.labels, minlength=classes).min()) if classes else len(training)
        recipe = self.recipe = replace(recipe, model=fit_to_images(recipe.model, self.spec, fewest))
        self.conditioning = fit_conditioning(training, classes, int(recipe.model.clusters), recipe.seed)
        torch.manual_seed(torch_generator(recipe.seed, "weights").initial_seed())
        network = build_network(recipe.model, self.spec)
        if isinstance(embedding := getattr(network, "label_embedding", None), nn.Embedding):
            with one_thread(embedding.weight.device):  # the same bits whatever the number of cores
                self.conditioning.spread(embedding.weight)
        self.network = runtime.prepare(network).train()
        self.optimizer = Optimizer(recipe.train.optimizer, self.network, recipe.train, runtime.precision)
        self.ema = Ema(self.network, recipe.train.ema_decay)
        lengths = LENGTHS if recipe.train.posthoc_snapshots else ()
        self.powers = {f"power_{length}": PowerEma(self.network, length) for length in lengths}
        self.guide: dict[str, Tensor] = {}
        self.times: LossAware | None = None
        self.sums = torch.zeros(2, device=self.device)
        self.history: dict[str, Any] = {
            "step": 0, "best_step": 0, "best_val_loss": math.inf, "seconds": 0.0, "log": [], "val": [], "distance": []
        }  # fmt: skip

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.history["step"])

    def average(self) -> None:
        """Move every average towards the network's weights."""
        for average in (self.ema, *self.powers.values()):
            average.update()

    def advance(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Count a step with its loss and gradient norm."""
        self.sums += torch.stack([loss.detach(), grad_norm])
        self.history["step"] += 1

    def keep_guide(self) -> None:
        """Keep the average of this moment as the guide."""
        self.guide = _copies(self.ema.state_dict())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network with its averaged weights, inside, and in evaluation mode."""
        self.ema.swap()
        self.network.eval()
        yield
        self.network.train()
        self.ema.swap()

    def checkpoint(self, metadata: dict[str, Any], *, resumable: bool) -> Checkpoint:
        """A checkpoint of this moment: what sampling needs, and where ``resumable`` all that training does to go on."""
        tensors: dict[str, dict[str, Tensor]] = {"ema": _copies(self.ema.state_dict()), "guide": self.guide}
        if resumable:
            tensors |= self._powers() | {
                "weights": dict(self.network.named_parameters()),
                "optimizer": self.optimizer.state_dict(),
                "sums": {"sums": self.sums},
            }
            if self.times:
                tensors["times"] = self.times.state_dict()
        recipe = self.recipe
        return Checkpoint(recipe.model, recipe.diffusion, self.spec, self.conditioning, metadata, tensors)

    def snapshot(self) -> Checkpoint:
        """The averages of `LENGTHS` at this moment: what `ddpm.training.posthoc` needs."""
        recipe, metadata = self.recipe, {"step": self.step, "seed": self.recipe.seed}
        return Checkpoint(recipe.model, recipe.diffusion, self.spec, self.conditioning, metadata, self._powers())

    def _powers(self) -> dict[str, dict[str, Tensor]]:
        return {name: average.state_dict() for name, average in self.powers.items()}

    def restore(self, folder: RunFolder, total: int) -> list[str]:
        """Continue from the state that a killed run left in ``folder``, if there is one. Returns what to say of it.

        total: steps of the whole run. Raises DdpmError for a damaged state.
        """
        if not folder.state.exists():
            return []
        with restarting(folder.folder):
            saved = load_checkpoint(folder.state, self.device)
        self.history = saved.metadata
        self.network.load_state_dict(saved.tensors["weights"])
        for name, average in {"ema": self.ema, **self.powers}.items():
            average.load_state_dict(saved.tensors[name], self.step)
        self.guide = saved.tensors.get("guide", {})
        self.optimizer.load_state_dict(saved.tensors["optimizer"])
        if self.times:
            self.times.load_state_dict(saved.tensors["times"])
        self.sums.copy_(saved.tensors["sums"]["sums"])
        return [f"resuming from step {self.step} of {total}, saved in {folder.folder}"]


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def image_tensor(images: ImageSet, device: torch.device) -> Tensor:
    """All images as one uint8 tensor [n, c, h, w] on the device."""
    return torch.from_numpy(images.images).to(device)
