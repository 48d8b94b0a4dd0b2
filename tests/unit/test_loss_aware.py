from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from ddpm.diffusion.objective import build_objective
from ddpm.training.loss_aware import LossAware
from ddpm.utils.errors import DdpmError


def loss_aware(timesteps: int = 4, *, learned_variance: bool = False) -> LossAware:
    settings = SimpleNamespace(
        schedule="cosine", timesteps=timesteps, target="eps", weighting="simple", time_density="loss_aware",
        time_sampling="uniform", learned_variance=learned_variance, self_conditioning=False, vlb_weight=0.25,
    )  # fmt: skip
    return LossAware(build_objective(settings, settings, settings))


def test_all_times_are_alike_until_each_has_ten_losses():
    times = loss_aware()
    for _ in range(9):
        times.update(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
        assert torch.equal(times.density(), torch.full((4,), 0.25, dtype=torch.float64))
    times.update(torch.arange(3), torch.ones(3))
    assert times.density().unique().tolist() == [0.25]
    times.update(torch.tensor([3]), torch.ones(1))
    assert times.density()[3] > times.density()[0]


def test_the_density_is_by_the_root_of_the_mean_square_of_the_last_ten_losses(rng: np.random.Generator):
    times, losses = loss_aware(), {t: [] for t in range(4)}
    for _ in range(30):
        t, found = rng.integers(4, size=16), rng.uniform(0.1, 5.0, size=16)
        times.update(torch.from_numpy(t), torch.from_numpy(found))
        for each, loss in zip(t.tolist(), found.tolist(), strict=True):
            losses[each].append(loss)
    # Nichol & Dhariwal 2021, eq. 18, with their 0.1 % of all times alike.
    size = np.array([np.sqrt(np.mean(np.square(losses[t][-10:]))) for t in range(4)])
    np.testing.assert_allclose(times.density(), 0.999 * size / size.sum() + 0.001 / 4, rtol=1e-6)


def test_more_than_ten_losses_of_one_time_at_once_leave_the_last_ten():
    times = loss_aware(2)
    t = torch.tensor([0] * 25 + [1] * 10)
    times.update(t, torch.cat([torch.zeros(15), torch.ones(10), torch.ones(10)]))
    torch.testing.assert_close(times.density(), torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_the_expected_loss_is_that_of_times_alike():
    times = loss_aware()
    for _ in range(10):
        times.update(torch.arange(4), torch.tensor([1.0, 2.0, 4.0, 9.0]))
    current, errors = times.current(), torch.tensor([1.0, 2.0, 4.0, 9.0])
    expected = sum(float(current.density[t] * current.loss(errors[t : t + 1], torch.tensor([t]))) for t in range(4))
    assert expected == pytest.approx(4.0, rel=1e-6)
    # Of losses as large as they are thought to be, every image's weighted loss is nearly the mean: no variance is left.
    each = [current.loss(errors[t : t + 1], torch.tensor([t])).item() for t in range(4)]
    assert max(each) < 1.02 * min(each)


def test_the_expected_loss_with_a_learned_variance_is_that_of_times_alike():
    times = loss_aware(learned_variance=True)
    for _ in range(10):
        times.update(torch.arange(4), torch.tensor([1.0, 2.0, 4.0, 9.0]))
    current, errors = times.current(), torch.tensor([[1.0, 8.0], [2.0, 6.0], [4.0, 4.0], [9.0, 2.0]])
    expected = sum(float(current.density[t] * current.loss(errors[t : t + 1], torch.tensor([t]))) for t in range(4))
    # L_simple, the mean 4, and λ times the bound, the sum 20 over times (Nichol & Dhariwal 2021, eq. 16).
    assert expected == pytest.approx(4.0 + 0.25 * 20.0, rel=1e-6)


def test_it_continues_from_its_state():
    times, again = loss_aware(), loss_aware()
    for step in range(12):
        times.update(torch.arange(4), torch.arange(4.0) + step)
    again.load_state_dict({name: tensor.clone() for name, tensor in times.state_dict().items()})
    for each in (times, again):
        each.update(torch.tensor([2]), torch.tensor([100.0]))
    assert torch.equal(times.density(), again.density())


def test_an_apple_gpu_is_refused():
    there = Mock(density=[1.0], alpha_bar=Mock(device=torch.device("mps")))
    with pytest.raises(DdpmError, match=r"loss_aware needs float64, which Apple.s GPUs lack: set "):
        LossAware(there)
