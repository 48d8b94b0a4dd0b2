import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from ddpm.data.idx import parse_idx, read_idx
from ddpm.utils.errors import DamagedFile, MissingFile


def idx(shape: tuple[int, ...], values: bytes, kind: int = 8) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + values


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 1, 3), (0, 4)])
def test_values_and_shape_are_those_of_the_file(shape: tuple[int, ...]):
    size = int(np.prod(shape))
    found = parse_idx(idx(shape, bytes(range(250, 250 + size))))
    assert found.dtype == np.uint8
    assert found.shape == shape
    assert found.ravel().tolist() == list(range(250, 250 + size))


def test_plain_and_gzipped_files_read_alike(tmp_path: Path):
    content = idx((2, 2), b"\x00\x01\xfe\xff")
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed").write_bytes(gzip.compress(content))
    assert read_idx(tmp_path / "plain").tolist() == read_idx(tmp_path / "packed").tolist() == [[0, 1], [254, 255]]


def test_real_digits_are_what_mnist_is_known_to_hold(raw: Path):
    images = read_idx(raw / "train-images-idx3-ubyte")
    labels = read_idx(raw / "train-labels-idx1-ubyte")
    assert images.shape == (60_000, 28, 28)
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert images.std() / 255 == pytest.approx(0.3081, abs=1e-4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not an IDX file"),
        (b"\x00\x00\x08", "is not an IDX file"),
        (b"\x89PNG\r\n", "is not an IDX file"),
        (idx((2,), b"\x00\x00", kind=0x0D), "is not an IDX file"),
        (struct.pack(">HBB", 0, 8, 0), "is not an IDX file"),
        (struct.pack(">HBBI", 0, 8, 2, 5), "does not hold what its header says"),
        (idx((2, 3), b"\x00" * 5), "does not hold what its header says"),
        (idx((2, 3), b"\x00" * 7), "does not hold what its header says"),
        (idx((2**32 - 1,) * 3, b"\x00" * 7), "does not hold what its header says"),
        (idx((1,) * 100, b"\x00"), "does not hold what its header says"),
        (idx((0, 2**32 - 1, 2**32 - 1), b""), "does not hold what its header says"),
    ],
    ids=[
        "empty",
        "three bytes",
        "PNG",
        "floats",
        "no dimensions",
        "cut header",
        "short",
        "long",
        "huge",
        "deep",
        "void",
    ],
)
def test_other_bytes_are_damaged(content: bytes, words: str):
    with pytest.raises(DamagedFile, match=f"digits {words}"):
        parse_idx(content, "digits")


def cut(packed: bytes) -> bytes:
    return packed[: len(packed) // 2]


def garble(packed: bytes) -> bytes:
    return packed[:12] + b"\xff" * 20 + packed[32:]


def miscount(packed: bytes) -> bytes:
    return packed[:-8] + bytes(4) + packed[-4:]


@pytest.mark.parametrize("harm", [cut, garble, miscount])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, harm: object):
    path = tmp_path / "digits.gz"
    path.write_bytes(harm(gzip.compress(idx((4, 100), np.random.default_rng(0).bytes(400)))))
    with pytest.raises(DamagedFile, match=r"digits\.gz"):
        read_idx(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(MissingFile, match="nothing is missing"):
        read_idx(tmp_path / "nothing")
