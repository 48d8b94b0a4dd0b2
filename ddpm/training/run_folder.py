"""The files of a training run, which appear as it goes and are there again when a killed run resumes."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from ddpm.models.checkpoint import load_checkpoint
from ddpm.utils.files import atomic_path, write_csv
from ddpm.utils.resume import KeptRun, restarting

PREVIEWS = "previews"
BEST = "best.safetensors"


class RunFolder(KeptRun):
    """Each file is kept in the folder of the run, and shown in the output folder as soon as it is written.

    previews: the output folder of those files that are named previews/…; None for one in ``output``. writes: false for
    one of many processes that leaves it to another to write and to speak.
    """

    def __init__(self, output: Path, kept: Path, previews: Path | None = None, *, writes: bool = True) -> None:
        super().__init__(kept)
        self.output, self.previews, self.writes = output, previews, writes
        self.state = kept / "state.safetensors"
        self._kept = kept / "files"
        # The best checkpoint of the steps that ``state`` knows, once a later one has taken its place.
        self._known_best, self._best_is_known = kept / "known_best.safetensors", self.state.exists()

    def __enter__(self) -> Self:
        if not self.writes:
            return self
        super().__enter__()
        self._undo_best()
        for output in filter(None, (self.output, self.previews)):
            output.mkdir(parents=True, exist_ok=True)
        for kept in self._kept.rglob("*"):
            if kept.is_file() and kept.suffix != ".tmp":
                self._show(kept)
        return self

    def finish(self, metadata: dict[str, Any]) -> None:
        """See `KeptRun.finish`."""
        if self.writes:
            super().finish(metadata)

    def write(self, name: str, writer: Callable[[Path], None], *, durable: bool = True) -> None:
        """Make the file ``name`` by calling ``writer``, which writes atomically, with a path. Raises OSError."""
        if not self.writes:
            return
        kept = self._kept / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        if name == BEST and self._best_is_known and kept.exists():
            kept.replace(self._known_best)
            self._best_is_known = False
        writer(kept)
        self._show(kept, durable=durable)

    def save_state(self, writer: Callable[[Path], None]) -> None:
        """Make the file ``state``, from which a killed run resumes."""
        if self.writes:
            writer(self.state)
            self._best_is_known = True

    def say(self, *texts: str) -> None:
        """Tell the user, a line each."""
        for text in texts if self.writes else ():
            tqdm.write(text)

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write ``rows``, one or more, which share their keys, as a table with a header."""
        # A row is written every few steps, and is in the state too: the disk need not keep up.
        table = (list(rows[0]), [list(row.values()) for row in rows])
        self.write(name, lambda path: write_csv(path, *table, durable=False), durable=False)

    def _undo_best(self) -> None:
        """Put back the best checkpoint that ``state`` knows: a kill has undone the steps of a later one.

        Where results have not the same bits in every run, these steps may come out worse the second time.
        """
        self._best_is_known = self.state.exists()
        if self.finished is not None or not self._best_is_known or not self._known_best.exists():
            return
        with restarting(self.folder):
            state, best = (load_checkpoint(path).metadata for path in (self.state, self._known_best))
        if best["step"] == state["best_step"]:
            self._known_best.replace(self._kept / BEST)

    def _show(self, kept: Path, *, durable: bool = True) -> None:
        name = kept.relative_to(self._kept)
        shown = self.output / name
        if self.previews and name.parts[0] == PREVIEWS:
            shown = self.previews / name.relative_to(PREVIEWS)
        with atomic_path(shown, durable=durable) as temporary:
            shutil.copyfile(kept, temporary)
