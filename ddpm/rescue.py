"""A folder that keeps what a run has made, until the run is finished and its results are in safe hands.

DVC deletes a stage's outputs before it runs it again, so what a killed run has made must lie elsewhere: in a folder
named after all that decides the run, from which the next run of the same goes on.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from ddpm.errors import DamagedFile, DdpmError
from ddpm.files import read_json, write_json

FINISHED = "finished.json"


class Rescue:
    """The rescue folder of one run. As a context manager it is locked against a second process at the same run.

    Entering raises DdpmError where another process has it, OSError where it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / "lock")

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise DdpmError(f"another process is at this very run (its folder is {self.folder}).") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def finish(self, facts: dict[str, Any]) -> None:
        """Note that the run is complete, with plain facts about it. The folder stays, see `forget_finished`."""
        write_json(self.folder / FINISHED, facts)

    @property
    def finished(self) -> dict[str, Any] | None:
        """The facts that `finish` noted, None for a run that is not complete. Raises DdpmError for a damaged note."""
        path = self.folder / FINISHED
        return _read(path) if path.exists() else None


def forget_finished(root: Path, recorded: Callable[[dict[str, Any]], bool]) -> None:
    """Delete the finished runs below ``root`` of whose facts ``recorded`` says that they are in safe hands."""
    for path in root.glob(f"*/{FINISHED}"):
        if recorded(_read(path)):
            # The note goes first: what a deletion cut short leaves is an unfinished run, which goes on to the same end.
            path.unlink()
            shutil.rmtree(path.parent)


def begin_anew(error: DamagedFile, folder: Path) -> DdpmError:
    """What is told of a damaged file in a rescue folder: nobody but the run itself can bring it back."""
    return DdpmError(f"{error}: delete the folder {folder} to begin that run anew.")


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except DamagedFile as error:
        raise begin_anew(error, path.parent) from error
