"""From a network's prediction to what samplers see: x̂_0."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddpm.diffusion.guidance import UNGUIDED, Guidance, rescaled
from ddpm.diffusion.objective import Predict
from ddpm.diffusion.process import Target
from ddpm.diffusion.schedule import Schedule, before
from ddpm.models.networks import NULL_LABEL
from ddpm.utils.devices import of_each, to_device
from ddpm.utils.registry import Registry

CLIPPINGS: Registry[Callable[[Tensor], Tensor]] = Registry("clipping")
_PERCENTILE = 0.995  # Saharia et al. 2022, "Imagen", appendix


@CLIPPINGS.register("static")
def static(x_0: Tensor) -> Tensor:
    """x̂_0 [n, c, h, w] clipped to [-1, 1], as DDPM's reference code does at every step."""
    return x_0.clamp(-1.0, 1.0)


@CLIPPINGS.register("dynamic")
def dynamic(x_0: Tensor) -> Tensor:
    """x̂_0 [n, c, h, w] clipped to [-s, s] and divided by s, the 99.5 % quantile of its absolute values, at least 1.

    Of every image its own s: strong guidance then does not saturate pixels. Saharia et al. 2022, "Photorealistic
    Text-to-Image Diffusion Models with Deep Language Understanding" (Imagen), §2.3.
    """
    values = x_0.abs().flatten(1).sort(1).values
    place = _PERCENTILE * (values.shape[1] - 1)
    low, high = values[:, math.floor(place)], values[:, math.ceil(place)]
    s = torch.lerp(low, high, place % 1.0).clamp(min=1.0)[:, None, None, None]
    return x_0.clamp(-s, s) / s


@dataclass(frozen=True)
class Denoiser:
    """A function (x_t [n, c, h, w], training time t) -> x̂_0 of the same shape.

    t is one time of all images, or one of each: int64 [n] on the CPU.
    predict: the network. target: what it predicts. schedule: the one it was trained on. clip: by which of `CLIPPINGS`;
    True for "static", False for none. guidance: towards the label. autoguidance: away from ``guide``, an earlier state
    of the network; None where there is none. rescale: see `rescaled`. labels: int64 [n], the conditioning labels (see
    `ddpm.models.conditioning`), or None. learned_variance: whether the network predicts a variance too.
    self_conditioning: whether it is given its last x̂_0 too. memory: that x̂_0, in a sampling run; None where each time
    stands alone, given zeros.
    """

    predict: Predict
    target: Target
    schedule: Schedule
    clip: bool | str
    guidance: Guidance = UNGUIDED
    autoguidance: Guidance = UNGUIDED
    guide: Predict | None = None
    rescale: float = 0.0
    labels: Tensor | None = None
    learned_variance: bool = False
    self_conditioning: bool = False
    memory: list[Tensor] | None = None

    def conditioned(self, labels: Tensor | None) -> "Denoiser":
        """The same denoiser for images of these conditioning labels."""
        return replace(self, labels=labels)

    def remembering(self) -> "Denoiser":
        """The same for one sampling run: a network with self-conditioning is given the x̂_0 of the call before."""
        return replace(self, memory=[]) if self.self_conditioning else self

    def nfe(self, times: list[int], *, labelled: bool) -> int:
        """Network evaluations of x̂_0 at these training times, of an image with a label or without one."""
        alpha_bar = self.schedule.alpha_bar[times]
        weaker = [self.guidance] * labelled + [self.autoguidance] * (self.guide is not None)
        return len(times) + sum(int(guidance.is_active(alpha_bar).sum()) for guidance in weaker)

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """The network's x̂_0 at time ``t``: float32."""
        return self._predict(x_t, t)[0]

    def with_fraction(self, x_t: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """x̂_0 and the fraction of the learned variance: see `ddpm.diffusion.samplers.LearnedDenoise`."""
        x_0, spread = self._predict(x_t, t)
        return x_0, (spread + 1.0) / 2.0

    @torch.no_grad()
    def _predict(self, x_t: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """x̂_0, and what the network predicts beside the target: float32, of no channel where it is that alone."""
        bars, channels = self.schedule.alpha_bar, x_t.shape[1]
        alpha_bar = bars[t]
        times = to_device(t, x_t.device) if isinstance(t, Tensor) else torch.full((len(x_t),), t, device=x_t.device)
        given = x_t
        if self.self_conditioning:
            given = torch.cat([x_t, self.memory[-1] if self.memory else torch.zeros_like(x_t)], 1)
        # A copy: a network in a CUDA graph writes every result to the same place.
        whole = self.predict(given, times, self.labels).to(torch.float32, copy=True)
        prediction = guided = whole[:, :channels]
        if self.labels is not None and (active := self.guidance.is_active(alpha_bar)).any():
            weaker = self.predict(given, times, torch.full_like(self.labels, NULL_LABEL)).float()[:, :channels]
            guided = guided + of_each(active, x_t.device) * self.guidance.correction(prediction, weaker)
        if self.guide is not None and (active := self.autoguidance.is_active(alpha_bar)).any():
            weaker = self.guide(given, times, self.labels).float()[:, :channels]
            guided = guided + of_each(active, x_t.device) * self.autoguidance.correction(prediction, weaker)
        if self.rescale and guided is not prediction:
            guided = rescaled(guided, prediction, self.rescale)
        signal, signal_prev = (of_each(each[t].float(), x_t.device) for each in (bars, before(bars)))
        x_0 = self.target.to_x_0(x_t, signal, guided, signal_prev)
        if self.clip:
            x_0 = CLIPPINGS["static" if self.clip is True else self.clip](x_0)
        if self.memory is not None:
            self.memory[:] = [x_0.clamp(-1.0, 1.0)]  # as in training
        return x_0, whole[:, channels:]
