"""Starts the processes that train one network together."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch

from ddpm.data.image_set import ImageSet, read_image_set
from ddpm.training.loop import train
from ddpm.training.ranks import ALONE, LAUNCHED, LostRank, Ranks, Stopped
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.errors import DdpmError
from ddpm.utils.processes import worker_processes
from ddpm.utils.resume import stop_signals
from ddpm.utils.runtime import Runtime, sharing, worker_count

T = TypeVar("T")
_stop: Callable[[], bool] | None = None


def train_on_files(
    recipe: Recipe,
    training: Path,
    validation: Path,
    distance: Callable[[ImageSet, int], Callable[[np.ndarray], float]] | None = None,
    **given: Any,  # noqa: ANN401
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`train` on two stored image sets. To send the images to other processes would hold them several times more.

    distance: what makes the distance of samples that it takes, of training images and seed.
    """
    images = read_image_set(training)
    measure = distance(images, recipe.seed) if distance else None
    return train(recipe, images, read_image_set(validation), distance=measure, **given)


def train_together(processes: int, run: Callable[..., T], runtime: Runtime, folder: RunFolder) -> T:
    """What ``run(runtime=…, folder=…, ranks=…)``, a partial of `train_on_files`, returns to the first of so many.

    This process starts them, unless torchrun or Slurm has started it among others. ``run`` can be pickled. Raises what
    it does, and DdpmError where a process was killed.
    """
    chosen, together = runtime.describe(), max(processes, LAUNCHED.size)
    possible = sharing(runtime.device, worker_count("auto"))
    shared = f"{together} of {possible} possible here" if together < possible else f"{together}"
    compiled = "compiled" if runtime.compiled else "not compiled"
    folder.say(
        f"training on {chosen['device']}, {chosen['precision']}, {compiled}; processes: {shared}, at most train.shards"
    )
    if LAUNCHED.size > 1:
        if runtime.device.index is not None:
            raise DdpmError(
                f"runtime.device={runtime.device} names one device for {LAUNCHED.size} processes: set it to cuda."
            )
        return _join(run, runtime, folder, LAUNCHED, "env://")
    if processes == 1:
        return run(runtime=runtime, folder=folder, ranks=ALONE)
    stop = get_context("spawn").Event()
    with (
        TemporaryDirectory() as place,
        stop_signals("step") as received,
        worker_processes(processes, "trained", _begin, stop.is_set) as executor,
    ):
        make_folder = partial(type(folder), folder.output, folder.folder, folder.previews)
        ranks = [
            executor.submit(_train, run, runtime, make_folder, Ranks(rank, processes, rank), f"file://{place}/ranks")
            for rank in range(processes)
        ]
        while not ranks[0].done() and not any(map(_failed, ranks)):
            wait(ranks[:1], 0.2)
            if received:
                stop.set()
        if any(map(_failed, ranks)):
            wait(ranks, 2.0)
            # Those that lost a rank fail because of it: its own reason comes first.
            raise min(filter(None, map(_failed, ranks)), key=lambda error: isinstance(error, LostRank))
        return ranks[0].result()


def _failed(rank: "Future[Any]") -> BaseException | None:
    """Why a rank failed; None for one at work, one at its end, and one that stops, as the first may be saving yet."""
    error = rank.exception() if rank.done() else None
    return None if isinstance(error, SystemExit) else error


def _begin(_: int, stop: Callable[[], bool]) -> None:
    global _stop
    _stop = stop


def _train(
    run: Callable[..., T], runtime: Runtime, make_folder: Callable[..., RunFolder], ranks: Ranks, place: str
) -> T:
    return _join(run, runtime, make_folder(writes=not ranks.rank), replace(ranks, stop=_stop), place)


def _join(run: Callable[..., T], runtime: Runtime, folder: RunFolder, ranks: Ranks, place: str) -> T:
    own = runtime.of_rank(ranks.local_rank)
    ranks.connect(place, own.device)
    # Each rank applies the same updates to a network of its own: rounding must not tell them apart.
    ranks.check_alike((*own.arithmetic(), torch.backends.cpu.get_cpu_capability()), own.device)
    try:
        found = run(runtime=own, folder=folder, ranks=ranks)
    except Stopped:
        ranks.leave()
        raise
    ranks.leave()
    return found
