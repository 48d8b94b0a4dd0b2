"""The training loop, top to bottom."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.data.image_set import ImageSet
from ddpm.diffusion.objective import build_objective
from ddpm.training.batch import Batches
from ddpm.training.gradients import ShardGradients
from ddpm.training.loss_aware import LossAware
from ddpm.training.monitor import Monitor
from ddpm.training.optimizers import lr_factor
from ddpm.training.ranks import ALONE, Ranks
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe, TrainState, image_tensor
from ddpm.utils.runtime import Runtime, one_thread

_ASK_EVERY = 50  # steps at most between two questions whether to stop, where a question waits for the device


def train(
    recipe: Recipe,
    training: ImageSet,
    validation: ImageSet,
    runtime: Runtime,
    folder: RunFolder,
    save_every_seconds: float,
    ranks: Ranks = ALONE,
    distance: Callable[[np.ndarray], float] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train from the start, or from the state a killed run left in ``folder``, to the end.

    Writes checkpoints, curves and previews as it goes, see `Monitor`. Returns (results, cost): plain values that do not
    and that do depend on clock and machine. Raises DdpmError when settings and images do not fit or the loss is not
    finite, `Stopped` after saving on SIGINT and SIGTERM. Each of ``ranks`` calls it: see `ddpm.training.launch`.
    """
    config, device = recipe.train, runtime.device
    total, guide_step = recipe.steps(len(training)), recipe.guide_step(len(training))
    state = TrainState(recipe, training, runtime)
    gradients = ShardGradients(state.network, config.shards, ranks)
    objective = build_objective(recipe.diffusion, config, recipe.model).to(device)
    times = state.times = LossAware(objective) if config.time_density == "loss_aware" else None
    losses = torch.zeros(ranks.each(config.shards), config.batch_size // config.shards, device=device)
    predict = runtime.predictor(state.network)

    @runtime.compile
    def squared_errors(
        batch: Tensor, t: Tensor, eps: Tensor, labels: Tensor | None, known: Tensor | None = None
    ) -> Tensor:
        return objective.squared_errors(predict, batch, t, eps, labels, known)

    folder.say(*recipe.remarks(len(training), ranks.size), *state.restore(folder, total))
    ranks.check_step(state.step, device)
    batches = Batches(state.recipe, image_tensor(training, device), state.conditioning.labels(training, device))
    monitor = Monitor(state, objective, squared_errors, len(training), validation, runtime, folder, ranks, distance)
    with ranks.stopping() as asked, monitor.progress, one_thread(device):
        for step in range(state.step, total):
            current = times.current() if times else objective
            batch = batches(step, current)
            with ranks.first_alone(wanted=runtime.compiled and device.type == "cpu" and step == monitor.first_step):
                for shard in gradients.mine:
                    part = batch.part(shard)
                    errors, t = squared_errors(*part), part[1]
                    gradients.backward(shard, current.loss(errors, t))
                    if times:
                        losses[shard - gradients.mine.start] = objective.losses(errors.detach(), t)
            if times:
                times.update(batch.t, ranks.gather(losses)[: config.shards].flatten())
            ask = device.type == "cpu" or step % min(config.log_every, _ASK_EVERY) == 0
            loss, stop = gradients.exchange(stop=asked(), ask=ask)
            norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.grad_clip)
            factor = lr_factor(step, total, config.warmup_steps, config.lr_decay)
            state.optimizer.step(factor)
            state.average()
            state.advance(loss, norm)
            if state.step == guide_step:
                state.keep_guide()
            monitor.after_step(config.lr * factor, save_every_seconds, stop=stop or (ranks == ALONE and asked()))
    return monitor.finish()
