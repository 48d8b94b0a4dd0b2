"""Bits per dimension of images under the model: the variational bound, term by term.

−log p(x_0) ≤ L_T + Σ_{t ≥ 1} L_{t−1} + L_0 (DDPM, eq. 5), here with times counted from 0, as in `Schedule`: the decoder
L_0 is that of step 0, which only ever predicts. Terms are in nats an image, summed over its pixels; the last function
turns them into bits per dimension.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.data.image_set import normalize
from ddpm.diffusion.bound import decoder_term, divergence
from ddpm.diffusion.noise import normal_noise
from ddpm.diffusion.process import q_sample
from ddpm.diffusion.samplers import (
    VARIANCES,
    Denoise,
    LearnedDenoise,
    Noise,
    OnStep,
    learned_log_variance,
)
from ddpm.diffusion.schedule import Schedule
from ddpm.utils.devices import to_device, with_float64
from ddpm.utils.processes import Pool
from ddpm.utils.seeds import stream_number, torch_generator


def prior_term(x_0: Tensor, schedule: Schedule) -> Tensor:
    """L_T = KL(q(x_T | x_0) ‖ N(0, 1)) of images [n, …]: float64 [n]."""
    alpha_bar = schedule.alpha_bar[-1]
    squares = (alpha_bar * x_0.double() ** 2).flatten(1).sum(1)
    return 0.5 * (squares + x_0[0].numel() * (-alpha_bar - torch.log1p(-alpha_bar)))


def step_variance(schedule: Schedule, step: int, variance: str) -> Tensor:
    """σ_t² of the reverse step: β̃_t ("small") or β_t ("large"), DDPM §3.2. A float64 scalar.

    At step 0, where β̃ is 0, both take that of step 1, as DDPM's reference code does.
    """
    if step == 0:
        return schedule.posterior_variance[1] if len(schedule) > 1 else schedule.beta[0]
    return VARIANCES[variance](schedule)[step]


def step_term(x_0: Tensor, x_0_hat: Tensor, schedule: Schedule, step: int, log_variance: Tensor) -> Tensor:
    """L_{t−1} = KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)) for ``step`` ≥ 1, from the prediction x̂_0: float64 [n].

    Two Gaussians of variances β̃_t and σ_t² whose means differ by the posterior mean's coefficient times x_0 − x̂_0
    (DDPM, eq. 7). log_variance: log σ_t², float64, of every pixel as in ``x_0``, or one of all.
    """
    coefficient = schedule.alpha_bar_prev[step].sqrt() * schedule.beta[step] / (1.0 - schedule.alpha_bar[step])
    difference = coefficient * (x_0.double() - x_0_hat.double())
    return divergence(difference, schedule.posterior_variance[step].log(), log_variance)


def visited_times(residue: int, stride: int, steps: int) -> range:
    """The steps ≥ 1 of those images whose residue modulo ``stride`` this is: every stride-th."""
    return range(1 + residue, steps, stride)


@dataclass(frozen=True)
class Likelihood:
    """The terms of the bound of some images, by groups.

    conditioned: `Denoiser.conditioned`. images: uint8 [n, c, h, w] on the device. labels: int64 [n] there, the
    conditioning labels, None for a network that knows none. learned: whether the denoiser predicts a variance too, the
    bound with which is then found as well. Raises ValueError for fewer than two images.

    Every image is evaluated at the decoder and at about ``times_per_image`` of the other steps, a comb of them; every
    comb belongs to as many images, chosen at random, its group, so that the estimate is unbiased. A group has at least
    two images: of few images each is evaluated at more steps.
    """

    conditioned: Callable[[Tensor | None], Denoise | LearnedDenoise]
    images: Tensor
    labels: Tensor | None
    schedule: Schedule
    times_per_image: int
    seed: int
    learned: bool = False

    def __post_init__(self) -> None:
        if len(self.images) < 2:
            raise ValueError("the error of the mean needs two images")

    @property
    def groups(self) -> int:
        """How many there are."""
        return max(1, min(math.ceil((len(self.schedule) - 1) / self.times_per_image), len(self.images) // 2))

    @torch.inference_mode()
    def terms(self, group: int) -> dict[str, Tensor]:
        """Of each image of a group, float64 [m]: prior, decoder and, by their variance, the sum of all other steps.

        With a learned variance also the latter two by that; and the label, int64 [m], for a network that knows labels.
        All on the CPU.
        """
        schedule, order = (
            self.schedule,
            torch.randperm(len(self.images), generator=torch_generator(self.seed, "likelihood")),
        )
        chosen = to_device(order[group :: self.groups], self.images.device)
        x_0, stream = normalize(self.images[chosen]), stream_number("likelihood")
        denoise = self.conditioned(None if self.labels is None else self.labels[chosen])
        images = x_0.to(exact := with_float64(x_0.device))
        share = len(self.images) / len(chosen)  # groups differ by one image where their number does not divide them
        found = {"prior": prior_term(images, schedule)}
        found |= {name: images.new_zeros(len(images)).double() for name in VARIANCES}
        for step in (0, *visited_times(group, self.groups, len(schedule))):
            eps = normal_noise(self.seed, stream, step, chosen, x_0.shape[1:])
            x_t = q_sample(x_0, schedule.alpha_bar[step].float(), eps)
            if self.learned:
                assert isinstance(denoise, LearnedDenoise)
                x_0_hat, fraction = (part.to(exact) for part in denoise.with_fraction(x_t, int(schedule.times[step])))
                log_variance = learned_log_variance(schedule, step, fraction.double())
                if step == 0:
                    found["decoder_learned"] = decoder_term(images, x_0_hat, log_variance.exp())
                    found["learned"] = torch.zeros_like(found["decoder_learned"])
                else:
                    found["learned"] += share * step_term(images, x_0_hat, schedule, step, log_variance)
            else:
                x_0_hat = denoise(x_t, int(schedule.times[step])).to(exact)
            if step == 0:
                found["decoder"] = decoder_term(images, x_0_hat, step_variance(schedule, 0, "small"))
                continue
            for variance in VARIANCES:
                log_variance = step_variance(schedule, step, variance).log()
                found[variance] += share * step_term(images, x_0_hat, schedule, step, log_variance)
        if self.labels is not None:
            found["label"] = self.labels[chosen]
        return {name: values.cpu() for name, values in found.items()}


def log_likelihood_bound(
    denoise: Denoise,
    x_0: Tensor,
    schedule: Schedule,
    noise: Noise,
    on_step: OnStep | None = None,
) -> Tensor:
    """The lower bound of log p(x_0) of each image [n, c, h, w] of 256 grey values, in nats: float64 [n]
    on their device, or on the CPU where it has no float64.

    Every term is evaluated, each with one noise: DDPM, eq. 5. on_step: as in `ddpm.diffusion.samplers`, with the steps
    counted from the least noise.
    """
    images = x_0.to(exact := with_float64(x_0.device))
    total = prior_term(images, schedule)
    for step in range(len(schedule)):
        x_t = q_sample(x_0, schedule.alpha_bar[step].float(), noise())
        x_0_hat = denoise(x_t, int(schedule.times[step]))
        if on_step:
            on_step(step, x_t, x_0_hat)
        x_0_hat = x_0_hat.to(exact)
        if step:
            total += step_term(images, x_0_hat, schedule, step, step_variance(schedule, step, "small").log())
        else:
            total += decoder_term(images, x_0_hat, step_variance(schedule, 0, "small"))
    return -total


def bits_per_dimension(
    likelihood: Likelihood, frequencies: Sequence[float], pool: Pool | None = None
) -> dict[str, float]:
    """The bound on −log₂ p(x_0), per pixel, its parts, and its standard error: the mean over images.

    A network that knows labels gives p(x_0 | label), and p(x_0) ≥ p(label) p(x_0 | label), whichever label of the image
    is taken: the bits that name it, by the ``frequencies`` of all labels, are a part of the bound. pool: processes with
    such a likelihood, to share the groups among.
    """
    numbers = range(likelihood.groups)
    shared = {number: pool.submit(Likelihood.terms, number) for number in numbers} if pool else {}
    found = [
        shared[number].result() if pool else likelihood.terms(number)
        for number in tqdm(numbers, desc="likelihood", unit="group")
    ]
    nats, unit = -torch.tensor(frequencies).double().log(), likelihood.images[0].numel() * math.log(2.0)
    for group in found:
        group["label"] = nats[group["label"]] if "label" in group else torch.zeros_like(group["prior"])
    fixed = ("prior", "decoder", "label")
    bits = {f"bpd_{name}": torch.cat([group[name] for group in found]).mean().item() / unit for name in fixed}
    for variance in (*VARIANCES, "learned") if likelihood.learned else VARIANCES:
        parts = ("prior", "decoder_learned" if variance == "learned" else "decoder", "label", variance)
        bounds = [torch.stack([group[name] for name in parts]).sum(0) / unit for group in found]
        bits |= {
            f"bpd_steps_{variance}": torch.cat([group[variance] for group in found]).mean().item() / unit,
            f"bpd_{variance}": torch.cat(bounds).mean().item(),
            f"bpd_{variance}_se": _standard_error(bounds),
        }
    return bits


def _standard_error(groups: Sequence[Tensor]) -> float:
    """Of the mean over images that fall into groups of fixed sizes: what differs between groups is no error."""
    count = sum(len(group) for group in groups)
    return math.sqrt(sum(len(group) * group.var().item() for group in groups)) / count
