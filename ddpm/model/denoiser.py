"""From a network's prediction to what samplers ask for: x̂_0."""

import torch
from torch import Tensor, nn

from ddpm.config import DiffusionConfig
from ddpm.diffusion.process import x_0_from
from ddpm.diffusion.samplers import Denoise
from ddpm.diffusion.schedule import Schedule
from ddpm.runtime import Runtime


def make_denoiser(
    network: nn.Module, diffusion: DiffusionConfig, schedule: Schedule, runtime: Runtime, clip: bool
) -> Denoise:
    """A function (x_t [n, 1, h, w], training time t) -> x̂_0, clipped to [-1, 1] where ``clip`` is set.

    Clipping x̂_0 is what DDPM's reference code does at every step.
    """
    alpha_bar = schedule.alpha_bar.float().to(runtime.device)

    def denoise(x_t: Tensor, t: int) -> Tensor:
        times = torch.full((len(x_t),), t, device=runtime.device)
        with runtime.autocast():
            prediction = network(x_t, times)
        x_0 = x_0_from(diffusion.target, x_t, alpha_bar[t], prediction.float())
        return x_0.clamp(-1.0, 1.0) if clip else x_0

    return denoise
