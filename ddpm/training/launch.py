"""Starts the processes that train one network together."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Any

from ddpm.data.image_set import ImageSet
from ddpm.training.loop import train
from ddpm.training.ranks import LostRank, Ranks
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.processes import worker_processes
from ddpm.utils.resume import stop_signals
from ddpm.utils.runtime import Runtime

_stop: Callable[[], bool] | None = None


def train_together(
    processes: int,
    recipe: Recipe,
    training: ImageSet,
    validation: ImageSet,
    runtime: Runtime,
    folder: RunFolder,
    save_every_seconds: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`train` by so many processes, which this one starts, unless torchrun or Slurm has started it among others.

    The result has the same bits for any number of them. Raises what `train` does, and DdpmError where a process was
    killed.
    """
    joined = Ranks.joined(runtime.device)
    chosen = runtime.describe()
    folder.say(f"training on {chosen['device']}, {chosen['precision']}, {'' if runtime.compiled else 'not '}compiled")
    if processes == 1 or joined.size > 1:
        return train(recipe, training, validation, runtime, folder, save_every_seconds, joined)
    stop = get_context("spawn").Event()
    with (
        TemporaryDirectory() as place,
        stop_signals("step") as received,
        worker_processes(processes, "trained", _begin, stop.is_set) as executor,
    ):
        meeting = f"file://{place}/ranks"
        images, make_folder = (training, validation), partial(type(folder), folder.output, folder.folder)
        ranks = [
            executor.submit(_train, meeting, rank, processes, recipe, images, runtime, make_folder, save_every_seconds)
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
    meeting: str,
    rank: int,
    processes: int,
    recipe: Recipe,
    images: tuple[ImageSet, ImageSet],
    runtime: Runtime,
    make_folder: Callable[..., RunFolder],
    save_every_seconds: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    runtime = runtime.of_rank(rank)
    ranks = Ranks.connected(rank, processes, meeting, runtime.device, _stop)
    return train(recipe, *images, runtime, make_folder(writes=rank == 0), save_every_seconds, ranks)
