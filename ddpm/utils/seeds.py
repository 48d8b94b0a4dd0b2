"""Independent random streams, all derived from the one ``seed`` of the run.

A stream has a key, words and whole numbers that say what it is for, so that drawing more from one never shifts another.
The keys are part of what a seed means: changing one changes published numbers.
"""

from zlib import crc32

import numpy as np
import torch


def seed_sequence(seed: int, *key: str | int) -> np.random.SeedSequence:
    """The entropy of the stream ``key`` (words, whole numbers ≥ 0) under ``seed`` ≥ 0."""
    return np.random.SeedSequence([seed, *(crc32(part.encode()) if isinstance(part, str) else part for part in key)])


def numpy_generator(seed: int, *key: str | int) -> np.random.Generator:
    """A NumPy generator for one stream."""
    return np.random.Generator(np.random.SFC64(seed_sequence(seed, *key)))


def torch_generator(seed: int, *key: str | int) -> torch.Generator:
    """A torch generator for one stream, on the CPU: its numbers are the same whatever the device that uses them."""
    state = seed_sequence(seed, *key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def stream_number(*key: str | int) -> int:
    """A 32-bit number for the stream ``key``, for generators that count: CRC-32 of the key's parts, slash between."""
    return crc32("/".join(map(str, key)).encode())
