import numpy as np
import pytest
import torch
from torch import nn

from ddpm.training.ema import Ema


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()


def set_weights(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            weight.fill_(value)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_average_is_the_weighted_sum_of_all_weights_seen(decay: float):
    module = network()
    values = np.random.default_rng(0).normal(size=31)
    set_weights(module, values[0])
    ema = Ema(module, decay)
    for value in values[1:]:
        set_weights(module, value)
        ema.update()
    kept = np.array([min(decay, (1 + n) / (10 + n)) for n in range(30)])
    weights = np.append(1.0, 1 - kept) * np.append(np.cumprod(kept[::-1])[::-1], 1.0)
    assert weights.sum() == pytest.approx(1)
    for average in ema.average:
        np.testing.assert_allclose(average, (weights * values).sum(), rtol=1e-12)


def test_decay_rises_from_a_tenth_to_its_final_value():
    module = network()
    ema = Ema(module, 0.4)
    used = []
    for _ in range(8):
        set_weights(module, 0.0)
        for average in ema.average:
            average.fill_(1.0)
        ema.update()
        used.append(ema.average[0][0, 0].item())
    np.testing.assert_allclose(used, [1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 0.4, 0.4], rtol=1e-12)


def test_no_decay_is_the_latest_weights():
    module = network()
    ema = Ema(module, 0.0)
    set_weights(module, 3.25)
    ema.update()
    assert all((average == 3.25).all() for average in ema.average)


def test_swapping_twice_restores_every_bit():
    module = network().float()
    ema = Ema(module, 0.9)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_()
    ema.update()
    weights, averages = ([tensor.detach().clone() for tensor in side] for side in (module.parameters(), ema.average))
    ema.swap()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), averages, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ema.average, weights, strict=True))
    ema.swap()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), weights, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ema.average, averages, strict=True))


def test_an_average_continues_from_its_state():
    module = network()
    whole, part = Ema(module, 0.9), Ema(module, 0.9)
    states = []
    for n in range(6):
        set_weights(module, float(n))
        whole.update()
        part.update()
        if n == 2:
            states = {name: value.clone() for name, value in part.state_dict().items()}
            part = Ema(module, 0.9)
            part.load_state_dict(states, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.average, part.average, strict=True))


def test_state_is_loadable_into_the_network():
    module, other = network(), network()
    ema = Ema(module, 0.9)
    set_weights(module, 2.0)
    ema.update()
    other.load_state_dict(ema.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), ema.average, strict=True))
