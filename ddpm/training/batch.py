"""What a training step is computed from: which images, at what times, with what noise and labels.

All of it is a function of the seed and the step, and so the same on every rank and after every interruption.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion.noise import normal_noise
from ddpm.diffusion.objective import Objective
from ddpm.models.networks import NULL_LABEL
from ddpm.training.state import Recipe
from ddpm.utils.devices import to_device
from ddpm.utils.seeds import stream_number, torch_generator


@dataclass(frozen=True)
class Batch:
    """Of one step. images: uint8 [n, c, h, w]. t: int64 [n].

    labels: int64 [n], some of them the null label; None for a network without. known: bool [n], the images of which a
    network with self-conditioning sees its x̂_0; None for a network without.
    """

    recipe: Recipe
    step: int
    images: Tensor
    t: Tensor
    labels: Tensor | None
    known: Tensor | None

    def part(self, shard: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Images, times, noise, labels and known of one shard, as `Objective.squared_errors` takes them.

        Seeds the global stream, which dropout uses, for it.
        """
        train, seed = self.recipe.train, self.recipe.seed
        if self.recipe.model.dropout:
            torch.manual_seed(torch_generator(seed, "train", "dropout", self.step, shard).initial_seed())
        size = train.batch_size // train.shards
        part = slice(shard * size, (shard + 1) * size)
        labels, known = (None if values is None else values[part] for values in (self.labels, self.known))
        return self.images[part], self.t[part], self.noise(range(part.start, part.stop)), labels, known

    def noise(self, places: range) -> Tensor:
        """The noise eps at these places of the batch: float32 [n, c, h, w].

        Offset noise is added where there is any, one value for all pixels of a channel (Guttenberg 2023, "Diffusion
        with Offset Noise").
        """
        there = torch.arange(places.start, places.stop, device=self.images.device)
        shape, seed = self.images.shape[1:], self.recipe.seed
        eps = normal_noise(seed, stream_number("train", "eps"), self.step, there, shape)
        if strength := self.recipe.train.offset_noise:
            stream = stream_number("train", "offset")
            eps = eps + strength * normal_noise(seed, stream, self.step, there, (shape[0], 1, 1))
        return eps


class Batches:
    """The batches of a run. images: uint8 [n, c, h, w]. labels: int64 [n], None for a network without; on the device.

    An epoch takes the images in a random order; the incomplete batch at its end is left out.
    """

    def __init__(self, recipe: Recipe, images: Tensor, labels: Tensor | None) -> None:
        self._recipe, self._images, self._labels = recipe, images, labels
        self._epoch, self._order = -1, torch.empty(0)

    def __call__(self, step: int, objective: Objective) -> Batch:
        """The batch of a step, its times of the objective's density."""
        recipe, device = self._recipe, self._images.device
        count = recipe.train.batch_size
        epoch, position = divmod(step, recipe.steps_per_epoch(len(self._images)))
        if epoch != self._epoch:
            order = torch.randperm(len(self._images), generator=torch_generator(recipe.seed, "train", "order", epoch))
            self._epoch, self._order = epoch, to_device(order, device)
        chosen = self._order[position * count : (position + 1) * count]
        t = objective.sample_times(count, torch_generator(recipe.seed, "train", "t", step))
        labels = known = None
        if self._labels is not None:
            dropped = self._chance(step, "labels") < recipe.train.label_dropout
            labels = self._labels[chosen].masked_fill(to_device(dropped, device), NULL_LABEL)
        if recipe.model.self_conditioning:
            # Every second image at random: Chen et al. 2023, "Analog Bits".
            known = to_device(self._chance(step, "self_conditioning") < 0.5, device)
        return Batch(recipe, step, self._images[chosen], t, labels, known)

    def _chance(self, step: int, purpose: str) -> Tensor:
        """Uniform numbers in [0, 1), one for each image of the batch: float32 [n]."""
        generator = torch_generator(self._recipe.seed, "train", purpose, step)
        return torch.rand(self._recipe.train.batch_size, generator=generator)
