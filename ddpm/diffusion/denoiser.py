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
    schedule: the one it was trained on. guidance: towards the class label. autoguidance: away from ``guide``, an
    earlier state of the network; None where there is none. labels: int64 [n], the class labels to condition on, or
    None.
    """

    predict: Predict
    target: Target
    schedule: Schedule
    clip: bool
    guidance: Guidance = UNGUIDED
    autoguidance: Guidance = UNGUIDED
    guide: Predict | None = None
    labels: Tensor | None = None

    def conditioned(self, labels: Tensor | None) -> "Denoiser":
        """The same denoiser for images of these class labels."""
        return replace(self, labels=labels)

    def nfe(self, times: list[int], *, labelled: bool) -> int:
        """Network evaluations of x̂_0 at these training times, of an image with a class label or without one."""
        alpha_bar = self.schedule.alpha_bar[times]
        weaker = [self.guidance] * labelled + [self.autoguidance] * (self.guide is not None)
        return len(times) + sum(int(guidance.is_active(alpha_bar).sum()) for guidance in weaker)

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        """The network's x̂_0 at time ``t``: float32."""
        alpha_bar = self.schedule.alpha_bar[t]
        times = torch.full((len(x_t),), t, device=x_t.device)
        # A copy: a network in a CUDA graph writes every result to the same place.
        prediction = guided = self.predict(x_t, times, self.labels).to(torch.float32, copy=True)
        if self.labels is not None and self.guidance.is_active(alpha_bar):
            weaker = self.predict(x_t, times, torch.full_like(self.labels, NULL_LABEL)).float()
            guided = guided + self.guidance.correction(prediction, weaker)
        if self.guide is not None and self.autoguidance.is_active(alpha_bar):
            weaker = self.guide(x_t, times, self.labels).float()
            guided = guided + self.autoguidance.correction(prediction, weaker)
        x_0 = self.target.to_x_0(x_t, alpha_bar.float().to(x_t.device), guided)
        return x_0.clamp(-1.0, 1.0) if self.clip else x_0
