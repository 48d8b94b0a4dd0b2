"""The training loop, top to bottom."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.config import DiffusionConfig, ModelConfig, TrainConfig
from ddpm.data.split import ImageSet
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.objective import loss_weights, sample_times, time_density
from ddpm.diffusion.process import normalize, q_sample, target_of
from ddpm.diffusion.samplers import ddpm_sampler
from ddpm.diffusion.schedule import even_times, respace
from ddpm.errors import DamagedFile, DdpmError
from ddpm.images import enlarge, tile, to_uint8, write_png
from ddpm.model.checkpoint import (
    Checkpoint,
    build_network,
    build_schedule,
    flops_per_image,
    load_checkpoint,
    save_checkpoint,
)
from ddpm.model.denoiser import make_denoiser
from ddpm.model.ema import Ema
from ddpm.model.unet import WITHHELD
from ddpm.rescue import begin_anew
from ddpm.runtime import Runtime
from ddpm.seeds import torch_generator
from ddpm.training.optimizer import Optimizer, lr_factor
from ddpm.training.run_folder import RunFolder
from ddpm.training.validation import FixedGrid

PREVIEW_COLUMNS = 8


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run, beside the images."""

    model: ModelConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    seed: int

    def steps(self, images: int) -> int:
        """Optimizer steps for a training set of so many images; incomplete batches are left out of every epoch.

        Raises DdpmError when the images do not fill one batch.
        """
        if images < self.train.batch_size:
            raise DdpmError(f"train.batch_size={self.train.batch_size} exceeds the {images} training images: lower it.")
        return max(1, math.ceil(self.train.epochs * (images // self.train.batch_size)))


def train(
    recipe: Recipe,
    training: ImageSet,
    validation: ImageSet,
    runtime: Runtime,
    folder: RunFolder,
    checkpoint_every_seconds: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train from the start, or from the state a killed run left in ``folder``, to the end.

    Writes best.safetensors, last.safetensors, log.csv, validation.csv and previews into the folder as it goes.
    Returns (results, cost): plain values that do not depend on, and that do depend on, the clock and the machine.
    Raises DdpmError when the loss is no longer finite, SystemExit when told to stop (SIGINT, SIGTERM) after saving.
    """
    config, diffusion, device = recipe.train, recipe.diffusion, runtime.device
    images = torch.from_numpy(training.images).to(device)
    image_size = images.shape[-1]
    labels, class_shares = _labels(training, recipe.model.classes, device)
    total = recipe.steps(len(images))
    per_epoch = len(images) // config.batch_size

    torch.manual_seed(int(torch_generator(recipe.seed, "weights").initial_seed()))
    network = runtime.prepare(build_network(recipe.model), trains=True).train()
    optimizer = Optimizer(network, config)
    ema = Ema(network, config.ema_decay)
    schedule = build_schedule(diffusion)
    alpha_bar = schedule.alpha_bar.float().to(device)[:, None, None, None]
    weights = loss_weights(diffusion.target, config.weighting, schedule.alpha_bar, config.min_snr_gamma)
    weights = weights.float().to(device)
    density = time_density(config.time_density, schedule.alpha_bar, config.log_sigma_mean, config.log_sigma_std)
    # On the grid all times are alike, in training they are not.
    grid_weights = weights * (density * len(density)).float().to(device)
    cumulative = density.cumsum(0).to(device)
    grid = FixedGrid(
        torch.from_numpy(validation.images).to(device),
        _labels(validation, recipe.model.classes, device)[0],
        len(schedule),
        config.validation_images,
        recipe.seed,
    )
    streams = {name: torch_generator(recipe.seed, f"train {name}", device) for name in ("t", "eps", "labels")}

    @runtime.compile
    def squared_errors(batch: Tensor, t: Tensor, eps: Tensor, told: Tensor | None) -> Tensor:
        x_0 = normalize(batch)
        x_t = q_sample(x_0, alpha_bar[t], eps)
        with runtime.autocast():
            prediction = network(x_t, t, told)
        target = target_of(diffusion.target, x_0, alpha_bar[t], eps)
        return (prediction.float() - target).square().mean((1, 2, 3))

    @contextmanager
    def averaged() -> Iterator[None]:
        # Without dropout both modes are one, and switching would compile the network a second time.
        ema.swap()
        network.train(not recipe.model.dropout)
        yield
        network.train()
        ema.swap()

    def validate() -> dict[str, float]:
        with averaged():
            # Gradients stay on: switching them off would compile the network a second time.
            found = [squared_errors(*batch).detach().clone() for batch in grid.batches(config.batch_size)]
        return grid.summarize(torch.cat(found), grid_weights)

    def preview(step: int) -> None:
        count = PREVIEW_COLUMNS**2
        noise = ImageNoise(recipe.seed, 0, range(1, count + 1), (1, image_size, image_size), device)
        steps = respace(schedule, even_times(schedule, config.preview_steps))
        told = None if labels is None else torch.arange(count, device=device) % recipe.model.classes
        denoise = make_denoiser(network, diffusion, schedule, runtime, clip=True, labels=told)
        with averaged(), torch.no_grad():
            sheet = tile(to_uint8(ddpm_sampler()(denoise, noise(), steps, noise)), PREVIEW_COLUMNS)
        folder.write(f"previews/step_{step:06d}.png", lambda path: write_png(path, enlarge(sheet, 2)))

    def checkpoint(facts: dict[str, Any], **groups: dict[str, Tensor]) -> Checkpoint:
        average = {name: value.clone() for name, value in ema.state_dict().items()}
        return Checkpoint(recipe.model, diffusion, image_size, class_shares, facts, {"ema": average, **groups})

    def everything() -> dict[str, dict[str, Tensor]]:
        return {
            "weights": dict(network.named_parameters()),
            "optimizer": optimizer.state_dict(),
            "rng": {name: stream.get_state() for name, stream in streams.items()} | _global_rng_state(device),
        }

    state: dict[str, Any] = {"step": 0, "best_step": 0, "best_val_loss": math.inf, "seconds": 0.0, "log": [], "val": []}
    if folder.state.exists():
        try:
            saved = load_checkpoint(folder.state, device)
        except DamagedFile as error:
            raise begin_anew(error, folder.folder) from error
        state = saved.facts
        network.load_state_dict(saved.tensors["weights"])
        ema.load_state_dict(saved.tensors["ema"], state["step"])
        optimizer.load_state_dict(saved.tensors["optimizer"])
        for name, stream in streams.items():
            stream.set_state(saved.tensors["rng"][name].cpu())
        _set_global_rng_state(saved.tensors["rng"], device)
        tqdm.write(f"going on from step {state['step']} of {total}, saved in {folder.folder}")

    started = time.perf_counter() - state["seconds"]
    began = saved_at = time.perf_counter()
    outside = 0.0
    running_loss, running_norm = torch.zeros((), device=device), torch.zeros((), device=device)
    first_step, first_done = state["step"], None
    pauses = (config.log_every, config.validate_every, config.preview_every, config.keep_every_epochs * per_epoch)

    with (
        _stop_signals() as stop,
        tqdm(
            total=total * config.batch_size,
            initial=state["step"] * config.batch_size,
            unit="image",
            desc="train",
            smoothing=0.05,
        ) as progress,
    ):
        while state["step"] < total:
            step = state["step"]
            epoch, position = divmod(step, per_epoch)
            if position == 0 or step == first_step:
                order = torch.randperm(len(images), generator=torch_generator(recipe.seed, f"epoch {epoch}")).to(device)
            chosen = order[position * config.batch_size : (position + 1) * config.batch_size]
            t = sample_times(config.batch_size, cumulative, config.time_sampling, streams["t"])
            eps = torch.randn(config.batch_size, 1, image_size, image_size, generator=streams["eps"], device=device)
            told = None
            if labels is not None:
                dropped = (
                    torch.rand(config.batch_size, generator=streams["labels"], device=device) < config.label_dropout
                )
                told = labels[chosen].masked_fill(dropped, WITHHELD)

            loss = (weights[t] * squared_errors(images[chosen], t, eps, told)).mean()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip)
            factor = lr_factor(step, total, config.warmup_steps, config.lr_decay)
            optimizer.step(factor)
            ema.update()

            running_loss += loss.detach()
            running_norm += norm
            state["step"] = step = step + 1
            progress.update(config.batch_size)
            if first_done is None:
                runtime.synchronize()
                first_done = time.perf_counter()

            last = step == total
            if last or any(every and step % every == 0 for every in pauses):
                # The device's work up to here is the network's; what follows is not.
                runtime.synchronize()
            pause = time.perf_counter()
            if step % config.log_every == 0 or last:
                since = config.log_every if step % config.log_every == 0 else step % config.log_every
                row = {
                    "step": step,
                    "epoch": step / per_epoch,
                    "loss": running_loss.item() / since,
                    "lr": config.lr * factor,
                    "grad_norm": running_norm.item() / since,
                }
                running_loss.zero_()
                running_norm.zero_()
                # The loss speaks of the weights before this step; those after it may be the first that are not finite.
                size = torch.stack(torch._foreach_norm(list(network.parameters()))).sum().item()
                if not math.isfinite(row["loss"] + row["grad_norm"] + size):
                    raise DdpmError(
                        f"the loss is no finite number at step {step}: lower train.lr (now {config.lr}) or "
                        f"train.grad_clip; the last good state is kept in {folder.folder}."
                    )
                state["log"].append(row)
                folder.write_csv("log.csv", state["log"])
                progress.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            if step % config.validate_every == 0 or last:
                found = validate()
                state["val"].append({"step": step, "epoch": step / per_epoch, **found})
                folder.write_csv("validation.csv", state["val"])
                if found["val_loss"] < state["best_val_loss"]:
                    state |= {"best_val_loss": found["val_loss"], "best_step": step}
                    facts = {"step": step, "val_loss": found["val_loss"], "seed": recipe.seed}
                    best = checkpoint(facts, **everything())
                    folder.write("best.safetensors", partial(save_checkpoint, checkpoint=best))
            if config.preview_every and (step % config.preview_every == 0 or last):
                preview(step)
            if config.keep_every_epochs and step % (config.keep_every_epochs * per_epoch) == 0:
                kept = checkpoint({"step": step, "seed": recipe.seed}, **everything())
                name = f"epoch_{step // per_epoch:04d}.safetensors"
                folder.write(name, partial(save_checkpoint, checkpoint=kept))
            # Only where a log row has just been written are the running sums empty and the state complete.
            due = stop or time.perf_counter() - saved_at > checkpoint_every_seconds
            if due and not last and (step % config.log_every == 0):
                state["seconds"] = time.perf_counter() - started
                save_checkpoint(folder.state, checkpoint(state, **everything()))
                saved_at = time.perf_counter()
                if stop:
                    raise SystemExit(f"stopped at step {step} of {total}; the next `dvc repro` goes on from there.")
            outside += time.perf_counter() - pause

    runtime.synchronize()
    ended = time.perf_counter()
    final = {"step": total, "val_loss": state["val"][-1]["val_loss"], "seed": recipe.seed}
    folder.write("last.safetensors", partial(save_checkpoint, checkpoint=checkpoint(final, **everything())))
    results = {
        "train_loss": state["log"][-1]["loss"],
        **{key: value for key, value in state["val"][-1].items() if key.startswith("val_")},
        "best_val_loss": state["best_val_loss"],
        "best_step": state["best_step"],
        "steps": total,
        "images_seen": total * config.batch_size,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "flops_per_image": flops_per_image(recipe.model, image_size),
    }
    first_done = first_done or began
    cost = {
        "train_seconds": ended - started,
        "train_startup_seconds": first_done - began,
        "train_images_per_second": (total - first_step - 1) * config.batch_size / (ended - first_done),
        "train_outside_share": outside / (ended - began),
    }
    return results, cost


def _labels(image_set: ImageSet, classes: int, device: torch.device) -> tuple[Tensor | None, list[float]]:
    """The labels as int64 [n] on the device and the share of each; nothing for a network without classes."""
    if not classes:
        return None, []
    if image_set.labels.max() >= classes:
        raise DdpmError(
            f"model.classes={classes}, but there is a label {image_set.labels.max()}: raise it, or set it to 0."
        )
    counts = np.bincount(image_set.labels, minlength=classes)
    return torch.from_numpy(image_set.labels).long().to(device), (counts / counts.sum()).tolist()


def _global_rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that dropout draws from: it takes no generator of its own."""
    state = {"global": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_global_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["global"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yield a list that a SIGINT or SIGTERM is appended to, in place of ending the process at once.

    A second signal ends it as usual.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def remember(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    for wanted in (signal.SIGINT, signal.SIGTERM):
        previous[wanted] = signal.signal(wanted, remember)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
