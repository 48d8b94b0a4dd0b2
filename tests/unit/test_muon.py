from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm.training.muon import Muon, orthogonalize

SHAPES = {"convolution": (6, 4, 3, 3), "wide": (5, 7), "tall": (9, 4), "1 × 1 convolution": (6, 4, 1, 1)}


def quintic(matrix: np.ndarray) -> np.ndarray:
    """Five Newton-Schulz steps on the singular values alone, in float64."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s /= np.sqrt((s**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return u * s @ v


def parameters(order: torch.memory_format = torch.contiguous_format) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in [*SHAPES.values(), SHAPES["wide"]]]
    return [nn.Parameter(w.to(memory_format=order) if w.ndim == 4 else w) for w in weights]


def gradient(weight: Tensor, seed: int) -> Tensor:
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(4, 4), (3, 20), (20, 3), (1, 8)])
def test_orthogonalization_acts_on_singular_values_alone(shape: tuple[int, int], rng: np.random.Generator):
    matrices = rng.normal(size=(3, *shape))
    found = orthogonalize(torch.from_numpy(matrices).float())
    for matrix, result in zip(matrices, found, strict=True):
        np.testing.assert_allclose(result, quintic(matrix), rtol=0, atol=2e-5)


def test_in_bfloat16_it_is_the_same_up_to_that_format(rng: np.random.Generator):
    matrices = torch.from_numpy(rng.normal(size=(3, 32, 288))).float()
    exact, rounded = orthogonalize(matrices), orthogonalize(matrices, torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() / exact.norm() < 0.03


def test_singular_values_end_near_one(rng: np.random.Generator):
    values = np.linalg.svd(orthogonalize(torch.from_numpy(rng.normal(size=(8, 16, 64))).float()), compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_a_matrix_does_not_depend_on_those_beside_it(rng: np.random.Generator):
    matrices = torch.from_numpy(rng.normal(size=(5, 6, 9))).float()
    torch.testing.assert_close(orthogonalize(matrices)[2], orthogonalize(matrices[2:3])[0], rtol=1e-5, atol=1e-6)


def test_nothing_is_orthogonalized_to_nothing():
    assert not orthogonalize(torch.zeros(2, 3, 4)).any()


@pytest.mark.parametrize("name", SHAPES)
def test_steps_agree_with_a_plain_float64_computation(name: str):
    place = list(SHAPES).index(name)
    weights = parameters()
    optimizer = Muon(weights, lr=0.05, weight_decay=0.1)
    expected = weights[place].detach().double().numpy().copy()
    momentum = np.zeros_like(expected)
    for seed in range(4):
        for weight in weights:
            weight.grad = gradient(weight, seed)
        optimizer.step()
        g = gradient(weights[place], seed).double().numpy()
        momentum = 0.95 * momentum + 0.05 * g
        matrix = (0.05 * g + 0.95 * momentum).reshape(len(g), -1)
        update = 0.2 * np.sqrt(max(matrix.shape)) * quintic(matrix)
        expected = expected * (1 - 0.05 * 0.1) - 0.05 * update.reshape(expected.shape)
    np.testing.assert_allclose(weights[place].detach(), expected, rtol=0, atol=2e-5)


def test_steps_agree_with_torchs_muon_up_to_its_bfloat16():
    weights = parameters()
    matrices = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in weights]
    ours = Muon(weights, lr=0.05, weight_decay=0.1)
    reference = torch.optim.Muon(matrices, lr=0.05, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    before = [weight.detach().clone() for weight in weights]
    for seed in range(3):
        for weight, matrix in zip(weights, matrices, strict=True):
            weight.grad = gradient(weight, seed)
            matrix.grad = weight.grad.flatten(1).clone()
        ours.step()
        reference.step()
    for weight, matrix, start in zip(weights, matrices, before, strict=True):
        moved = (weight.detach() - start).flatten(1)
        error = (weight.detach().flatten(1) - matrix.detach()).norm() / moved.norm()
        assert error < 0.03


@pytest.mark.parametrize("order_of_gradient", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_memory_order_does_not_matter(order_of_gradient: torch.memory_format):
    plain, other = parameters(), parameters(torch.channels_last)
    for weights, order in ((plain, torch.contiguous_format), (other, order_of_gradient)):
        optimizer = Muon(weights, lr=0.05, weight_decay=0.1)
        for seed in range(3):
            for weight in weights:
                grad = gradient(weight, seed)
                weight.grad = grad.to(memory_format=order) if grad.ndim == 4 else grad
            optimizer.step()
    for a, b in zip(plain, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert other[0].is_contiguous(memory_format=torch.channels_last)


def test_a_parameter_without_a_gradient_stays():
    weights = parameters()
    still = weights[1].detach().clone()
    weights[0].grad = gradient(weights[0], 0)
    Muon(weights, lr=0.05, weight_decay=0.1).step()
    assert torch.equal(weights[1], still)


class Counting(TorchDispatchMode):
    """Counts what computes: not the views and the lists of them, which start nothing on a device."""

    VIEWS = ("view", "_unsafe_view", "unbind", "detach", "transpose", "alias")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        self.count += function.overloadpacket.__name__ not in self.VIEWS
        return function(*args, **kwargs or {})


def test_a_step_starts_as_much_work_for_many_matrices_of_a_shape_as_for_few():
    counts = []
    for layers in (4, 16):
        weights = [nn.Parameter(torch.ones(6, 4, 3, 3)) for _ in range(layers)]
        muon = Muon(weights, lr=0.1, weight_decay=0.1)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        muon.step()
        with Counting() as counting:
            muon.step()
        counts.append(counting.count)
    assert counts[0] == counts[1] < 40
