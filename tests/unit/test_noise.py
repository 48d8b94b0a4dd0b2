from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ddpm.diffusion.noise import ImageNoise


def noises(numbers: Sequence[int], seed: int = 3407, replicate: int = 0, count: int = 3) -> Tensor:
    """The first ``count`` noises of these images: [count, images, 1, 4, 4]."""
    noise = ImageNoise(seed, replicate, numbers, (1, 4, 4), torch.device("cpu"))
    return torch.stack([noise() for _ in range(count)])


@pytest.mark.parametrize("batch", [[7], [7, 1], [1, 2, 7, 8], list(range(100, 0, -1))])
def test_an_image_has_the_same_noise_in_every_batch(batch: list[int]):
    assert torch.equal(noises(batch)[:, batch.index(7)], noises(range(1, 20))[:, 6])


def test_images_replicates_seeds_and_steps_have_noises_of_their_own():
    everything = torch.cat([noises([1, 2]), noises([1, 2], replicate=1), noises([1, 2], seed=3408)])
    flat = everything.reshape(-1, 16)
    assert len(flat.unique(dim=0)) == len(flat) == 18


def test_noise_is_standard_normal():
    noise = ImageNoise(1, 0, range(1000), (1, 28, 28), torch.device("cpu"))()
    assert noise.dtype == torch.float32
    assert noise.shape == (1000, 1, 28, 28)
    assert noise.mean().item() == pytest.approx(0, abs=0.005)
    assert noise.var().item() == pytest.approx(1, abs=0.01)
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.06)


def test_noises_of_neighbouring_images_are_uncorrelated():
    noise = ImageNoise(1, 0, range(1001), (1, 28, 28), torch.device("cpu"))().flatten(1)
    assert (noise[1:] * noise[:-1]).mean().item() == pytest.approx(0, abs=0.005)
