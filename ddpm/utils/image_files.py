"""Folders of images that are written batch by batch, in bounded memory, and read at once."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ddpm.utils.errors import DamagedFile
from ddpm.utils.files import load_arrays, save_arrays
from ddpm.utils.images import read_pngs, resize, write_rgb_pngs
from ddpm.utils.registry import Registry

IMAGES_PER_NPZ = 10_000


class ImageFiles(ExitStack):
    """Writes ``count`` images into ``folder``, ``size`` pixels a side, by so many threads. Raises OSError."""

    def __init__(self, folder: Path, count: int, size: int, workers: int) -> None:
        super().__init__()
        self.folder, self.count, self.size, self.workers = folder, count, size, workers
        self.next = 1

    def add(self, images: np.ndarray) -> None:
        """Take the next images, uint8 [n, c, h, w]; they may be written later."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what is left."""
        raise NotImplementedError


FORMATS: Registry[type[ImageFiles]] = Registry("format")


@FORMATS.register("png")
class Pngs(ImageFiles):
    """RGB PNGs 00001.png, 00002.png, …, written while the next batch is made."""

    def __init__(self, folder: Path, count: int, size: int, workers: int) -> None:
        super().__init__(folder, count, size, workers)
        self._threads = self.enter_context(ThreadPoolExecutor(workers))
        self._writing: list[Future[None]] = []

    def add(self, images: np.ndarray) -> None:  # noqa: D102
        self.finish()
        for part in np.array_split(images, min(self.workers, len(images))):
            given = (self.folder, part, self.next, self.count, self.size)
            self._writing.append(self._threads.submit(write_rgb_pngs, *given))
            self.next += len(part)

    def finish(self) -> None:  # noqa: D102
        while self._writing:
            self._writing.pop(0).result()


@FORMATS.register("npz")
class Npzs(ImageFiles):
    """Files images_1.npz, images_10001.npz, … with an array ``images``, uint8 [10000, c, h, w], the last one shorter.

    Their numbers have as many digits as ``count``: in the order of their names they are in that of the images.
    """

    def __init__(self, folder: Path, count: int, size: int, workers: int) -> None:
        super().__init__(folder, count, size, workers)
        self._waiting: list[np.ndarray] = []

    def add(self, images: np.ndarray) -> None:  # noqa: D102
        self._waiting.append(resize(images, self.size))
        while sum(map(len, self._waiting)) >= IMAGES_PER_NPZ:
            self._write(IMAGES_PER_NPZ)

    def finish(self) -> None:  # noqa: D102
        if self._waiting:
            self._write(IMAGES_PER_NPZ)

    def _write(self, most: int) -> None:
        together = np.concatenate(self._waiting)
        written, left = together[:most], together[most:]
        save_arrays(self.folder / f"images_{self.next:0{len(str(self.count))}d}.npz", images=written)
        self.next += len(written)
        self._waiting = [left] if len(left) else []


def read_images(folder: Path, workers: int) -> np.ndarray:
    """All images of a folder, in the order of the files' names: uint8 [n, c, h, w].

    The files are those of `Npzs` where there are any, else PNGs, see `read_pngs`. Raises MissingFile, DamagedFile.
    """
    files = sorted(folder.glob("images_*.npz"))
    if not files:
        return read_pngs(folder, workers)
    parts: list[np.ndarray] = []
    for file in files:
        images = load_arrays(file).get("images", np.empty(0))
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
            raise DamagedFile(f"{file} holds no array images of uint8 [n, c, h, w], as generate.format=npz writes it")
        if parts and images.shape[1:] != parts[0].shape[1:]:
            shapes = f"{list(images.shape[1:])} and those before it of {list(parts[0].shape[1:])}"
            raise DamagedFile(f"{file} holds images of the shape {shapes}")
        parts.append(images)
    return np.concatenate(parts)
