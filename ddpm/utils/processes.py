"""Processes that share the work of a stage.

On a CPU, processes of one thread each are faster than one process of many threads, which wait for each other at every
layer, and far faster beside a busy neighbour.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

import psutil

from ddpm.utils.errors import DdpmError

T = TypeVar("T")
# Processes that have work and yet use no processor time hang: half an hour of readings, as long as ranks have patience.
# One at rest uses less than `_AT_REST` seconds meanwhile, for its looks at its parent.
_READ_EVERY, _READINGS, _AT_REST = 10.0, 180, 1.0
_object: object = None


class _Process(SpawnProcess):
    """One that leaves Ctrl-C to its parent from its very start: `_begin` runs seconds after that."""

    def start(self) -> None:
        _mask_interrupts(block=True)
        try:
            super().start()
        finally:
            _mask_interrupts(block=False)


class _Context(SpawnContext):
    Process = _Process


def _mask_interrupts(*, block: bool) -> None:
    """Hold SIGINT back in this thread and in processes that it starts, or no longer; Windows has no such masks."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK if block else signal.SIG_UNBLOCK, [signal.SIGINT])


@contextmanager
def worker_processes(
    count: int, work: str, begin: Callable[..., None], *arguments: object
) -> Iterator[ProcessPoolExecutor]:
    """So many new processes, each of which first calls ``begin(number, *arguments)``, a function that can be imported.
    They are numbered from 0.

    Leaving it by an exception ends them at once; they end by themselves when this process is gone. Raises DdpmError,
    which says what their ``work`` was, where one was killed.
    """
    context, others = _Context(), set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(count, context, _begin, (os.getpid(), context.Value("i"), begin, arguments))
    try:
        yield executor
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - others:
            # One that is stopped (SIGSTOP) would leave SIGTERM pending, and be waited for without end.
            child.kill()
        if isinstance(error, BrokenProcessPool):
            raise DdpmError(
                f"a process that {work} was killed, as for want of memory, or hung: lower runtime.processes. "
                "The next run resumes from what was kept."
            ) from error
        raise
    finally:
        executor.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Pool:
    """Processes that each hold an object of their own. processes: how many there are."""

    processes: int
    _executor: ProcessPoolExecutor
    _unfinished: set[Future[Any]] = field(default_factory=set)

    def submit(self, task: Callable[..., T], *arguments: object) -> Future[T]:
        """Call ``task(object, *arguments)`` in one of the processes; the future raises what it raised."""
        future = self._executor.submit(_call, task, arguments)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future

    @property
    def working(self) -> bool:
        """Whether any task is not done yet."""
        return bool(self._unfinished)


@contextmanager
def process_pool(processes: int, build: Callable[..., object], *arguments: object) -> Iterator[Pool | None]:
    """Processes that each make their object by ``build(*arguments, number)``, a function that can be imported.

    None for one process. See `worker_processes`. Processes that hang are ended after half an hour, as killed ones are;
    one that computes without end is not told from one that works.
    """
    if processes == 1:
        yield None
        return
    left, others = threading.Event(), set(multiprocessing.active_children())
    with worker_processes(processes, "shared the work", _build, build, arguments) as executor:
        pool = Pool(processes, executor)
        watch = threading.Thread(target=_end_those_that_hang, args=(pool, others, left), daemon=True)
        watch.start()
        try:
            yield pool
        finally:
            left.set()
            watch.join()


def _end_those_that_hang(pool: Pool, others: set[Any], left: threading.Event) -> None:
    """Kill the processes of a pool, all but ``others``, that have used no processor time for too long."""
    before: dict[Any, float] = {}
    readings = 0
    # Readings are counted, not seconds: those that a suspended machine or a stopped parent lets pass are no sign.
    while not left.wait(_READ_EVERY):
        workers: set[Any] = set(multiprocessing.active_children()) - others
        used = {worker: _processor_time(worker.pid) for worker in workers}
        readings += 1
        if not pool.working or any(used[worker] - before.get(worker, -1e9) > _AT_REST for worker in workers):
            before, readings = used, 0
        elif readings >= _READINGS:
            for worker in workers:
                worker.kill()
            return


def _processor_time(pid: int) -> float:
    """Seconds of processor time of a process; 0 for one that has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _build(number: int, build: Callable[..., object], arguments: tuple[object, ...]) -> None:
    global _object
    _object = build(*arguments, number)


def _call(task: Callable[..., T], arguments: tuple[object, ...]) -> T:
    return task(_object, *arguments)


def _begin(parent: int, begun: "Synchronized[int]", begin: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """Make a process ready; it ends when its parent ends it or is gone, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _mask_interrupts(block=False)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    with begun.get_lock():
        number = begun.value
        begun.value += 1
    begin(number, *arguments)
