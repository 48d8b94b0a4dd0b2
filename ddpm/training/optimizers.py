"""The optimizers by name, the learning rate over a run, and one step over all weights."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddpm.training.muon import Muon
from ddpm.utils.registry import Registry

OPTIMIZERS: Registry[Callable[..., list[torch.optim.Optimizer]]] = Registry("optimizer")
LR_DECAYS: Registry[Callable[[float], float]] = Registry("learning rate decay")
LR_DECAYS.register("cosine")(lambda progress: 0.5 * (1 + math.cos(math.pi * progress)))
LR_DECAYS.register("linear")(lambda progress: 1 - progress)
LR_DECAYS.register("none")(lambda _: 1.0)

# Layers that touch the image or the label rather than hidden features: Muon's premise does not hold there.
_EDGES = ("conv_in.", "conv_out.", "label_embedding.")


@OPTIMIZERS.register("adamw")
def adamw(network: nn.Module, lr: float, weight_decay: float, adam_beta2: float) -> list[torch.optim.Optimizer]:
    """AdamW on all weights: Loshchilov & Hutter 2019."""
    return [_adamw(list(network.parameters()), lr, weight_decay, adam_beta2)]


@OPTIMIZERS.register("muon")
def muon(
    network: nn.Module, lr: float, weight_decay: float, adam_beta2: float, precision: torch.dtype
) -> list[torch.optim.Optimizer]:
    """`Muon` on the weights of hidden layers; AdamW on first and last layers, label embedding, biases and norms."""
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, weight in network.named_parameters():
        (hidden if weight.ndim >= 2 and not name.startswith(_EDGES) else rest).append(weight)
    return [_adamw(rest, lr, weight_decay, adam_beta2), Muon(hidden, lr, weight_decay, precision=precision)]


def _adamw(weights: list[nn.Parameter], lr: float, weight_decay: float, adam_beta2: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr, betas=(0.9, adam_beta2), weight_decay=weight_decay, fused=True)


def lr_factor(step: int, total: int, warmup: int, decay: str) -> float:
    """The learning rate at ``step`` (from 0) as a fraction of its peak, in (0, 1].

    Linear warm-up over ``warmup`` steps, then the decay of that name in `LR_DECAYS`, towards its end at ``total``.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return LR_DECAYS[decay]((step - warmup) / max(1, total - warmup))


class Optimizer:
    """One step over all weights, whichever optimizers of torch they are divided among.

    precision: of an optimizer's own matrix products, where it has any.
    """

    def __init__(self, name: str, network: nn.Module, settings: object, precision: torch.dtype = torch.float32) -> None:
        given = {"network": network, "precision": precision}
        self._parts: list[torch.optim.Optimizer] = OPTIMIZERS.build(name, settings, **given)
        self._peaks = [[group["lr"] for group in part.param_groups] for part in self._parts]

    def step(self, factor: float) -> None:
        """Update the weights from their gradients at ``factor`` times the peak rates, then drop the gradients."""
        for part, peaks in zip(self._parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """All state as tensors named "part.parameter.key"."""
        return {
            f"{i}.{index}.{key}": value
            for i, part in enumerate(self._parts)
            for index, state in part.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        for i, part in enumerate(self._parts):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                number, index, key = name.split(".", 2)
                if int(number) == i:
                    state.setdefault(int(index), {})[key] = value
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
            for weight, values in part.state.items():
                for key, value in values.items():
                    # The fused kernels take for granted that weight and moments lie in memory in the same order.
                    if value.shape == weight.shape:
                        values[key] = torch.empty_like(weight).copy_(value)
