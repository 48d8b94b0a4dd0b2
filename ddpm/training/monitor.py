"""What a training run shows and stores as it goes: log rows, validation, preview grids, checkpoints, timings."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.data.image_set import ImageSet, denormalize
from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.objective import Objective
from ddpm.diffusion.samplers import ddpm
from ddpm.diffusion.schedule import build_schedule, spaced
from ddpm.models.build import flops_per_image
from ddpm.models.checkpoint import save_checkpoint
from ddpm.training.ranks import Ranks, Stopped
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import TrainState, image_tensor
from ddpm.training.validation import FixedGrid
from ddpm.utils.errors import DdpmError
from ddpm.utils.images import enlarge, tile, write_png
from ddpm.utils.runtime import Runtime, peak_memory_bytes
from ddpm.utils.seeds import torch_generator

PREVIEW_COLUMNS = 8


class Monitor:
    """Watches a `TrainState`; writes best.safetensors, last.safetensors, log.csv, validation.csv, previews, posthoc.

    squared_errors: the compiled (images, t, eps, labels) -> errors of the network in training, see `Objective`.
    distance: of samples, uint8 [n, c, h, w], from the training images, for previews/distance.csv; None: not measured.
    """

    def __init__(
        self,
        state: TrainState,
        objective: Objective,
        squared_errors: Callable[..., Tensor],
        training_images: int,
        validation: ImageSet,
        runtime: Runtime,
        folder: RunFolder,
        ranks: Ranks,
        distance: Callable[[np.ndarray], float] | None = None,
    ) -> None:
        config = state.recipe.train
        self.distance, self.distance_every = distance, config.distance_every if distance else 0
        self.state, self.objective, self.squared_errors = state, objective, squared_errors
        self.config, self.runtime, self.folder, self.ranks = config, runtime, folder, ranks
        self.total = state.recipe.steps(training_images)
        self.keeps_snapshot = partial(state.recipe.keeps_snapshot, images=training_images)
        self.per_epoch = state.recipe.steps_per_epoch(training_images)
        labels = state.conditioning.labels(validation, runtime.device)
        self.schedule = build_schedule(state.recipe.diffusion)
        images = image_tensor(validation, runtime.device)
        self.grid = FixedGrid(images, labels, len(self.schedule), config.validation_images, state.recipe.seed)
        self.keep_every = config.keep_every_epochs * self.per_epoch
        self.first_step, self.began, self.first_done = state.step, time.perf_counter(), 0.0
        self.started = self.began - state.history["seconds"]
        self.saved_at, self.overhead = self.began, 0.0
        self.progress = tqdm(
            total=self.total * config.batch_size,
            initial=state.step * config.batch_size,
            unit="image",
            desc="train",
            smoothing=0.05,
            disable=ranks.rank > 0,
        )

    def after_step(self, lr: float, save_every_seconds: float, *, stop: bool) -> None:
        """Do whatever is due after the step that was just taken, of learning rate ``lr``.

        Raises DdpmError when the loss is no longer finite, `Stopped` after saving where ``stop`` is true.
        """
        step, last = self.state.step, self.state.step == self.total
        self.progress.update(self.config.batch_size)
        if not self.first_done:
            self.runtime.synchronize()
            self.first_done = time.perf_counter()

        def due(every: int) -> bool:
            return bool(every) and (step % every == 0 or last)

        config, pause = self.config, time.perf_counter()
        saves = not last and (stop or pause - self.saved_at > save_every_seconds)
        keeps = self.keep_every > 0 and step % self.keep_every == 0
        snapshot = self.keeps_snapshot(step)
        shown = config.log_every, config.validate_every, config.preview_every, self.distance_every
        if saves or keeps or snapshot or any(map(due, shown)):
            # The device's work up to here is the network's; what follows is not.
            self.runtime.synchronize()
            pause = time.perf_counter()
            self.refuse_non_finite()
        if due(config.log_every):
            self.log(lr)
        if due(config.validate_every):
            self.validate()
        if due(config.preview_every) and not self.ranks.rank:
            self.preview()
        if due(self.distance_every):
            self.measure()
        if keeps:
            self.save(f"epoch_{step // self.per_epoch:04d}", {})
        if snapshot:
            writer = partial(save_checkpoint, checkpoint=self.state.snapshot())
            self.folder.write(f"posthoc/step_{step:06d}.safetensors", writer)
        if saves:
            self.state.history["seconds"] = time.perf_counter() - self.started
            self.folder.save_state(partial(self.write_checkpoint, self.state.history, resumable=True))
            self.saved_at = time.perf_counter()
            if stop:
                raise Stopped(f"stopped at step {step} of {self.total}; the next `dvc repro` resumes there.")
        self.overhead += time.perf_counter() - pause

    def refuse_non_finite(self, loss: float = 0.0) -> None:
        """Raise DdpmError where ``loss``, a loss since the last row of the log, or a weight is not finite."""
        # A loss is of the weights before its step; those after it may be the first that are not finite.
        size = torch.stack(torch._foreach_norm(list(self.state.network.parameters()))).sum()
        if not math.isfinite(loss + (self.state.sums.sum() + size).item()):
            raise DdpmError(
                f"the loss is not a finite number at step {self.state.step}: lower train.lr (now {self.config.lr}) or "
                "train.grad_clip."
            )

    def log(self, lr: float) -> None:
        """A row of log.csv: loss and gradient norm, means of the steps since the last row."""
        step, history = self.state.step, self.state.history
        since = step - (history["log"][-1]["step"] if history["log"] else 0)
        loss, norm = (self.state.sums / since).tolist()
        self.state.sums.zero_()
        history["log"].append({"step": step, "epoch": step / self.per_epoch, "loss": loss, "lr": lr, "grad_norm": norm})
        self.folder.write_csv("log.csv", history["log"])
        self.progress.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def validate(self) -> None:
        """A row of validation.csv by the averaged weights; best.safetensors is theirs where the loss is lowest.

        Of those that have the guide, where the settings ask for one.
        """
        step, history = self.state.step, self.state.history
        size = self.config.batch_size // self.config.shards
        batches = self.grid.batches(size)
        found = torch.zeros(self.ranks.each(len(batches)), size, device=self.state.device)
        with self.state.averaged():
            # Gradients stay on: switching them off would compile the network a second time.
            for place, number in enumerate(self.ranks.part(len(batches))):
                errors = self.squared_errors(*batches[number]).detach()
                found[place] = errors if errors.ndim == 1 else errors[:, 0]
        together = self.ranks.gather(found)[: len(batches)]
        row = self.grid.summarize(together.flatten(), self.objective.grid_weights)
        self.refuse_non_finite(row["val_loss"])
        history["val"].append({"step": step, "epoch": step / self.per_epoch, **row})
        self.folder.write_csv("validation.csv", history["val"])
        # One without the guide that sampling is to move away from could not be sampled as the settings say.
        awaits_guide = self.config.guide_fraction and not self.state.guide
        if row["val_loss"] < history["best_val_loss"] and not awaits_guide:
            history |= {"best_val_loss": row["val_loss"], "best_step": step}
            self.save("best", {"val_loss": row["val_loss"]})

    def preview(self) -> None:
        """A grid of samples by the averaged weights, the same noise and labels each time; its file is named by step."""
        state, count = self.state, PREVIEW_COLUMNS**2
        in_turn = state.conditioning.in_turn(count)
        labels = None if in_turn is None else torch.from_numpy(in_turn).to(state.device)
        with state.averaged():
            grid = tile(self.sample(range(1, count + 1), labels, state.recipe.seed), PREVIEW_COLUMNS)
        self.folder.write(f"previews/{state.step}.png", lambda path: write_png(path, enlarge(grid, 2)))

    def measure(self) -> None:
        """A row of previews/distance.csv: of samples by the averaged weights, the same noise and labels each time.

        Labels are as frequent as in the training set, and noise is of a random stream of its own.
        """
        state, count, size = self.state, self.config.distance_images, self.config.batch_size // self.config.shards
        seed = torch_generator(state.recipe.seed, "early distance").initial_seed()
        places = (np.arange(count) + 0.5) / count
        labels = torch.from_numpy(np.searchsorted(np.cumsum(state.conditioning.weights(None)), places)).to(state.device)
        # Batches of the size of a shard, so that any number of ranks computes the same bits.
        batches = range(0, count, size)
        found = torch.zeros(
            self.ranks.each(len(batches)), size, *state.spec.shape, dtype=torch.uint8, device=state.device
        )
        with state.averaged():
            for place, number in enumerate(self.ranks.part(len(batches))):
                numbers = [(batches[number] + i) % count for i in range(size)]
                images = self.sample(numbers, labels[numbers] if state.conditioning.count else None, seed)
                found[place] = torch.from_numpy(images)
        together = self.ranks.gather(found).flatten(0, 1)[:count]
        if self.distance and not self.ranks.rank:
            row = {"step": state.step, "epoch": state.step / self.per_epoch}
            state.history["distance"].append(row | {"early_distance": self.distance(together.cpu().numpy())})
            self.folder.write_csv("previews/distance.csv", state.history["distance"])

    def sample(self, numbers: Sequence[int], labels: Tensor | None, seed: int) -> np.ndarray:
        """Images by the weights that the network has now, ancestrally and without guidance: uint8 [n, c, h, w]."""
        noise = ImageNoise(seed, 0, numbers, self.state.spec.shape, self.state.device)
        denoiser = Denoiser(
            self.runtime.predictor(self.state.network),
            self.objective.target,
            self.schedule,
            clip=True,
            labels=labels,
            self_conditioning=self.state.recipe.model.self_conditioning,
        ).remembering()
        steps = spaced(self.schedule, self.config.preview_steps, "even")
        return denormalize(ddpm()(denoiser, noise(), steps, noise))

    def save(self, name: str, metadata: dict[str, Any]) -> None:
        """Keep a checkpoint of this moment for good."""
        described = {"step": self.state.step, "seed": self.state.recipe.seed, **metadata}
        if self.state.conditioning.count and not self.config.label_dropout:
            described["null_label"] = False
        self.folder.write(f"{name}.safetensors", partial(self.write_checkpoint, described, resumable=name == "last"))

    def write_checkpoint(self, metadata: dict[str, Any], path: Path, *, resumable: bool) -> None:
        """A file of this moment, see `TrainState.checkpoint`; of the ranks, only the one that writes calls it."""
        save_checkpoint(path, self.state.checkpoint(metadata, resumable=resumable))

    def finish(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write the last checkpoint; returns (results, cost), without and with what depends on clock and machine."""
        self.runtime.synchronize()
        ended = time.perf_counter()
        self.progress.close()
        history, recipe = self.state.history, self.state.recipe
        self.save("last", {"val_loss": history["val"][-1]["val_loss"]})
        results = {
            "train_loss": history["log"][-1]["loss"],
            **{key: value for key, value in history["val"][-1].items() if key.startswith("val_")},
            "best_val_loss": history["best_val_loss"],
            "best_step": history["best_step"],
            "steps": self.total,
            "images_seen": self.total * self.config.batch_size,
            "parameters": sum(parameter.numel() for parameter in self.state.network.parameters()),
            "flops_per_image": flops_per_image(recipe.model, self.state.spec),
        }
        first_done = self.first_done or self.began
        images = (self.total - self.first_step - 1) * self.config.batch_size
        cost = {
            "train_seconds": ended - self.started,
            "train_startup_seconds": first_done - self.began,
            "train_images_per_second": images / (ended - first_done),
            "train_overhead_fraction": self.overhead / (ended - self.began),
            "train_processes": self.ranks.size,
        }
        if self.runtime.device.type == "cuda":
            # Known only here: the process that started the ranks computes nothing on their devices.
            cost["train_peak_memory_mib"] = peak_memory_bytes(self.runtime) / 2**20
        return results, cost
