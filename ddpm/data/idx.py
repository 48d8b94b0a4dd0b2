"""The IDX format of the original MNIST files (described on the MNIST page of LeCun, Cortes and Burges)."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from ddpm.utils.errors import DamagedFile, MissingFile

_UNSIGNED_BYTE = 0x08
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
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE or content[3] == 0:
        raise DamagedFile(f"{name} is not an IDX file of unsigned bytes")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DamagedFile(f"{name} ends inside its header")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DamagedFile(f"{name} holds {len(content) - start} values where its header promises {math.prod(shape)}")
    # A bytearray: the array is writable.
    values = np.frombuffer(bytearray(content), np.uint8, offset=start)
    try:
        return values.reshape(shape)
    except ValueError as error:  # more dimensions than NumPy takes, or none of length 0 beside immense others
        raise DamagedFile(f"{name} has the impossible shape {shape}") from error


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file, plain or gzipped: see `parse_idx`."""
    return parse_idx(read_bytes(path), str(path))
