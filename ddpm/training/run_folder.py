"""The folder that a training run lives in until it is finished.

DVC deletes a stage's outputs before it runs it again, so what a killed run has made must lie elsewhere: in a rescue
folder of its own, from which the next run with the same fingerprint goes on.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ddpm.errors import DdpmError
from ddpm.files import atomic_path, write_csv


class RunFolder:
    """Files of a run: each is kept in the rescue folder and shown in the output folder as soon as it is written.

    Use as a context manager, which locks the rescue folder: it raises DdpmError when another process trains this run.
    """

    def __init__(self, output: Path, rescue: Path) -> None:
        self.output = output
        self.rescue = rescue
        self.state = rescue / "state.safetensors"
        self._kept = rescue / "files"
        self._lock = FileLock(rescue / "lock")

    def __enter__(self) -> "RunFolder":
        self.rescue.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise DdpmError(f"another process is training this very run (its folder is {self.rescue}).") from error
        self.output.mkdir(parents=True, exist_ok=True)
        if self._kept.is_dir():
            shutil.copytree(self._kept, self.output, dirs_exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def write(self, name: str, writer: Callable[[Path], None]) -> None:
        """Make the file ``name`` by calling ``writer`` with a path. Raises OSError."""
        kept = self._kept / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        writer(kept)
        with atomic_path(self.output / name) as temporary:
            shutil.copyfile(kept, temporary)

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write ``rows``, one or more, which share their keys, as a table with a header."""
        self.write(name, lambda path: write_csv(path, list(rows[0]), [list(row.values()) for row in rows]))

    def discard(self) -> None:
        """Forget the rescue folder: the run is finished."""
        self._lock.release()
        shutil.rmtree(self.rescue)
