"""Training times by their losses, so that the estimate of the loss has less variance."""

from dataclasses import replace

import torch
from torch import Tensor

from ddpm.diffusion.objective import Objective
from ddpm.utils.errors import DdpmError

_LOSSES = 10  # of each time, which its probability is of
_UNIFORM = 0.001  # of all times, so that none is forgotten


class LossAware:
    """The last losses at each time, and the objective with times of the density that they give.

    p_t ∝ √E[L_t²] over the last 10 losses of every time, each loss then weighted by 1 / (T p_t); all times alike until
    every one has 10. Nichol & Dhariwal 2021, "Improved DDPM", eq. 18. It pays where losses differ much, as of the
    weighting "vlb".
    """

    def __init__(self, objective: Objective) -> None:
        """Raises DdpmError on an Apple GPU, which has no float64."""
        if objective.alpha_bar.device.type == "mps":
            raise DdpmError(
                "train.time_density=loss_aware needs float64, which Apple's GPUs lack: set runtime.device to cpu."
            )
        count = len(objective.density)
        self.objective = objective
        # A row more than there are times, for losses that are not kept: to leave them out would wait for a GPU.
        self.losses = torch.zeros(count + 1, _LOSSES, device=objective.alpha_bar.device)
        self.seen = torch.zeros(count, dtype=torch.int64, device=objective.alpha_bar.device)

    def density(self) -> Tensor:
        """How likely each time is: float64 [T], summing to 1."""
        size = self.losses[:-1].double().square().mean(1).sqrt()
        by_loss = (1.0 - _UNIFORM) * size / size.sum() + _UNIFORM / len(size)
        return torch.where((self.seen >= _LOSSES).all(), by_loss, 1.0 / len(size))

    def current(self) -> Objective:
        """The objective with times of that density, and weights that keep its expectation."""
        density, held = self.density(), self.objective
        weights = (held.weights / (len(density) * density)).float()
        bound = None if held.bound_weights is None else (held.bound_weights / (len(density) * density)).float()
        return replace(held, density=density, weights=weights, bound_weights=bound)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take in the losses [n], not weighted by the density, of images at times ``t`` [n], in their order."""
        order = t.argsort(stable=True)
        t, losses = t[order], losses[order].float()
        # Of several losses at one time: which it is, and how many there are.
        place = torch.arange(len(t), device=t.device) - torch.searchsorted(t, t)
        count = torch.zeros_like(self.seen).scatter_add_(0, t, torch.ones_like(t))
        row = torch.where(place >= count[t] - _LOSSES, t, len(self.seen))
        self.losses[row, (self.seen[t] + place) % _LOSSES] = losses
        self.seen += count

    def state_dict(self) -> dict[str, Tensor]:
        """What continues it."""
        return {"losses": self.losses[:-1], "seen": self.seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        self.losses[:-1].copy_(state["losses"])
        self.seen.copy_(state["seen"])
