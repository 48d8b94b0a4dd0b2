from collections.abc import Iterator
from threading import get_ident

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from ddpm.utils import threads
from ddpm.utils.threads import in_threads


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> tuple[int, set[int]]:
    """How many threads a matrix product had before, here 3 in torch."""
    monkeypatch.setattr(threads, "worker_count", lambda _: 4)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3, blas_threads()
    torch.set_num_threads(before)


def test_results_are_in_the_order_of_the_items_and_each_is_computed_by_one_thread(outside: tuple[int, set[int]]):
    np.ones((2, 2)) @ np.ones((2, 2))  # loads the library

    def square(number: int) -> tuple[int, int, set[int]]:
        return number**2, torch.get_num_threads(), blas_threads()

    found = in_threads(square, iter(range(50)), 50, "squares", "number")
    assert [number for number, _, _ in found] == [number**2 for number in range(50)]
    assert {torch_threads for _, torch_threads, _ in found} == {1}
    assert all(within == {1} for _, _, within in found)
    assert (torch.get_num_threads(), blas_threads()) == outside


def test_items_are_made_as_they_are_needed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "worker_count", lambda _: 2)
    made, done = 0, []

    def items() -> Iterator[int]:
        nonlocal made
        for made in range(1, 1001):
            yield made - len(done)

    # How many more had been made than computed when each was made: not all thousand at once.
    ahead = in_threads(lambda more: done.append(more) or more, items(), 1000, "items", "item")
    assert made == len(ahead) == 1000
    assert max(ahead) < 100


def test_an_error_in_a_thread_is_raised_and_the_threads_of_products_are_as_before(outside: tuple[int, set[int]]):
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda number: 1 / number, [2, 1, 0, 3], 4, "fractions", "number")
    assert (torch.get_num_threads(), blas_threads()) == outside


@pytest.mark.parametrize(("device", "here"), [("cpu", False), ("meta", True)])
def test_another_device_than_a_cpu_is_used_by_the_thread_that_calls(device: str, here: bool):
    found = in_threads(lambda number: (number, get_ident()), range(200), 200, "items", "item", torch.device(device))
    assert [number for number, _ in found] == list(range(200))
    assert (get_ident() in {thread for _, thread in found}) == here
