"""Exponential moving average of a network's weights."""

import torch
from torch import Tensor, nn


class Ema:
    """average ← d · average + (1 − d) · weight, with d = min(decay, (1 + n) / (10 + n)) at the n-th update.

    The ramp keeps the untrained weights of a young run out of the average. DDPM, §4 and its reference code.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._weights: list[Tensor] = list(network.parameters())
        self._names = [name for name, _ in network.named_parameters()]
        self.average = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's weights: one update."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, self._weights, 1.0 - decay)
        self.updates += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights with the average; a second call restores them."""
        held = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, self.average)
        torch._foreach_copy_(self.average, held)

    def state_dict(self) -> dict[str, Tensor]:
        """The average by parameter name, loadable into the network."""
        return dict(zip(self._names, self.average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], updates: int) -> None:
        """Continue from an average saved after so many updates."""
        self.updates = updates
        torch._foreach_copy_(self.average, [state[name] for name in self._names])
