"""The processes, called ranks, that train one network together.

Each has its own part of every batch; network, optimizer and random streams are the same in all of them.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from ddpm.utils.errors import DdpmError
from ddpm.utils.resume import stop_signals

# A rank that comes to an exchange so much later than the others hangs. A preview on a CPU may take minutes, and so may
# compiling: on a busy one a quarter of an hour.
PATIENCE = timedelta(minutes=30)


class LostRank(DdpmError):
    """Another rank does not answer."""


class Stopped(SystemExit):
    """Training was asked to stop, and has saved its state; all ranks do so at one step."""


@dataclass(frozen=True)
class Ranks:
    """This process is number ``rank`` (from 0) of ``size``, and number ``local_rank`` of those on its machine.

    stop: tells whether the process that started this one asks it to stop; None where nobody but a signal does.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    stop: Callable[[], bool] | None = None

    def connect(self, place: str, device: torch.device, patience: timedelta = PATIENCE) -> None:
        """Meet the other ranks at ``place``, as `torch.distributed.init_process_group` names it. Raises DdpmError."""
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            # NCCL meets at once where it is given the device, else in the middle of the first exchange.
            own = device if device.type == "cuda" else None
            distributed.init_process_group(
                backend, place, patience, world_size=self.size, rank=self.rank, device_id=own
            )
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            launched = place == "env://"
            fix = "start them by torchrun, or unset WORLD_SIZE" if launched else "set runtime.processes to 1"
            fix += ", and give each a device of its own" if own else ""
            raise DdpmError(f"the training processes do not reach each other ({reason}): {fix}.") from error

    def leave(self) -> None:
        """Give back what connecting took, after the last exchange."""
        # Left to the end of the process, NCCL warns of it, and threads of gloo may end that by SIGABRT.
        distributed.destroy_process_group()

    def part(self, count: int) -> range:
        """Which of ``count`` things are this rank's: a run of them, so that the ranks' parts come in order."""
        each = self.each(count)
        return range(min(count, self.rank * each), min(count, (self.rank + 1) * each))

    def each(self, count: int) -> int:
        """How many of ``count`` things a rank has at most."""
        return -(-count // self.size)

    def gather(self, mine: Tensor) -> Tensor:
        """The tensors of all ranks, alike in shape [n, …], one after the other on every rank: [size · n, …]."""
        if self.size == 1:
            return mine
        together = mine.new_empty(self.size * len(mine), *mine.shape[1:])
        with _answered():
            distributed.all_gather(list(together.chunk(self.size)), mine)
        return together

    def check_alike(self, arithmetic: Sequence[object], device: torch.device) -> None:
        """Raise DdpmError where the ranks compute in different ways: their networks would drift apart."""
        if self.size == 1:
            return
        digest = int.from_bytes(hashlib.sha256(repr(arithmetic).encode()).digest()[:7], "big")
        if len(set(self.gather(torch.tensor([digest], device=device)).tolist())) > 1:
            raise DdpmError(
                f"the training processes do not compute alike (number {self.rank}: {', '.join(map(str, arithmetic))}): "
                "give them machines that are alike, or set device, precision and compile of runtime to what all have."
            )

    def check_step(self, step: int, device: torch.device) -> None:
        """Raise DdpmError where the ranks do not go on from the same step."""
        if self.size == 1:
            return
        steps = self.gather(torch.tensor([step], device=device)).tolist()
        if len(set(steps)) > 1:
            raise DdpmError(
                f"the training processes found states of different steps ({', '.join(map(str, steps))}): give them one "
                "folder .ckpt that all see, by $DDPM_CKPT_DIR on several machines."
            )

    @contextmanager
    def first_alone(self, *, wanted: bool) -> Iterator[None]:
        """Where ``wanted``, rank 0 goes through the block before the others.

        What it compiles there for a CPU they find in the compiler's cache; what is for another CUDA device they do not.
        """
        wanted = wanted and self.size > 1
        if wanted and self.rank:
            self.meet()
        yield
        if wanted and not self.rank:
            self.meet()

    def meet(self) -> None:
        """Wait for all ranks. Raises LostRank."""
        with _answered():
            distributed.barrier()

    @contextmanager
    def stopping(self) -> Iterator[Callable[[], bool]]:
        """A function that tells whether this rank is asked to stop, by a signal or by the process that started it."""
        if self.stop:
            yield self.stop
            return
        with stop_signals("step") as received:
            yield lambda: bool(received)


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise LostRank(f"a training process hangs or was lost ({reason}); the next run resumes.") from error


def launched(environment: Mapping[str, str]) -> Ranks:
    """This process as torchrun, or a Slurm script that sets the same variables, started it among others; else alone."""
    rank, size, local_rank = (int(environment.get(name) or 0) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Ranks(rank, size, local_rank) if size > 1 else ALONE


ALONE = Ranks()
LAUNCHED = launched(os.environ)
