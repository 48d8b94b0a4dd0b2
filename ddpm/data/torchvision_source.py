"""A data set that torchvision knows: its loader downloads the published archives, checks their MD5 and reads them."""

import hashlib
import http.client
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.data.fetching import check_place, from_first_place
from ddpm.data.image_set import ImageSet, read_image_set, write_image_set
from ddpm.utils.errors import DamagedFile, DdpmError
from ddpm.utils.files import atomic_folder, read_json, sha256, write_json

TIMEOUT_SECONDS = 15
_PARTS, _DIGESTS = ("train", "test"), "sha256.json"

Read = tuple[np.ndarray, np.ndarray, Sequence[str]]


class TorchvisionSource:
    """See `ddpm.data.sources.Source`. What is read is kept as one image set a part, with the SHA-256 of both files.

    name: of the data set, as in the settings. loader: the name of its class in torchvision.datasets. archives: gives,
    from that class, the published files and their MD5. where: in which folder the class looks for them. read: makes
    (images uint8 [n, c, h, w], labels int64 [n], class names) of the class, the folder and the part.
    """

    labelled = True

    def __init__(
        self,
        name: str,
        loader: str,
        archives: Callable[[Any], Mapping[str, str]],
        where: str,
        read: Callable[[Any, Path, str], Read],
    ) -> None:
        self.name, self.loader, self.archives, self.where, self.read = name, loader, archives, where, read

    def fetch(self, place: str, folder: Path) -> str:
        """Make train.npz and test.npz in ``folder``; what else lies there goes.

        place: `mirror` or `auto` (torchvision's address), or the path of a folder that holds the published archives.
        Raises DdpmError.
        """
        check_place(place, ("mirror",), folder)
        if self._complete(folder):
            return "already there"
        # Imported here: torchvision takes seconds to load.
        import torchvision.datasets

        loader = getattr(torchvision.datasets, self.loader)
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-") as scratch:
            root = Path(scratch)

            def copy(given: Path) -> None:
                (root / self.where).mkdir(parents=True, exist_ok=True)
                for archive, md5 in self.archives(loader).items():
                    if not (given / archive).is_file():
                        raise DdpmError(f"{given} holds no {archive}")
                    shutil.copyfile(given / archive, root / self.where / archive)
                    with (given / archive).open("rb") as content:
                        found = hashlib.file_digest(content, "md5").hexdigest()
                    if found != md5:
                        raise DamagedFile(f"{given / archive} has MD5 {found[:12]}… instead of {md5[:12]}…")
                self._write(loader, root, folder)

            return from_first_place(self.name, place, {"mirror": lambda: self._write(loader, root, folder)}, copy)

    def load(self, folder: Path, part: str) -> ImageSet:
        """Read the "train" or the "test" images. Raises MissingFile, DamagedFile."""
        return read_image_set(folder / f"{part}.npz")

    def _write(self, loader: Any, root: Path, folder: Path) -> None:  # noqa: ANN401
        """Let torchvision bring what ``root`` does not hold yet, and keep its images. Raises DdpmError."""
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT_SECONDS)  # torchvision has none
        try:
            parts = {part: self.read(loader, root, part) for part in _PARTS}
        except (RuntimeError, OSError, http.client.HTTPException) as error:
            raise DdpmError(str(getattr(error, "reason", None) or error)) from error
        finally:
            socket.setdefaulttimeout(before)
        with atomic_folder(folder) as new:
            for part, (images, labels, names) in parts.items():
                given = np.ascontiguousarray(images), labels, np.arange(len(images))
                write_image_set(new / f"{part}.npz", ImageSet(*given, len(names), self.name, tuple(names)))
            write_json(new / _DIGESTS, self._digests(new))

    def _complete(self, folder: Path) -> bool:
        try:
            return read_json(folder / _DIGESTS) == self._digests(folder)
        except (DdpmError, OSError):
            return False

    def _digests(self, folder: Path) -> dict[str, str]:
        return {"name": self.name} | {part: sha256(folder / f"{part}.npz") for part in _PARTS}


def digits(loader: Any, root: Path, part: str, **which: str) -> Read:  # noqa: ANN401
    """What a loader like MNIST's holds."""
    found = loader(root, train=part == "train", download=True, **which)
    return found.data.numpy()[:, None], found.targets.numpy().astype(np.int64), found.classes


def cifar(loader: Any, root: Path, part: str) -> Read:  # noqa: ANN401
    """What a loader like CIFAR-10's holds."""
    found = loader(root, train=part == "train", download=True)
    return found.data.transpose(0, 3, 1, 2), np.array(found.targets, np.int64), found.classes
