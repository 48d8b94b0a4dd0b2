"""From a network's prediction to what samplers ask for: x̂_0."""

import torch
from torch import Tensor, nn

from ddpm.config import DiffusionConfig
from ddpm.diffusion.process import x_0_from
from ddpm.diffusion.samplers import Denoise
from ddpm.diffusion.schedule import Schedule
from ddpm.model.unet import WITHHELD
from ddpm.runtime import Runtime

EVERYWHERE = (0.0, float("inf"))


def is_guided(alpha_bar: Tensor, guidance: float, interval: tuple[float, float]) -> Tensor:
    """Whether the network is evaluated a second time, without label, at each time: bool [T], from ᾱ float64 [T].

    ``interval`` bounds the ratio of noise to signal, √(1/ᾱ − 1): guidance helps where the image takes shape, and costs
    variety before. Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval".
    """
    sigma = (1.0 / alpha_bar - 1.0).sqrt()
    return (sigma >= interval[0]) & (sigma <= interval[1]) & (guidance != 1.0)


def make_denoiser(
    network: nn.Module,
    diffusion: DiffusionConfig,
    schedule: Schedule,
    runtime: Runtime,
    clip: bool,
    guidance: float = 1.0,
    interval: tuple[float, float] = EVERYWHERE,
    labels: Tensor | None = None,
) -> Denoise:
    """A function (x_t [n, 1, h, w], training time t) -> x̂_0, clipped to [-1, 1] where ``clip`` is set.

    Clipping x̂_0 is what DDPM's reference code does at every step. labels: int64 [n], what the network is told of the
    images; None for a network without classes. guidance: w of p + w · (p_label − p), p being the prediction with the
    label withheld; 1 is the label's prediction alone, at one evaluation instead of two. Ho & Salimans 2021,
    "Classifier-Free Diffusion Guidance", eq. 6 with w counted from 1. interval: see `is_guided`.
    """
    alpha_bar = schedule.alpha_bar.float().to(runtime.device)
    guided = is_guided(schedule.alpha_bar, guidance, interval).tolist()

    def predict(x_t: Tensor, times: Tensor, told: Tensor | None) -> Tensor:
        with runtime.autocast():
            # A copy: a network in a CUDA graph writes every result to the same place.
            return network(x_t, times, told).to(torch.float32, copy=True)

    def denoise(x_t: Tensor, t: int) -> Tensor:
        times = torch.full((len(x_t),), t, device=runtime.device)
        prediction = predict(x_t, times, labels)
        if labels is not None and guided[t]:
            withheld = predict(x_t, times, torch.full_like(labels, WITHHELD))
            prediction = withheld.lerp(prediction, guidance)
        x_0 = x_0_from(diffusion.target, x_t, alpha_bar[t], prediction)
        return x_0.clamp(-1.0, 1.0) if clip else x_0

    return denoise
