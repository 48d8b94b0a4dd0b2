"""The training loss: a weighted squared error on the network's target."""

import torch
from torch import Tensor


def loss_weights(target: str, weighting: str, alpha_bar: Tensor, min_snr_gamma: float) -> Tensor:
    """Weight of each time's squared error on ``target``.

    alpha_bar: float64 [T]. ``weighting`` "none" gives ones; "min_snr" gives min(SNR_t, γ) on the squared error of x_0
    with SNR_t = ᾱ_t / (1−ᾱ_t), expressed for the target: Hang et al. 2023, "Min-SNR Weighting", §3.4.
    Returns float64 [T].
    """
    if weighting == "none":
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1.0 - alpha_bar)
    # ‖x_0 − x̂_0‖² is 1/SNR times the error in eps and 1/(SNR + 1) times the error in v.
    per_target = {"x_0": torch.ones_like(snr), "eps": 1.0 / snr, "v": 1.0 / (snr + 1.0)}[target]
    return snr.clamp(max=min_snr_gamma) * per_target


def sample_times(count: int, total: int, sampling: str, generator: torch.Generator) -> Tensor:
    """Draw the training times of one batch: int64 [count] in 0 … total−1, on the generator's device.

    "uniform" draws each alone (DDPM, algorithm 1); "stratified" spreads them evenly with one common random offset,
    so that every batch covers all noise levels (Kingma et al. 2021, "Variational Diffusion Models", appendix I.1).
    """
    if sampling == "uniform":
        return torch.randint(total, (count,), generator=generator, device=generator.device)
    offset = torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64)
    places = (torch.arange(count, device=generator.device) + offset) / count
    return (places * total).long().clamp(max=total - 1)
