"""The IDX format of the original MNIST files (described on the MNIST page of LeCun, Cortes and Burges)."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from ddpm.utils.errors import DamagedFile, MissingFile

_UNSIGNED_BYTES = b"\0\0\x08"
_GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: Path) -> bytes:
    """The contents of ``path``, gunzipped where it is a gzip file. Raises MissingFile or DamagedFile."""
    try:
        return decompress(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFile(f"{path} is missing") from error


def decompress(content: bytes, name: str) -> bytes:
    """``content`` gunzipped where it is gzip, else itself. Raises DamagedFile; ``name`` stands in the message."""
    try:
        return gzip.decompress(content) if content.startswith(_GZIP_MAGIC) else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DamagedFile(f"{name} is a damaged gzip file ({error})") from error


def parse_idx(content: bytes, name: str = "the IDX file") -> np.ndarray:
    """Decode IDX bytes of type unsigned byte.

    Returns a uint8 array of the shape in the header (images: [n, height, width], labels: [n]).
    Raises DamagedFile for any header or length that does not fit; ``name`` stands in the message.
    """
    dimensions = content[3] if content[:3] == _UNSIGNED_BYTES and len(content) > 3 else 0
    if not dimensions:
        raise DamagedFile(f"{name} is not an IDX file of unsigned bytes")
    try:
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        # A bytearray: the array is writable.
        return np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (struct.error, ValueError) as error:
        raise DamagedFile(f"{name} does not hold what its header says ({error})") from error


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file, plain or gzipped: see `parse_idx`."""
    return parse_idx(read_bytes(path), str(path))
