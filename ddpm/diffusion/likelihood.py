"""Bits per dimension of images under the model: the variational bound, term by term.

−log p(x_0) ≤ L_T + Σ_{t ≥ 1} L_{t−1} + L_0 (DDPM, eq. 5), here with times counted from 0, as in `Schedule`: the decoder
L_0 is that of step 0, which only ever predicts. Terms are in nats an image, summed over its pixels; the last function
turns them into bits per dimension.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.data.image_set import normalize
from ddpm.diffusion.bound import decoder_term, divergence
from ddpm.diffusion.noise import normal_noise
from ddpm.diffusion.process import q_sample
from ddpm.diffusion.samplers import VARIANCES, Denoise, LearnedDenoise, Noise, OnStep, learned_log_variance
from ddpm.diffusion.schedule import Schedule
from ddpm.utils.devices import fitting_batch, of_each, to_device, with_float64
from ddpm.utils.errors import lacks_memory
from ddpm.utils.processes import Pool
from ddpm.utils.seeds import stream_number, torch_generator

# (x_t [n, c, h, w], the training time of each image, int64 [n] on the CPU) -> x̂_0: see `Denoiser`.
DenoiseEach = Callable[[Tensor, Tensor], Tensor]


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


def step_term(x_0: Tensor, x_0_hat: Tensor, schedule: Schedule, step: int | Tensor, log_variance: Tensor) -> Tensor:
    """L_{t−1} = KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)) for ``step`` ≥ 1, from the prediction x̂_0: float64 [n].

    Two Gaussians of variances β̃_t and σ_t² whose means differ by the posterior mean's coefficient times x_0 − x̂_0
    (DDPM, eq. 7). step: of all images, or int64 [n] on the CPU, of each. log_variance: log σ_t², float64, of every
    pixel as in ``x_0``, of every image, or one of all.
    """
    coefficient = schedule.alpha_bar_prev[step].sqrt() * schedule.beta[step] / (1.0 - schedule.alpha_bar[step])
    difference = of_each(coefficient, x_0.device) * (x_0.double() - x_0_hat.double())
    return divergence(difference, of_each(schedule.posterior_variance[step].log(), x_0.device), log_variance)


def visited_times(residue: int, stride: int, steps: int) -> range:
    """The steps ≥ 1 of those images whose residue modulo ``stride`` this is: every stride-th."""
    return range(1 + residue, steps, stride)


@dataclass(frozen=True)
class Likelihood:
    """The terms of the bound of some images, by groups.

    conditioned: `Denoiser.conditioned`, unguided. images: uint8 [n, c, h, w] on the device. labels: int64 [n] there,
    the conditioning labels, None for a network that knows none. learned: whether the denoiser predicts a variance too,
    the bound with which is then found as well. batch_size: how many images the network is given at once, at most, but
    always a whole group; None for as many as are fast on the device. What memory does not hold is halved. Raises
    ValueError for fewer than two images.

    Every image is evaluated at the decoder and at about ``times_per_image`` of the other steps, a comb of them; every
    comb belongs to as many images, chosen at random, its group, so that the estimate is unbiased. A group has at least
    two images: of few images each is evaluated at more steps.
    """

    conditioned: Callable[[Tensor | None], DenoiseEach | LearnedDenoise]
    images: Tensor
    labels: Tensor | None
    schedule: Schedule
    times_per_image: int
    seed: int
    learned: bool = False
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if len(self.images) < 2:
            raise ValueError("the error of the mean needs two images")

    @property
    def groups(self) -> int:
        """How many there are."""
        return max(1, min(math.ceil((len(self.schedule) - 1) / self.times_per_image), len(self.images) // 2))

    @property
    def batches(self) -> int:
        """How many batches of groups there are."""
        return math.ceil(self.groups / self._groups_per_batch)

    @property
    def _groups_per_batch(self) -> int:
        size = self.batch_size or fitting_batch(len(self.images), self.images.device)
        return max(1, size * self.groups // len(self.images))

    @torch.inference_mode()
    def terms(self, batch: int) -> list[dict[str, Tensor]]:
        """Of the images of each group of a batch, float64 [m]: prior, decoder and, by their variance, all other steps.

        With a learned variance also the latter two by that; and the label, int64 [m], for a network that knows labels.
        All on the CPU.
        """
        order = torch.randperm(len(self.images), generator=torch_generator(self.seed, "likelihood"))
        groups = range(self.groups)[batch * self._groups_per_batch :][: self._groups_per_batch]
        members = [order[group :: self.groups] for group in groups]
        sizes = torch.tensor([len(each) for each in members])
        chosen = to_device(torch.cat(members), self.images.device)
        x_0 = normalize(self.images[chosen])
        found = {"prior": prior_term(x_0.to(exact := with_float64(x_0.device)), self.schedule)}
        found |= {name: torch.zeros_like(found["prior"]) for name in (*VARIANCES, *["learned"] * self.learned)}
        # Groups differ by one image where their number does not divide them.
        share = to_device((len(self.images) / sizes.double()).repeat_interleave(sizes), exact)
        found |= self._terms_at(torch.zeros(len(x_0), dtype=torch.int64), x_0, chosen)
        for met in zip_longest(*(visited_times(group, self.groups, len(self.schedule)) for group in groups)):
            steps = torch.tensor([step for step in met if step is not None])  # combs of the last groups end before
            steps = steps.repeat_interleave(sizes[: len(steps)])
            for name, term in self._terms_at(steps, x_0[: len(steps)], chosen[: len(steps)]).items():
                found[name][: len(steps)] += share[: len(steps)] * term
        if self.labels is not None:
            found["label"] = self.labels[chosen]
        parts = zip(*(values.cpu().split(sizes.tolist()) for values in found.values()), strict=True)
        return [dict(zip(found, part, strict=True)) for part in parts]

    def _terms_at(self, steps: Tensor, x_0: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        """`_terms_together`, in halves where memory does not hold so many images."""
        try:
            return self._terms_together(steps, x_0, chosen)
        except RuntimeError as error:
            if len(steps) == 1 or not lacks_memory(error):
                raise
        halves = zip(*(each.chunk(2) for each in (steps, x_0, chosen)), strict=True)
        first, second = (self._terms_at(*half) for half in halves)
        return {name: torch.cat([values, second[name]]) for name, values in first.items()}

    def _terms_together(self, steps: Tensor, x_0: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        """The decoder's terms, or those of other steps by their variance, of the images ``chosen``, each at its step.

        steps: int64 [n] on the CPU, all 0 or none. x_0: float32 [n, c, h, w]; chosen: int64 [n], their numbers.
        """
        schedule, device, exact = self.schedule, x_0.device, with_float64(x_0.device)
        draws = to_device(steps, device)[:, None]
        eps = normal_noise(self.seed, stream_number("likelihood"), draws, chosen, x_0.shape[1:])
        x_t = q_sample(x_0, of_each(schedule.alpha_bar[steps].float(), device), eps)
        denoise = self.conditioned(None if self.labels is None else self.labels[chosen])
        log_variance, times = {}, schedule.times[steps]
        if self.learned:
            assert isinstance(denoise, LearnedDenoise)
            x_0_hat, fraction = (part.to(exact) for part in denoise.with_fraction(x_t, times))
            log_variance["learned"] = learned_log_variance(schedule, steps, fraction.double())
        else:
            x_0_hat = denoise(x_t, times).to(exact)
        images = x_0.to(exact)
        if not steps[0]:
            decoders = {"decoder": step_variance(schedule, 0, "small")}
            decoders |= {f"decoder_{name}": value.exp() for name, value in log_variance.items()}
            return {name: decoder_term(images, x_0_hat, variance) for name, variance in decoders.items()}
        log_variance |= {name: of_each(VARIANCES[name](schedule)[steps].log(), exact) for name in VARIANCES}
        return {name: step_term(images, x_0_hat, schedule, steps, value) for name, value in log_variance.items()}


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


def label_nats(frequencies: Tensor) -> Tensor:
    """What it takes to name each label, −log of its frequency in the training set, in nats.

    A cluster that no training image is nearest to, in the end, counts as half as frequent as the rarest that has one.
    """
    if not len(frequencies):
        return frequencies
    return -torch.where(frequencies > 0, frequencies, frequencies[frequencies > 0].min() / 2).log()


def bits_per_dimension(
    likelihood: Likelihood, frequencies: Sequence[float], pool: Pool | None = None
) -> dict[str, float]:
    """The bound on −log₂ p(x_0), per pixel, its parts, and its standard error: the mean over images.

    A network that knows labels gives p(x_0 | label), and p(x_0) ≥ p(label) p(x_0 | label), whichever label of the image
    is taken: the bits that name it, by the ``frequencies`` of all labels, are a part of the bound. pool: processes with
    such a likelihood, to share the batches among.
    """
    numbers = range(likelihood.batches)
    shared = {number: pool.submit(Likelihood.terms, number) for number in numbers} if pool else {}
    found = [
        group
        for number in tqdm(numbers, desc="likelihood", unit="batch")
        for group in (shared[number].result() if pool else likelihood.terms(number))
    ]
    nats, unit = label_nats(torch.tensor(frequencies).double()), likelihood.images[0].numel() * math.log(2.0)
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
