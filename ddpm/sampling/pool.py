"""Processes that share the batches of a sampling run.

A batch is sampled by one thread whatever the number of processes, so that the images have the same bits.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from ddpm.sampling.generator import Generator
from ddpm.utils.processes import worker_processes

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
    """Processes that each make their generator by ``build(*arguments, number)``, a function that can be imported.

    None for one process. See `worker_processes`.
    """
    if processes == 1:
        yield None
        return
    with worker_processes(processes, "sampled images", _begin, build, arguments) as executor:
        yield Pool(processes, executor)


def _begin(number: int, build: Callable[..., Generator], arguments: tuple[object, ...]) -> None:
    global _generator
    _generator = build(*arguments, number)


def _call(task: Callable[..., object], arguments: tuple[object, ...]) -> None:
    task(_generator, *arguments)
