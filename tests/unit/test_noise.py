from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ddpm.diffusion.noise import ImageNoise, normal_noise, normal_table, philox

CPU = torch.device("cpu")


def words(*values: int) -> list[Tensor]:
    return [torch.tensor([value]) for value in values]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_vectors_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
):
    a, b, c, d = words(*counter)
    assert [word.item() for word in philox((a, b, c, d), key)] == list(expected)


def test_the_table_is_standard_normal():
    table = normal_table(CPU)
    assert torch.equal(table, -table.flip(0))
    assert (table.diff() > 0).all()
    assert table.double().square().mean().item() == pytest.approx(1, abs=1e-6)
    expected = stats.norm.ppf((np.arange(65536) + 0.5) / 65536)
    assert np.allclose(table.numpy(), expected, rtol=2e-5)


def test_the_noise_is_philox_looked_up_in_the_table():
    seed, stream, draw, image = (5 << 32) + 7, 11, 3, 2**31 + 5
    found = normal_noise(seed, stream, draw, torch.tensor([image]), (1, 3, 7)).flatten()
    for place in range(21):
        block, place_in_block = divmod(place, 8)
        a, b, c, d = words(block, draw, image, stream)
        word = int(philox((a, b, c, d), (7, 5))[place_in_block // 2])
        assert found[place] == normal_table(CPU)[word >> 16 * (place_in_block % 2) & 0xFFFF]


def noises(numbers: Sequence[int], seed: int = 3407, replicate: int = 0, count: int = 3) -> Tensor:
    """The first ``count`` noises of these images: [count, images, 1, 4, 4]."""
    noise = ImageNoise(seed, replicate, numbers, (1, 4, 4), CPU)
    return torch.stack([noise() for _ in range(count)])


@pytest.mark.parametrize("batch", [[7], [7, 1], [1, 2, 7, 8], list(range(100, 0, -1))])
def test_an_image_has_the_same_noise_in_every_batch(batch: list[int]):
    assert torch.equal(noises(batch)[:, batch.index(7)], noises(range(1, 20))[:, 6])


def test_images_replicates_seeds_and_steps_have_noises_of_their_own():
    everything = torch.cat([noises([1, 2]), noises([1, 2], replicate=1), noises([1, 2], seed=3408)])
    flat = everything.reshape(-1, 16)
    assert len(flat.unique(dim=0)) == len(flat) == 18


def test_noise_is_standard_normal():
    noise = ImageNoise(1, 0, range(1000), (1, 28, 28), CPU)()
    assert noise.dtype == torch.float32
    assert noise.shape == (1000, 1, 28, 28)
    assert noise.mean().item() == pytest.approx(0, abs=0.005)
    assert noise.var().item() == pytest.approx(1, abs=0.01)
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.06)


def test_noises_of_neighbouring_images_are_uncorrelated():
    noise = ImageNoise(1, 0, range(1001), (1, 28, 28), CPU)().flatten(1)
    assert (noise[1:] * noise[:-1]).mean().item() == pytest.approx(0, abs=0.005)


def test_noise_has_no_period_and_its_distribution_is_normal():
    noise = ImageNoise(1, 0, range(200), (1, 28, 28), CPU)
    values = torch.stack([noise() for _ in range(5)]).flatten().numpy()
    assert stats.kstest(values, stats.norm.cdf).pvalue > 0.001
    assert len(np.unique(values)) > 65000  # of 65,536 places, some of which 784,000 numbers may leave out
