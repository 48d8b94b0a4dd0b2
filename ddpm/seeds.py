"""Independent random streams, all derived from the one ``seed`` of the run.

A stream is named by what it is for, so that drawing more from one never shifts another.
"""

from zlib import crc32

import numpy as np
import torch


def seed_sequence(seed: int, purpose: str, *index: int) -> np.random.SeedSequence:
    """The entropy of one stream: ``seed`` ≥ 0, what it is for, and optional whole numbers ≥ 0 (an image's index)."""
    return np.random.SeedSequence([seed, crc32(purpose.encode()), *index])


def numpy_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A NumPy generator for one stream."""
    return np.random.Generator(np.random.SFC64(seed_sequence(seed, purpose, *index)))


def torch_generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one stream, on ``device``."""
    state = seed_sequence(seed, purpose).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)
