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


def time_density(name: str, alpha_bar: Tensor, log_sigma_mean: float, log_sigma_std: float) -> Tensor:
    """How often each time is trained on, summing to 1.

    alpha_bar: float64 [T]. "uniform": all alike (DDPM, algorithm 1). "log_normal": so that log σ_t, with the noise-to-
    signal ratio σ_t = √(1/ᾱ_t − 1), is normal with this mean and deviation, whatever the schedule: Karras et al. 2022,
    "Elucidating the Design Space", §5. Returns float64 [T].
    """
    if name == "uniform":
        return torch.full_like(alpha_bar, 1.0 / len(alpha_bar))
    log_sigma = (1.0 / alpha_bar - 1.0).log() / 2.0
    between = (log_sigma[1:] + log_sigma[:-1]) / 2.0
    edges = torch.special.ndtr((between - log_sigma_mean) / log_sigma_std)
    cumulative = torch.cat([edges.new_zeros(1), edges, edges.new_ones(1)])
    return cumulative.diff()


def sample_times(count: int, cumulative: Tensor, sampling: str, generator: torch.Generator) -> Tensor:
    """Draw the training times of one batch: int64 [count] in 0 … T−1, on the generator's device.

    cumulative: float64 [T] on that device, the running sum of a `time_density`. "uniform" draws each time alone;
    "stratified" divides the density into ``count`` equal parts and draws one time of each, with one common random
    offset, so that every batch covers all noise levels (Kingma et al. 2021, "Variational Diffusion Models", appendix
    I.1).
    """
    shape = count if sampling == "uniform" else 1
    places = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    if sampling == "stratified":
        places = (torch.arange(count, device=generator.device) + places) / count
    return torch.searchsorted(cumulative, places, right=True).clamp(max=len(cumulative) - 1)
