"""AdamW, alone or with Muon on the hidden matrices."""

import math

import torch
from torch import Tensor, nn

from ddpm.config import TrainConfig
from ddpm.training.muon import Muon

# Layers that touch the image or the label rather than hidden features: Muon's premise does not hold there.
_EDGES = ("conv_in.", "conv_out.", "label_embedding.")


def lr_factor(step: int, total: int, warmup: int, decay: str) -> float:
    """The learning rate at ``step`` (from 0) as a share of its peak, in (0, 1].

    Linear warm-up over ``warmup`` steps, then "cosine" or "linear" decay towards 0 at ``total``, or "none".
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "none": 1.0}[decay]


class Optimizer:
    """One step over all weights, whichever optimizers they are divided among.

    "adamw": Loshchilov & Hutter 2019, on everything. "muon": `Muon` on the weights of hidden layers, AdamW on first and
    last layers, the labels' embedding, biases and norms; one ``lr`` serves both.
    """

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self._lr = config.lr
        hidden: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, weight in network.named_parameters():
            matrix = weight.ndim >= 2 and not name.startswith(_EDGES)
            (hidden if matrix and config.optimizer == "muon" else rest).append(weight)
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, betas=(0.9, config.adam_beta2), weight_decay=config.weight_decay, fused=True)
        ]
        if hidden:
            self._parts.append(Muon(hidden, config.lr, config.weight_decay))

    def step(self, factor: float) -> None:
        """Update the weights from their gradients at ``factor`` · ``lr``, then drop the gradients."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self._lr * factor
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
