"""A folder that keeps what a run has made, until the run is finished and its results are recorded.

DVC deletes a stage's outputs before it runs it again, so what a killed run has made must lie elsewhere: in a folder
named after all that decides the run, from which the next run of the same resumes.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from tqdm import tqdm

from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile
from ddpm.utils.files import read_json, write_json

FINISHED = "finished.json"
_asked: list[list[int]] = []


class Busy(DdpmError):
    """Another process is at a run."""


class KeptRun:
    """The folder of one run. As a context manager it is locked against a second process at the same run.

    Entering raises Busy where another process has it, OSError where it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / "lock")

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise Busy(f"another process is at this very run (its folder is {self.folder}).") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def finish(self, metadata: dict[str, Any]) -> None:
        """Note that the run is complete, with plain values about it. The folder stays, see `stages.resume`."""
        write_json(self.folder / FINISHED, metadata)

    @property
    def finished(self) -> dict[str, Any] | None:
        """What `finish` noted, None for a run that is not complete. Raises DdpmError for a damaged note."""
        path = self.folder / FINISHED
        with restarting(self.folder), suppress(MissingFile):
            return read_json(path)
        return None


@contextmanager
def restarting(folder: Path) -> Iterator[None]:
    """Turn a DamagedFile raised inside into a DdpmError: nobody but the run itself can restore its own state."""
    try:
        yield
    except DamagedFile as error:
        raise DdpmError(f"{error}: delete the folder {folder} to start that run again.") from error


@contextmanager
def stop_signals(unit: str) -> Iterator[list[int]]:
    """Yield a list that a SIGINT or SIGTERM is appended to, in place of ending the process at once.

    The first one says that the process stops after this ``unit`` of work; a second one ends it as usual.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}
    _asked.append(received)

    def remember(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, previous[number])
        tqdm.write(f"stopping after this {unit}; once more stops at once", file=sys.stderr)

    for wanted in (signal.SIGINT, signal.SIGTERM):
        previous[wanted] = signal.signal(wanted, remember)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _asked.pop()


def stopping() -> bool:
    """Whether this process was asked to stop and will, after its unit of work: see `stop_signals`."""
    return any(_asked)
