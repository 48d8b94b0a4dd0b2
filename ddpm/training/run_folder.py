"""The files of a training run, which appear as it goes and are there again when a killed run resumes."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ddpm.utils.files import atomic_path, write_csv
from ddpm.utils.resume import KeptRun


class RunFolder(KeptRun):
    """Each file is kept in the folder of the run, and shown in the output folder as soon as it is written."""

    def __init__(self, output: Path, kept: Path) -> None:
        super().__init__(kept)
        self.output = output
        self.state = kept / "state.safetensors"
        self._kept = kept / "files"

    def __enter__(self) -> Self:
        super().__enter__()
        self.output.mkdir(parents=True, exist_ok=True)
        for kept in self._kept.rglob("*"):
            if kept.is_file() and kept.suffix != ".tmp":
                self._show(kept)
        return self

    def write(self, name: str, writer: Callable[[Path], None]) -> None:
        """Make the file ``name`` by calling ``writer``, which writes atomically, with a path. Raises OSError."""
        kept = self._kept / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        writer(kept)
        self._show(kept)

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write ``rows``, one or more, which share their keys, as a table with a header."""
        self.write(name, lambda path: write_csv(path, list(rows[0]), [list(row.values()) for row in rows]))

    def _show(self, kept: Path) -> None:
        with atomic_path(self.output / kept.relative_to(self._kept)) as temporary:
            shutil.copyfile(kept, temporary)
