"""Threads that share computations without Python's global lock (GIL): NumPy's matrix products, decompositions.

Each of them computes alone: threads within one matrix product wait for each other all the time, and beside a busy
neighbour small ones then take many times as long. Results have the same bits for any number of cores.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ddpm.utils.runtime import one_thread, worker_count

A = TypeVar("A")
R = TypeVar("R")
_CPU = torch.device("cpu")
_WAITING = 16  # items for each thread that are made at a time: an item may be as large as what it is computed from


def in_threads(
    function: Callable[[A], R], items: Iterable[A], count: int, label: str, unit: str, device: torch.device = _CPU
) -> list[R]:
    """``function`` of each of ``count`` items, in their order; ``label`` and ``unit`` are of the progress bar.

    device: of the computations. On others than a CPU they go one after the other, in the thread that calls.
    """
    if device.type != "cpu":
        return list(tqdm(map(function, items), total=count, desc=label, unit=unit))
    results: list[R] = []
    with (
        one_thread(device),
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(threads := worker_count("auto")) as pool,
        tqdm(total=count, desc=label, unit=unit) as progress,
    ):
        remaining = iter(items)
        while some := list(islice(remaining, _WAITING * threads)):
            for result in pool.map(function, some):
                results.append(result)
                progress.update()
    return results
