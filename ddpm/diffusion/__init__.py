"""The mathematics of the diffusion: schedule, process, objective, samplers, guidance, likelihood.

Time convention, everywhere: t ∈ {0 … T−1}; x_t for t = 0 has the least noise; ᾱ "before t = 0" is 1 (clean data).
Symbols follow Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (DDPM), arXiv:2006.11239:

    x_0         clean images in [-1, 1]           eps        the noise in x_t, standard normal
    x_t         images at time t                  alpha_bar  ᾱ_t, the fraction of the signal's variance left at t
    beta        β_t, variance added at t          v          √ᾱ_t · eps − √(1−ᾱ_t) · x_0
"""
