"""From a network's prediction to what samplers see: x̂_0."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddpm.diffusion.guidance import UNGUIDED, Guidance
from ddpm.diffusion.objective import Predict
from ddpm.diffusion.process import Target
from ddpm.diffusion.schedule import Schedule
from ddpm.models.networks import NULL_LABEL


@dataclass(frozen=True)
class Denoiser:
    """A function (x_t [n, c, h, w], training time t) -> x̂_0 of the same shape, clipped to [-1, 1] where ``clip`` is.

    Clipping x̂_0 is what DDPM's reference code does at every step. predict: the network. target: what it predicts.
    schedule: the one it was trained on. labels: int64 [n], the class labels to condition on, or None.
    """

    predict: Predict
    target: Target
    schedule: Schedule
    clip: bool
    guidance: Guidance = UNGUIDED
    labels: Tensor | None = None

    def conditioned(self, labels: Tensor | None) -> "Denoiser":
        """The same denoiser for images of these class labels."""
        return replace(self, labels=labels)

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        """The network's x̂_0 at time ``t``: float32."""
        alpha_bar = self.schedule.alpha_bar[t]
        times = torch.full((len(x_t),), t, device=x_t.device)
        # A copy: a network in a CUDA graph writes every result to the same place.
        prediction = self.predict(x_t, times, self.labels).to(torch.float32, copy=True)
        if self.labels is not None and self.guidance.is_active(alpha_bar):
            null = self.predict(x_t, times, torch.full_like(self.labels, NULL_LABEL))
            prediction = self.guidance.combine(null.to(torch.float32, copy=True), prediction)
        x_0 = self.target.to_x_0(x_t, alpha_bar.float().to(x_t.device), prediction)
        return x_0.clamp(-1.0, 1.0) if self.clip else x_0
