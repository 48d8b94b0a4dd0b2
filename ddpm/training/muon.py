"""Muon (Jordan et al. 2024): momentum, orthogonalised matrix by matrix.

The same update as `torch.optim.Muon`, for convolutions too, with all matrices of one shape orthogonalised in one
batched product, in the order in which they lie in memory: for a small network on a CPU several times faster.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose every matrix is replaced by the nearest one with equal singular values.

    A convolution [out, in, k, k] counts as the matrix [out, in · k · k]. The update is scaled to AdamW's typical size,
    0.2 · √max(out, in · k · k) (Liu et al. 2025, "Muon is Scalable", §2.2), so that AdamW's learning rates fit.
    Weight decay is decoupled. Every parameter has two dimensions or more. precision: of the matrix products that
    orthogonalise, bfloat16 or float32; weights and momentum are float32.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. ``closure`` is there for the interface and must be None."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            gradients = [weight.grad for weight in weights]
            buffers = [self._buffer(weight) for weight in weights]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            directions = torch._foreach_lerp(gradients, buffers, group["momentum"])
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight, direction in zip(weights, directions, strict=True):
                matrix = _as_matrix(weight, weight)
                alike[matrix.shape].append((matrix, _as_matrix(direction, weight)))
            for shape, members in alike.items():
                matrices = [matrix for matrix, _ in members]
                updates = orthogonalize(torch.stack([direction for _, direction in members]), self.precision)
                scale = 0.2 * math.sqrt(max(shape))
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(updates), alpha=-group["lr"] * scale)

    def _buffer(self, weight: nn.Parameter) -> Tensor:
        state: dict[str, Any] = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def _as_matrix(tensor: Tensor, weight: Tensor) -> Tensor:
    """The tensor [out, …] as a matrix [out, n], its columns in the order in which those of ``weight`` lie in memory.

    That order does not change what is orthogonal, and the weight's own matrix is a view.
    """
    channels_last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return (tensor.movedim(1, -1) if channels_last else tensor).flatten(1)


def orthogonalize(matrices: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """Drive all singular values of each matrix of float32 [n, rows, columns] to about 1, by Newton-Schulz iteration.

    The quintic's coefficients are Jordan's: fast from small singular values, ending between about 0.7 and 1.2.
    Computed in ``precision``, bfloat16 as Jordan does or float32; returns float32.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.to(precision)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
