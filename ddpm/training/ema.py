"""Moving averages of a network's weights: the exponential one, and those of a length relative to the run's."""

import numpy as np
import torch
from torch import Tensor, nn

LENGTHS = (0.05, 0.1)  # of the averages from which `ddpm.training.posthoc` makes those of other lengths: EDM2, §3.2


class Ema:
    """average ← d · average + (1 − d) · weight, with d = min(decay, (1 + n) / (10 + n)) after n updates.

    The ramp, of TensorFlow's `ExponentialMovingAverage`, keeps the untrained weights of a young run out of the average.
    DDPM, appendix B, has a constant decay.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._weights: list[Tensor] = list(network.parameters())
        self._names = [name for name, _ in network.named_parameters()]
        self.average = [weight.detach().clone() for weight in self._weights]

    def next_decay(self) -> float:
        """How much of the average the next update keeps."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's weights: one update."""
        torch._foreach_lerp_(self.average, self._weights, 1.0 - self.next_decay())
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


class PowerEma(Ema):
    """The average of weights θ(τ) up to now, t, by the power function profile p(τ) ∝ τ^γ of a length.

    Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", eq. 127: the update of an
    `Ema` with d = (1 − 1 / t)^(γ + 1) at the t-th update, from 1. The initial weights are no part of it.
    """

    def __init__(self, network: nn.Module, length: float) -> None:
        super().__init__(network, decay=1.0)
        self.power = power(length)

    def next_decay(self) -> float:
        """How much of the average the next update keeps."""
        return float((1 - 1 / (self.updates + 1)) ** (self.power + 1))


def power(length: float) -> float:
    """The exponent γ of the profile τ^γ on [0, t] whose standard deviation is ``length`` · t, in (0, 12^-0.5] (γ = 0).

    Eq. 123, length² = (γ + 1) / ((γ + 2)² (γ + 3)), solved for γ: eq. 126 and algorithm 2.
    """
    ratio = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - ratio, 12.0 - ratio]).real.max())
