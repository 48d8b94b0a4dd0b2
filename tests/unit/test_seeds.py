import numpy as np
import torch

from ddpm.utils.seeds import numpy_generator, torch_generator


def test_streams_are_known_by_seed_and_key():
    names = [(1, "a"), (2, "a"), (1, "b"), (1, "c", 0, 1), (1, "c", 1, 0), (1, "c", 1, 1), (2, "c", 1, 1)]
    names += [(1,), (1, "a", "b"), (1, "b", "a"), (1, "ab")]
    first = [numpy_generator(*name).random(4).tolist() for name in names]
    assert [numpy_generator(*name).random(4).tolist() for name in names] == first
    assert len({tuple(values) for values in first}) == len(names)


def test_numpy_streams_are_the_same_on_every_machine_and_in_every_process():
    # From SFC64 seeded with [3407, crc32(b"split")]: a change here changes every split and every published number.
    expected = np.random.Generator(np.random.SFC64(np.random.SeedSequence([3407, 0xB1F59A11]))).random(3)
    assert numpy_generator(3407, "split").random(3).tolist() == expected.tolist()


def test_torch_streams_are_known_by_seed_and_key():
    names = [(1, "a"), (2, "a"), (1, "b"), (1, "a", 1)]
    first = [torch.rand(4, generator=torch_generator(*name)) for name in names]
    again = [torch.rand(4, generator=torch_generator(*name)) for name in names]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(values.tolist()) for values in first}) == 4


def test_a_seed_may_be_very_large():
    assert numpy_generator(2**70, "a").random() != numpy_generator(2**70 + 1, "a").random()
    torch.rand(1, generator=torch_generator(2**70, "a"))
