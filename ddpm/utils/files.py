"""Writing files so that a reader never meets half of one."""

import csv
import errno
import glob
import hashlib
import json
import math
import os
import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil

from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; flush it and rename it to ``path`` when the block ends well.

    Whatever ends the process, at ``path`` stands the old file or the whole new one; whatever ends the machine, only
    where ``durable``, which waits for the disk. The temporary file is removed when the block ends, or by the next call
    where the process was killed. Raises whatever the block raises, and OSError that names ``path`` when it cannot be
    written.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        if durable:
            _flush(temporary)
        temporary.replace(path)
        if durable:
            _flush(path.parent)
    except OSError as error:
        # A write that fails names no file, and the temporary name tells nobody anything.
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; it takes the place of ``path`` when the block ends well.

    What stood at ``path`` before stays until then. Raises whatever the block raises, where an OSError names
    the temporary folder or a file in it with ``path`` instead.
    """
    if path.is_symlink():
        path = path.resolve()  # the link stays, and what it leads to is written
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        yield temporary
        _flush_all()  # thousands of small files: flushing them one by one takes ten times as long
        old = temporary.with_name(f".{path.name}.old.{os.getpid()}.tmp")
        if path.is_dir():
            path.replace(old)
        temporary.replace(path)
        shutil.rmtree(old, ignore_errors=True)
        _flush(path.parent)
    except OSError as error:
        if not (name := str(error.filename)).startswith(str(temporary)):
            raise
        # The temporary name tells nobody anything.
        raise OSError(error.errno, error.strerror, f"{path}{name.removeprefix(str(temporary))}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(path: Path) -> None:
    """Raises DdpmError where `atomic_folder` would replace something: a file, a folder that holds some, the present
    folder or one above it.
    """
    if path.name in ("", "..") or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise DdpmError(f"{path} is there already: name a new folder, or delete it first.")


def _temporary(path: Path) -> Path:
    """A path beside ``path`` where nothing is, named after this process; what killed ones left there is removed."""
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        owner = leftover.name.split(".")[-2]
        if owner.isdigit() and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _flush_all() -> None:
    """Wait until all that was written is on the disk; Windows has no call for that."""
    if hasattr(os, "sync"):
        os.sync()


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk; on Windows a file alone, opened for writing."""
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems, as of network shares, cannot flush a folder.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def significant(values: Any) -> Any:  # noqa: ANN401
    """The same nested values with every float at six significant digits: two machines that differ in the last bits of
    a sum then write the same file.
    """
    if isinstance(values, Mapping):
        return {key: significant(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [significant(value) for value in values]
    return float(f"{values:.6g}") if isinstance(values, float) else values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` as indented JSON with the keys in the order given. Raises OSError; NaN is a ValueError."""
    text = json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote. Raises MissingFile or DamagedFile."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is missing") from error
    except (ValueError, TypeError) as error:
        raise DamagedFile(f"{path} is no JSON object ({error})") from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, durable: bool = True) -> None:
    """Write a table with a header, see `atomic_path`. Raises OSError."""
    with atomic_path(path, durable=durable) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def sha256(*paths: Path) -> str:
    """Hexadecimal SHA-256 of the contents of ``paths``, one after the other. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def arrays_sha256(*arrays: np.ndarray) -> str:
    """Hexadecimal SHA-256 of the values of ``arrays``, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def save_arrays(path: Path, **arrays: np.ndarray | float) -> None:
    """Store named arrays as an uncompressed npz, atomically: equal arrays give equal bytes. Raises OSError.

    By any release of Python: np.savez asks for headers of 64 bits, which Python 3.11.4 began to write differently.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, values in arrays.items():
            array = np.asanyarray(values)
            member = zipfile.ZipInfo(f"{name}.npy")
            member.file_size = array.nbytes  # by which zipfile chooses the headers
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def load_arrays(path: Path, map_above: float = math.inf) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote. Raises MissingFile or DamagedFile.

    Arrays of more than ``map_above`` bytes are memory-mapped: what is not looked at is not read. A change of them stays
    in memory.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _array(arrays, path, name, map_above) for name in arrays.files}
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is missing") from error
    except (OSError, MemoryError):  # of the machine, not of the file
        raise
    except Exception as error:  # zipfile, zlib and numpy raise half a dozen types for a damaged archive
        raise DamagedFile(f"{path} is damaged ({error})") from error


def _array(arrays: Any, path: Path, name: str, map_above: float) -> np.ndarray:  # noqa: ANN401
    """An array of the open npz at ``path``: see `load_arrays`. A compressed one cannot be mapped."""
    member = arrays.zip.NameToInfo.get(f"{name}.npy")
    if member is None or member.file_size <= map_above or member.compress_type != zipfile.ZIP_STORED:
        return cast(np.ndarray, arrays[name])
    with path.open("rb") as file:
        file.seek(member.header_offset)
        name_length, extra_length = struct.unpack("<26x2H", file.read(30))
        file.seek(name_length + extra_length, os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        return np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran else "C")


def scratch_array(shape: tuple[int, ...], folder: Path, map_above: float) -> np.ndarray:
    """Zeros, uint8, to be filled; of more than ``map_above`` bytes mapped onto an unnamed file in ``folder``.

    Raises OSError.
    """
    if math.prod(shape) <= map_above:
        return np.zeros(shape, np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))  # on a full disk a later write ends the process
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(folder)) from error
        return np.memmap(Path(file.name), np.uint8, "r+", shape=shape)
