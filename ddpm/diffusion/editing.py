"""Editing of images: completing a part, variations, the way back to noise, between two images. Pure functions.

x_0, masks and latents are float32 [n, c, h, w]; denoise, noise, schedule and on_step are those of
`ddpm.diffusion.samplers`.
"""

import math

import torch
from torch import Tensor

from ddpm.diffusion.process import eps_from_x_0, q_posterior_mean, q_sample, v_from
from ddpm.diffusion.samplers import Denoise, Noise, OnStep, Sampler, reverse_variance
from ddpm.diffusion.schedule import Schedule
from ddpm.utils.devices import with_float64


def first_times(schedule: Schedule, count: int) -> Schedule:
    """The ``count`` times of the schedule that have the least noise."""
    return Schedule(schedule.beta[:count], schedule.times[:count])


def mixed(one: Denoise, other: Denoise, fraction: Tensor) -> Denoise:
    """(1 − ``fraction``) times the x̂_0 of ``one`` plus ``fraction`` times that of ``other``.

    fraction: [n, 1, 1, 1] in [0, 1]. Of one network for two labels it is a prediction between both.
    """

    def denoise(x_t: Tensor, t: int) -> Tensor:
        return torch.lerp(one(x_t, t), other(x_t, t), fraction)

    return denoise


def usual_jump(steps: int) -> int:
    """The steps that RePaint undoes at a time unless told: 10, as in the paper, or half of 10 or fewer."""
    return 10 if steps > 10 else max(1, steps // 2)


def repaint_moves(steps: int, jump_length: int, resamplings: int) -> list[int]:
    """The walk of RePaint through ``steps`` times: −1 for a step of the reverse process, +1 for one of the forward one.

    Before the last step, and wherever a multiple of ``jump_length`` is left beside it, the last ``jump_length`` steps
    are undone and taken again until they have been taken ``resamplings`` times in all (Lugmayr et al. 2022, §4.2; j and
    r there), if as many have been taken. Returns steps more −1 than +1. Requires jump_length ≥ 1 and resamplings ≥ 1.
    """
    left = dict.fromkeys(range(1, steps - jump_length + 1, jump_length), resamplings - 1)
    moves, place = [], steps
    while place:
        place -= 1
        moves.append(-1)
        if left.get(place):
            left[place] -= 1
            place += jump_length
            moves += [1] * jump_length
    return moves


def repaint(
    denoise: Denoise,
    x_0: Tensor,
    painted: Tensor,
    schedule: Schedule,
    noise: Noise,
    jump_length: int,
    resamplings: int,
    variance: str | float = "small",
    on_step: OnStep | None = None,
) -> Tensor:
    """Complete images: Lugmayr et al. 2022, "RePaint", algorithm 1, with the jumps of its §4.2.

    painted: bool, shaped to broadcast against x_0, True where the image is to be made; 1 − m there. Everywhere else the
    result is x_0 exactly. variance: of the ancestral steps, see `reverse_variance`.
    """
    alpha_bar, alpha_bar_prev, beta = schedule.alpha_bar, schedule.alpha_bar_prev, schedule.beta
    sigma = reverse_variance(schedule, variance).sqrt()
    x_t, step = noise(), len(schedule)
    moves = repaint_moves(len(schedule), jump_length, resamplings)
    for taken, move in enumerate(moves):
        if move > 0:
            x_t = (1.0 - beta[step]).sqrt() * x_t + beta[step].sqrt() * noise()  # eq. 1; algorithm 1, line 9
            step += 1
            continue
        step -= 1
        x_0_hat = denoise(x_t, int(schedule.times[step]))
        if on_step:
            on_step(taken, x_t, x_0_hat)
        unknown = q_posterior_mean(x_0_hat, x_t, alpha_bar[step], alpha_bar_prev[step])  # eq. 8b
        known = x_0
        if step > 0:
            unknown = unknown + sigma[step] * noise()
            known = q_sample(x_0, alpha_bar_prev[step], noise())  # eq. 8a
        x_t = torch.where(painted, unknown, known)  # eq. 8c
    if on_step:
        on_step(len(moves), x_t, x_t)
    return x_t


def sdedit(
    sampler: Sampler,
    denoise: Denoise,
    x_0: Tensor,
    schedule: Schedule,
    noise: Noise,
    on_step: OnStep | None = None,
) -> Tensor:
    """A variation of images: noised to the noisiest step of the schedule, and sampled back from there.

    Meng et al. 2022, "SDEdit", §3, for the variance-preserving process. With all times of a schedule that
    leaves nothing of the image, a fresh sample.
    """
    return sampler(denoise, q_sample(x_0, schedule.alpha_bar[-1].float(), noise()), schedule, noise, on_step)


def ddim_inversion(
    denoise: Denoise, x_0: Tensor, schedule: Schedule, iterations: int, on_step: OnStep | None = None
) -> Tensor:
    """The x_T from which deterministic DDIM (η = 0) with the same denoiser and schedule samples x_0.

    With ᾱ_t = cos² φ_t a step of DDIM turns x_t by an angle, x_{t−1} = cos δ x_t − sin δ v(x_t, t) with
    δ = φ_t − φ_{t−1} (Salimans & Ho 2022, appendix D); solved for x_t, it is (x_{t−1} + sin δ v(x_t, t)) / cos δ.
    Song et al. 2021 (DDIM, §4.3) take the network's prediction at x_{t−1} for the one at x_t: ``iterations`` 1. Each
    further one puts the x_t that was found into the right side again, a fixed-point iteration (Pan et al. 2023,
    "Effective Real Image Editing with Accelerated Iterative Diffusion Inversion"). denoise: without clipping, as
    what is clipped cannot be inverted.
    """
    angle = schedule.alpha_bar.sqrt().acos()
    delta = torch.diff(angle, prepend=angle.new_zeros(1))
    x_t = x_0
    for step in range(len(schedule)):
        alpha_bar, x_before = schedule.alpha_bar[step], x_t
        for _ in range(iterations):
            x_0_hat = denoise(x_t, int(schedule.times[step]))
            v = v_from(x_0_hat, alpha_bar, eps_from_x_0(x_t, alpha_bar, x_0_hat))
            x_t = (x_before + delta[step].sin() * v) / delta[step].cos()
        if on_step:
            on_step(step, x_t, x_0_hat)
    return x_t


def slerp(one: Tensor, other: Tensor, fraction: Tensor) -> Tensor:
    """Between two noises along the arc that they span, image by image, so that it stays as long as a noise is.

    Shoemake 1985, "Animating Rotation with Quaternion Curves", §3.3; of x_T: Song et al. 2021 (DDIM), eq. 67.
    fraction: [n, 1, 1, 1]; the result is ``one`` at 0 and ``other`` at 1.
    """
    device, exact = one.device, with_float64(one.device)
    one, other, fraction = one.to(exact), other.to(exact), fraction.to(exact)
    flat = one.flatten(1).double(), other.flatten(1).double()
    lengths = [part.norm(dim=1) for part in flat]
    cosine = (flat[0] * flat[1]).sum(1) / (lengths[0] * lengths[1])
    theta = cosine.clamp(-1.0, 1.0).acos().view(-1, 1, 1, 1)
    straight = theta < 1e-6  # nearly the same direction: the limit of the formula is the straight line
    sine = torch.where(straight, 1.0, theta.sin())
    weights = [torch.where(straight, part, (part * theta).sin() / sine) for part in (1.0 - fraction, fraction)]
    return (weights[0] * one + weights[1] * other).to(one.dtype).to(device)


def noised_pair(
    one: Tensor, other: Tensor, alpha_bar: Tensor, noises: tuple[Tensor, Tensor], fraction: Tensor
) -> Tensor:
    """The x_t between two images: both noised to ᾱ_t, each by its own noise, the same at every ``fraction``.

    Ho et al. 2020 (DDPM), §4.3 "Interpolation" and fig. 8, with one change: the images are mixed linearly as there, the
    noises along their arc (`slerp`), so that x_t has the variance that the network expects at t between the ends too.
    """
    return q_sample(torch.lerp(one, other, fraction), alpha_bar, slerp(*noises, fraction))


def shortened(schedule: Schedule, strength: float, steps: int) -> tuple[Schedule, int]:
    """The part of the training's schedule up to ``strength`` of its times, and how many of ``steps`` belong to it.

    strength: in (0, 1]. Returns the schedule and at least one step.
    """
    count = max(1, round(strength * len(schedule)))
    return first_times(schedule, count), max(1, min(count, math.ceil(strength * steps)))
