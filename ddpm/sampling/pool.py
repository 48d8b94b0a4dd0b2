"""Processes that share the batches of a sampling run.

On a CPU, processes of one thread each are faster than one process of many threads, which wait for each other at every
layer, and far faster beside a busy neighbour. A batch is sampled by one thread whatever the number of processes, so
that the images have the same bits.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

from ddpm.sampling.generator import Generator
from ddpm.utils.errors import DdpmError

_generator: Generator | None = None


@dataclass(frozen=True)
class Pool:
    """processes: how many there are."""

    processes: int
    _executor: ProcessPoolExecutor

    def submit(self, task: Callable[..., object], *arguments: object) -> Future[None]:
        """Call ``task(generator, *arguments)`` in one of the processes; the future raises what it raised."""
        return self._executor.submit(_call, task, arguments)


@contextmanager
def process_pool(processes: int, build: Callable[..., Generator], *arguments: object) -> Iterator[Pool | None]:
    """Processes that each make their generator by ``build(*arguments)``, a function that can be imported; None for one.

    Leaving it by an exception ends them at once. Raises DdpmError where one was killed.
    """
    if processes == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, context, _begin, (os.getpid(), build, arguments))
    try:
        yield Pool(processes, executor)
    except BaseException as error:
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise DdpmError(
                "a process that sampled images was killed, as for want of memory: lower runtime.processes. The next "
                "run resumes after the batches that are done."
            ) from error
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _begin(parent: int, build: Callable[..., Generator], arguments: tuple[object, ...]) -> None:
    """Make a process ready, with its own generator; it ends when its parent ends it or is gone."""
    global _generator
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _generator = build(*arguments)


def _call(task: Callable[..., object], arguments: tuple[object, ...]) -> None:
    task(_generator, *arguments)
