"""Processes that share the work of a stage.

On a CPU, processes of one thread each are faster than one process of many threads, which wait for each other at every
layer, and far faster beside a busy neighbour.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized

from ddpm.utils.errors import DdpmError


@contextmanager
def worker_processes(
    count: int, work: str, begin: Callable[..., None], *arguments: object
) -> Iterator[ProcessPoolExecutor]:
    """So many new processes, each of which first calls ``begin(number, *arguments)``, a function that can be imported.
    They are numbered from 0.

    Leaving it by an exception ends them at once; they end by themselves when this process is gone. Raises DdpmError,
    which says what their ``work`` was, where one was killed.
    """
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, context, _begin, (os.getpid(), context.Value("i"), begin, arguments))
    try:
        yield executor
    except BaseException as error:
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise DdpmError(
                f"a process that {work} was killed, as for want of memory: lower runtime.processes. The next run "
                "resumes from what was kept."
            ) from error
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _begin(parent: int, begun: "Synchronized[int]", begin: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """Make a process ready; it ends when its parent ends it or is gone, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
