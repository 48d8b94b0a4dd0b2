"""A trained model to sample from and to edit images with: `ddpm.load`.

Images that go in are one image or several: a Pillow image, a uint8 array or a floating-point one in [0, 1] or [-1, 1]
of shape [h, w], [c, h, w], [h, w, c], [n, h, w], [n, h, w, c] or [n, c, h, w], a tensor of these, or a list of Pillow
images. Of Pillow images, 16-bit grey is rounded to 8 bits, and what is transparent becomes black. The digits of MNIST
are white on black. Images that come out are, by ``as_``:

    "numpy"    uint8 array [n, c, h, w]
    "pil"      list of n Pillow images
    "tensor"   float32 tensor [n, c, h, w], x_0 around [-1, 1], on the model's device

``labels`` is one class label for all images or a sequence with one each: a name (`Model.class_names`) or, where no name
is a number, its place among them from 0. The integers of an array always are places, as `Model.classify` gives them.
``seed`` decides the noise: image number i of a call depends on seed, settings and i alone, not on how many are sampled
beside it. Settings are keys of the section `generate` of params.yaml (`Settings`); what is not given is the model's
own. Mistakes raise DdpmError with a sentence.
"""

import math
import numbers
import operator
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypedDict, TypeVar, Unpack, get_args

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from tqdm import tqdm

from ddpm import pretrained
from ddpm.config import GenerateConfig, describe, read_yaml
from ddpm.data.decoding import as_rgb
from ddpm.data.image_set import ImageSpec, denormalize, normalize
from ddpm.data.load import as_images
from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.editing import (
    ddim_inversion,
    mixed,
    noised_pair,
    repaint,
    repaint_moves,
    sdedit,
    shortened,
    slerp,
    usual_jump,
)
from ddpm.diffusion.likelihood import label_nats, log_likelihood_bound
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.objective import Predict
from ddpm.diffusion.samplers import OnStep, ddim
from ddpm.diffusion.schedule import Schedule, spaced
from ddpm.models.checkpoint import Checkpoint, load_checkpoint
from ddpm.sampling.conditions import known_error, labels_of_classes, nearest_labels
from ddpm.sampling.generator import Generator, make_generator
from ddpm.sampling.labels import class_number, known_classes
from ddpm.sampling.trajectory import Trajectory
from ddpm.utils.errors import DamagedFile, DdpmError
from ddpm.utils.images import to_grey, to_pil, to_rgb
from ddpm.utils.runtime import Runtime, choose_device, one_thread, true_float32

ImagesIn = Image.Image | np.ndarray | Tensor | Sequence[Image.Image]
Images = np.ndarray | list[Image.Image] | Tensor
Label = int | str
Labels = Label | Sequence[Label] | np.ndarray | None
As = Literal["numpy", "pil", "tensor"]

MOST_IMAGES = 1_000_000  # of a call, which holds them in memory
_BATCH = 250
_BACKGROUND = (0, 0, 0)  # behind what is transparent, as for the files of `python -m ddpm edit`
_SHOWN_AFTER = 3.0  # seconds that a progress bar waits: most calls are over by then


class Settings(TypedDict, total=False):
    """Of sampling, each with the meaning and bounds of that key of the section `generate` in params.yaml."""

    sampler: str
    steps: int
    spacing: str
    variance: str | float
    eta: float
    clip: bool | str
    guidance: float
    guidance_interval: tuple[float, float]
    guidance_rescale: float
    autoguidance: float
    autoguidance_interval: tuple[float, float]


class Inversion(NamedTuple):
    """x_T: float32 [n, c, h, w], the noise from which DDIM samples the images. images: what it samples from there.

    error: float64 [n], the mean distance between each image and the one that was inverted, in grey levels of 256.
    """

    x_T: Tensor  # noqa: N815 (the papers' symbol)
    images: Images
    error: np.ndarray


_ONE_AT_A_TIME = threading.RLock()

P = ParamSpec("P")
R = TypeVar("R")


def _computing(method: Callable[Concatenate["Model", P], R]) -> Callable[Concatenate["Model", P], R]:
    """Without gradients, and on a CPU in one thread: images then have the same bits whatever the number of cores, and
    a busy neighbour does not slow them down tenfold. Calls from several threads take turns, as these settings are the
    whole process's. An unknown form of images is refused before they are computed.
    """

    @wraps(method)
    def computed(self: "Model", /, *arguments: P.args, **named: P.kwargs) -> R:
        if (as_ := named.get("as_", "numpy")) not in get_args(As):
            raise DdpmError(f"as_ is {as_}; choose one of {', '.join(get_args(As))}.")
        with _ONE_AT_A_TIME, torch.no_grad(), one_thread(self.device), true_float32():
            return method(self, *arguments, **named)

    return computed


def load(
    checkpoint: str | Path = "mnist", *, device: str | torch.device = "auto", settings: str | Path | None = None
) -> "Model":
    """A model that comes with the package, or that of a checkpoint.

    checkpoint: "mnist", "mnist_unconditional", or a file such as data/model/best.safetensors. device: auto (CUDA where
    there is a device), cpu, cuda, …. settings: a params.yaml, whose section `generate` then says how the model samples
    unless a call says otherwise; else the settings that the checkpoint holds, or else those of the shipped model.

    Raises MissingFile, DamagedFile (for a pickle too: nothing in a file is ever executed), or DdpmError for a
    checkpoint of another version, a device that is not there, and settings that are none.
    """
    if not isinstance(checkpoint, str | os.PathLike):
        raise DdpmError(
            f"checkpoint is of the type {type(checkpoint).__name__}; a name or the path of a file is wanted."
        )
    if not isinstance(settings, str | os.PathLike | None):
        raise DdpmError(f"settings are of the type {type(settings).__name__}; the path of a params.yaml is wanted.")
    path = pretrained.path_of(checkpoint)
    found, config = load_checkpoint(path), None
    if settings is not None:
        config = _read_settings(Path(settings))
    elif "sampling" in found.metadata:
        config = _config(found.metadata["sampling"], str(path))
    return Model(_generator(found, str(path), config, choose_device(device, f"device {device}")), found)


@dataclass(frozen=True)
class Model:
    """What `load` returns. generator: the network with the settings of sampling. checkpoint: what was loaded."""

    generator: Generator
    checkpoint: Checkpoint

    @property
    def spec(self) -> ImageSpec:
        """Size, channels and number of classes of the images."""
        return self.generator.spec

    @property
    def classes(self) -> int:
        """How many class labels can be asked for; 0 for a model that knows none."""
        return self.generator.conditioning.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """What each class label is called, its number where the data set has no names; empty for a model without."""
        return self.spec.class_names[: self.classes]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.generator.device

    @property
    def settings(self) -> Settings:
        """How it samples unless a call says otherwise."""
        config = self.generator.config
        return Settings(**{key: getattr(config, key) for key in Settings.__annotations__})  # type: ignore[typeddict-item]

    @_computing
    def sample(
        self, count: int = 1, *, labels: Labels = None, seed: int = 0, as_: As = "numpy", **settings: Unpack[Settings]
    ) -> Images:
        """``count`` images, of these class labels, or of all classes as often as in training.

        A 2-second example: ``model.sample(16, labels=7, sampler="ddpm", steps=20, guidance=1.2, seed=1)``.
        """
        generator, count = self._changed(settings), _whole(count, "count", least=1, most=MOST_IMAGES)
        known = self._labels(range(1, count + 1), _classes(labels, count, self.class_names), generator)
        parts = []
        with _progress(len(generator.steps) * -(-count // _BATCH)) as on_step:
            for first in range(0, count, _BATCH):
                numbers = range(first + 1, min(first + _BATCH, count) + 1)
                some = None if known is None else known[first : first + _BATCH]
                parts.append(self._sampled(generator, numbers, some, seed, on_step))
        return _as(torch.cat(parts), as_)

    def class_labels(self, count: int, labels: Labels = None) -> np.ndarray | None:
        """Of which class each image of ``sample(count, labels=labels)`` is: int64 [n]; None for a model without."""
        count = _whole(count, "count", least=1, most=MOST_IMAGES)
        classes = _classes(labels, count, self.class_names)
        return self.generator.class_labels(range(1, count + 1)) if classes is None else classes

    def cluster_labels(self, count: int, labels: Labels = None) -> np.ndarray | None:
        """The cluster of its class that each image of ``sample(count, labels=labels)`` is conditioned on: int64 [n].

        None for a model without clusters.
        """
        count = _whole(count, "count", least=1, most=MOST_IMAGES)
        known = self._labels(range(1, count + 1), _classes(labels, count, self.class_names), self.generator)
        return None if known is None else self.generator.conditioning.cluster_labels(known.cpu().numpy())

    @_computing
    def trajectory(
        self, count: int = 1, *, labels: Labels = None, seed: int = 0, **settings: Unpack[Settings]
    ) -> dict[str, np.ndarray]:
        """The images of `sample` as they come to be.

        Returns x_t and x_0 (the network's prediction of the image), both uint8 [frames, n, c, h, w], and t int64
        [frames], the training time of each frame, −1 for the finished images; at most 101 frames.
        """
        generator, count = self._changed(settings), _whole(count, "count", least=1, most=MOST_IMAGES)
        numbers = range(1, count + 1)
        known = self._labels(numbers, _classes(labels, count, self.class_names), generator)
        frames = Trajectory(generator.steps, count)
        self._sampled(generator, numbers, known, seed, frames)
        return frames.arrays()

    @_computing
    def inpaint(
        self,
        image: ImagesIn,
        mask: Image.Image | np.ndarray | Tensor,
        *,
        labels: Labels = "auto",
        count: int = 1,
        jump_length: int | None = None,
        resamplings: int = 10,
        seed: int = 0,
        as_: As = "numpy",
        **settings: Unpack[Settings],
    ) -> Images:
        """Images whose masked part is sampled again, to fit what is left of them (RePaint, Lugmayr et al. 2022).

        Where nothing is masked, x_{t−1} = √ᾱ_{t−1} x_0 + √(1−ᾱ_{t−1}) ε; elsewhere it is a step of the reverse process.

        mask: True, or bright, where the model paints: bool, or numbers from 0 to 1, of uint8 to 255, [h, w] or one for
        each image, [n, h, w] or [n, 1, h, w]; or a Pillow image. Every other pixel of the result is that of the image,
        to the bit. labels: what the images are to be; "auto" for the class by which the network predicts best what is
        left of each (`classify`), as the noise has it where several would do, and that of `sample` where nothing is
        left; None for no class label at all. count: so many completions of a single image. jump_length and resamplings:
        see `repaint_moves`; more resamplings fit better and take longer, 1 is the plain method. A jump must be shorter
        than all steps; by default it is 10 steps, or half of them where there are 10 or fewer. Steps are ancestral,
        whatever the sampler of the settings, with the small variance where they say `learned`, and without autoguidance
        unless it is given: away from the guide is away from what is left, too.
        """
        originals = self._images(image, count)
        painted = self._mask(mask, len(originals))
        generator = self._changed(Settings(autoguidance=1.0) | settings)
        steps, resamplings = generator.steps, _whole(resamplings, "resamplings", least=1)
        if jump_length is None:
            jump_length = usual_jump(len(steps))
        elif (jump_length := _whole(jump_length, "jump_length", least=1)) >= len(steps) and resamplings > 1:
            raise DdpmError(
                f"jump_length is {jump_length}, and the steps are {len(steps)}: nothing would be taken again; lower "
                "jump_length, or set resamplings to 1."
            )
        auto = isinstance(labels, str) and labels == "auto"
        if auto:
            labels = self._classes_of_rest(originals, painted, seed)
        denoise = self._denoiser(generator, self._known(originals, labels, ~painted, auto=auto))
        x_0, noise = self._to_device(originals), self._noise(range(1, len(originals) + 1), seed)
        with _progress(repaint_moves(len(steps), jump_length, resamplings).count(-1)) as on_step:
            region = torch.from_numpy(painted).to(self.device)
            # A learned variance is of the network's own step from x_t, which what is known has replaced in part.
            variance = "small" if generator.config.variance == "learned" else generator.config.variance
            given = (jump_length, resamplings, variance, on_step)
            found = repaint(denoise.remembering(), x_0, region, steps, noise, *given)
        return _as(found, as_)

    @_computing
    def vary(
        self,
        image: ImagesIn,
        strength: float = 0.5,
        *,
        labels: Labels = None,
        count: int = 1,
        seed: int = 0,
        as_: As = "numpy",
        **settings: Unpack[Settings],
    ) -> Images:
        """Images like these (SDEdit, Meng et al. 2022): noised up to a time, and sampled back from there.

        The reverse process begins with x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε. strength: t, as a fraction of all times: 0 returns
        the images, 1 gives fresh samples, which know nothing of them. labels: what they are to be, which may be
        another class than the images'; None for no class label at all. count: so many variations of a single image.
        """
        originals, strength = self._images(image, count), _fraction(strength, "strength")
        generator = self._changed(settings)
        denoise = self._denoiser(generator, self._known(originals, labels, strength < 1.0))
        x_0, noise = self._to_device(originals), self._noise(range(1, len(originals) + 1), seed)
        if strength == 0.0:
            return _as(x_0, as_)
        schedule = self._part(generator, strength)
        with _progress(len(schedule)) as on_step:
            return _as(sdedit(generator.sampler, denoise.remembering(), x_0, schedule, noise, on_step), as_)

    @_computing
    def interpolate(
        self,
        a: ImagesIn,
        b: ImagesIn,
        count: int = 9,
        *,
        labels: Label | Sequence[Label] | None = None,
        strength: float | None = None,
        seed: int | None = None,
        as_: As = "numpy",
        **settings: Unpack[Settings],
    ) -> Images:
        """``count`` images from image a to image b, those at both ends included.

        seed None: both are inverted to their noise (`invert`), the noises joined by an arc, and DDIM samples from each
        place on it (Song et al. 2021, §5.3); the ends are a and b up to the error of the inversion. A seed: both are
        noised up to the time ``strength``, above 0 and 0.6 where None, as in `vary`, by the same noises for every
        place, and sampled back from what lies between (Ho et al. 2020, §4.3); the ends are variations of a and b. At
        the fraction f of the way the noise is (sin((1−f)θ) ε_a + sin(fθ) ε_b) / sin θ, θ the angle between both, and
        the image (1−f) a + f b.

        labels: the class labels of a and b; between them the network's predictions for both are mixed.
        """
        ends, count = [self._images(image, 1) for image in (a, b)], _whole(count, "count", least=2, most=MOST_IMAGES)
        if len(ends[0]) != 1 or len(ends[1]) != 1:
            raise DdpmError("interpolate takes two single images, a and b.")
        if seed is None and strength is not None:
            raise DdpmError("strength needs a seed: without one the noises are those that DDIM finds.")
        strength = _fraction(0.6 if strength is None else strength, "strength")
        if strength == 0.0:
            raise DdpmError("strength is 0; a number above 0, up to 1, is wanted.")
        classes, there = _classes(labels, 2, self.class_names), seed is None or strength < 1.0
        generator = self._deterministic(settings) if seed is None else self._changed(settings)
        given = [None if classes is None else classes[i : i + 1] for i in range(2)]
        known = [self._known(image, label, there) for image, label in zip(ends, given, strict=True)]
        if generator.config.variance == "learned" and not _same(*known):
            generator = generator.changed(variance="small")  # a mixture of two predictions comes with no variance
        of_ends = [self._denoiser(generator, label) for label in known]
        fraction = torch.linspace(0.0, 1.0, count, device=self.device).view(-1, 1, 1, 1)
        one, other = (self._denoiser(generator, None if label is None else label.expand(count)) for label in known)
        if seed is not None:  # the inversion of a step knows no earlier prediction: the way back is to have none either
            one, other = one.remembering(), other.remembering()
        between = one if _same(*known) else mixed(one, other, fraction)
        pair, noise = [self._to_device(image) for image in ends], self._noise([1] * count, seed or 0)
        if seed is None:
            schedule, sampler = generator.steps, ddim()
            x_T = [ddim_inversion(end, x_0, schedule, _ITERATIONS) for end, x_0 in zip(of_ends, pair, strict=True)]
            start = slerp(x_T[0], x_T[1], fraction)
        else:
            schedule, sampler = self._part(generator, strength), generator.sampler
            noises = noise(), noise()
            start = noised_pair(pair[0], pair[1], schedule.alpha_bar[-1].float(), noises, fraction)
        with _progress(len(schedule)) as on_step:
            return _as(sampler(between, start, schedule, noise, on_step), as_)

    @_computing
    def invert(
        self, image: ImagesIn, *, labels: Labels = None, as_: As = "numpy", **settings: Unpack[Settings]
    ) -> Inversion:
        """The noise from which the images come by deterministic sampling (DDIM, Song et al. 2021, §4.3).

        Every step x_{t−1} = √ᾱ_{t−1} x̂_0(x_t) + √(1−ᾱ_{t−1}) ε̂(x_t) is solved for x_t, by iteration.
        Sampling goes back from there, by DDIM with the same labels and 50 steps, or all where there are fewer, without
        guidance or clipping unless the settings say so: `Inversion.images`, with the error of the round trip.
        """
        originals = self._images(image, 1)
        generator = self._deterministic(settings)
        denoise = self._denoiser(generator, self._known(originals, labels))
        steps = generator.steps
        with _progress(2 * len(steps)) as on_step:
            x_T = ddim_inversion(denoise, self._to_device(originals), steps, _ITERATIONS, on_step)
            back = ddim()(denoise, x_T, steps, lambda: x_T, on_step)
        distance = np.abs(denormalize(back).astype(np.float64) - originals).reshape(len(originals), -1).mean(1)
        return Inversion(x_T, _as(back, as_), distance)

    @_computing
    def classify(
        self, image: ImagesIn, mask: Image.Image | np.ndarray | Tensor | None = None, *, seed: int = 0
    ) -> np.ndarray:
        """The class label by which the network predicts each image best: int64 [n]; see `known_error`.

        mask: as of `inpaint`, where an image is unknown; None for images that are whole.
        """
        originals = self._images(image, 1)
        nothing = np.zeros((len(originals), 1, *self.spec.shape[1:]), bool)
        unknown = nothing if mask is None else self._mask(mask, len(originals))
        if len(hidden := np.flatnonzero(unknown.all((1, 2, 3)))):
            raise DdpmError(
                f"the mask hides all of image {hidden[0]} (counted from 0): leave some of it to be classified."
            )
        found = self._classes_of_rest(originals, unknown, seed)
        if found is None:
            raise DdpmError("this model knows no class labels: it cannot tell one from another.")
        return found

    @_computing
    def log_likelihood(self, images: ImagesIn, *, labels: Labels = None, seed: int = 0) -> np.ndarray:
        """A lower bound of log p(x_0) of each 8-bit image, in nats: float64 [n], by DDPM, eq. 5.

        E_q[log p(x_0|x_1) − Σ_t KL(q(x_{t−1}|x_t, x_0) ‖ p(x_{t−1}|x_t)) − KL(q(x_T|x_0) ‖ N(0, 1))].
        labels: then of log p(x_0, label), with the frequency of the label in the training set. In bits per dimension:
        ``−log_likelihood / (pixels · log 2)``. Predictions of x_0 are clipped to [-1, 1], whatever the settings. Every
        training time is evaluated: seconds for one image, minutes for hundreds on a CPU.
        """
        originals = self._images(images, 1)
        known = self._known(originals, labels)
        plain = self.generator.denoiser.conditioned(known)  # guidance would be no model of the images
        schedule, noise = plain.schedule, self._noise(range(1, len(originals) + 1), seed)
        with _progress(len(schedule)) as on_step:
            found = log_likelihood_bound(plain, self._to_device(originals), schedule, noise, on_step=on_step)
        nats = label_nats(self.generator.conditioning.frequencies.flatten())
        bound = found.cpu() if known is None else found.cpu() - nats[known.cpu()]
        return bound.numpy()

    @_computing
    def denoise(
        self, x_t: Tensor | np.ndarray, t: int, *, labels: Labels = None, **settings: Unpack[Settings]
    ) -> Tensor:
        """x̂_0 of noised images by the denoiser that samplers call, with guidance and clipping: float32 like x_t.

        x_t: floating point [n, c, h, w], √ᾱ_t x_0 + √(1−ᾱ_t) noise with x_0 in [-1, 1]. t: the training time, 0 (least
        noise) to T − 1. ``guidance=1, autoguidance=1, clip=False`` give what the network itself predicts.
        """
        try:
            given = torch.as_tensor(x_t)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DdpmError(f"x_t is of the type {type(x_t).__name__}; an array or a tensor is wanted.") from error
        if not given.is_floating_point():
            raise DdpmError(f"x_t holds values of type {given.dtype}; floating point is wanted.")
        given = given.to(torch.float32).to(self.device)
        if given.ndim != 4 or given.shape[1:] != self.spec.shape or not len(given):
            wanted = ", ".join(map(str, self.spec.shape))
            raise DdpmError(f"x_t has the shape {list(given.shape)}; [n, {wanted}] is wanted.")
        if not bool(given.isfinite().all()):
            raise DdpmError("x_t holds NaN or infinity; finite numbers are wanted.")
        generator, count = self._changed(settings), len(given)
        last = len(generator.denoiser.schedule) - 1
        if not 0 <= (t := _whole(t, "t", least=0)) <= last:
            raise DdpmError(f"t is {t}; the training times of this model are 0 to {last}.")
        classes = _classes(labels, count, self.class_names)
        if classes is None and self.classes:
            generator.needs_null_label("images without class labels", "give labels")
            known = None
        else:
            known = self._labels(range(1, count + 1), classes, generator)
        return self._denoiser(generator, known)(given, t)

    def _changed(self, settings: Any) -> Generator:  # noqa: ANN401
        """The generator with other settings. Raises DdpmError for what is none."""
        unknown = sorted(set(settings) - set(Settings.__annotations__))
        if unknown:
            raise DdpmError(f"unknown setting {', '.join(unknown)}: there are {', '.join(Settings.__annotations__)}.")
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}
        for key, value in plain.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise DdpmError(f"{key} is {value}; a finite number is wanted.")
        try:
            config = GenerateConfig.model_validate(self.generator.config.model_dump() | plain)
        except ValidationError as error:
            raise DdpmError(f"{describe(error, 1)}.") from error
        return replace(self.generator, config=config)

    def _deterministic(self, settings: Any) -> Generator:  # noqa: ANN401
        """The generator for inversion, with other settings. Raises DdpmError for what is none, or of other samplers."""
        if ignored := sorted({"sampler", "eta", "variance"} & set(settings)):
            raise DdpmError(
                f"inversion is by deterministic DDIM: leave {', '.join(ignored)} away, or interpolate with a seed."
            )
        steps = min(_INVERSION_STEPS, len(self.generator.denoiser.schedule))
        return self._changed(_DETERMINISTIC | Settings(steps=steps) | settings)

    def _denoiser(self, generator: Generator, labels: Tensor | None) -> Denoiser:
        return generator.guided.conditioned(labels)

    def _labels(self, numbers: Sequence[int], classes: np.ndarray | None, generator: Generator) -> Tensor | None:
        """The conditioning labels of images to be sampled."""
        if classes is None:
            found = generator.labels(numbers)
        else:
            found = labels_of_classes(generator.conditioning, numbers, classes)
        return None if found is None else torch.from_numpy(found).to(self.device)

    def _known(
        self, images: np.ndarray, labels: Labels, known: np.ndarray | bool = True, *, auto: bool = False
    ) -> Tensor | None:
        """The conditioning labels of images by what is ``known`` of them; where that is nothing, those of samples.

        auto: ``labels`` were found by what is known, and say nothing where that is nothing.
        """
        known = np.broadcast_to(known, (len(images), 1, *images.shape[2:])).copy()
        classes = _classes(labels, len(images), self.class_names)
        found = nearest_labels(self.generator.conditioning, images, known, classes)
        sampled = self._labels(range(1, len(images) + 1), None if auto else classes, self.generator)
        if found is None or sampled is None:
            self.generator.needs_null_label("images without class labels", "give labels")
            return None
        return torch.where(torch.from_numpy(known.any((1, 2, 3))).to(self.device), found.to(self.device), sampled)

    def _classes_of_rest(self, images: np.ndarray, painted: np.ndarray, seed: int) -> np.ndarray | None:
        """The class label that explains best what is not to be painted, int64 [n]; None for a model without."""
        if not self.classes:
            return None
        x_0, known = self._to_device(images), torch.from_numpy(~painted).to(self.device)
        schedule, numbers = self.generator.denoiser.schedule, range(1, len(images) + 1)
        steps = spaced(schedule, min(_CLASSIFYING_STEPS, len(schedule)), "trailing")
        errors = []
        classes = tqdm(np.arange(self.classes), desc="classify", unit="class", delay=_SHOWN_AFTER, leave=False)
        for label in classes:
            denoise = self.generator.denoiser.conditioned(self._known(images, label, ~painted))
            errors.append(known_error(denoise.remembering(), x_0, known, steps, self._noise(numbers, seed)))
        return torch.stack(errors).argmin(0).numpy()

    def _sampled(
        self, generator: Generator, numbers: Sequence[int], labels: Tensor | None, seed: int, on_step: OnStep
    ) -> Tensor:
        noise = self._noise(numbers, seed)
        denoiser = self._denoiser(generator, labels)
        return generator.sampler(denoiser.remembering(), noise(), generator.steps, noise, on_step)

    def _noise(self, numbers: Sequence[int], seed: int) -> ImageNoise:
        seed = _whole(seed, "seed", least=0)
        return ImageNoise(seed, self.generator.config.replicate, numbers, self.spec.shape, self.device)

    def _part(self, generator: Generator, strength: float) -> Schedule:
        """The steps from the time ``strength`` on."""
        part, steps = shortened(generator.denoiser.schedule, strength, generator.config.steps)
        return spaced(part, steps, generator.config.spacing)

    def _images(self, given: ImagesIn, count: int) -> np.ndarray:
        """Images of a caller as uint8 [n, c, h, w]; a single one ``count`` times."""
        count = _whole(count, "count", least=1, most=MOST_IMAGES)
        pictures = [given] if isinstance(given, Image.Image) else given
        if isinstance(pictures, np.ndarray | Tensor):
            array = _array(pictures)
        elif isinstance(pictures, Sequence) and pictures and all(isinstance(one, Image.Image) for one in pictures):
            for picture in pictures:
                self._check_size(*picture.size)
            array = np.stack([_rgb(picture, "image") for picture in pictures])
        else:
            raise DdpmError(
                "the image is no Pillow image, no list of one or more of these, and no array or tensor: PIL.Image.open "
                "reads a file, numpy.stack joins arrays."
            )
        single = array.ndim == 3 and (array.shape[0] == self.spec.channels or array.shape[2] in (1, 3))
        if array.ndim == 2 or single:
            array = array[None]
        elif array.ndim in (3, 4) and array.shape[-1] in (2, 4):
            raise DdpmError('the image has an alpha channel: give the Pillow image, or its convert("RGB").')
        try:
            images = as_images(array, "the image")
        except DamagedFile as error:
            raise DdpmError(f"{error}.") from error
        images = to_grey(images) if self.spec.channels == 1 else to_rgb(images)
        self._check_size(*images.shape[:1:-1])
        if len(images) > 1 and count > 1:
            raise DdpmError(f"count={count} completions or variations are for a single image; {len(images)} are given.")
        return np.repeat(images, count, 0)  # a copy, which torch wants to own

    def _check_size(self, width: int, height: int) -> None:
        size = self.spec.size
        if (width, height) != (size, size):
            raise DdpmError(f"the image has {width} × {height} pixels; this model's have {size} × {size}: resize it.")

    def _mask(self, mask: Image.Image | np.ndarray | Tensor, count: int) -> np.ndarray:
        """A caller's mask as bool [n, 1, h, w]."""
        try:
            array = to_grey(_rgb(mask, "mask")[None])[0, 0] if isinstance(mask, Image.Image) else _array(mask)
        except ValueError:  # a list whose rows differ in length
            array = np.empty(())
        size = self.spec.size
        if array.shape not in ((size, size), (count, size, size), (count, 1, size, size)):
            raise DdpmError(
                f"the mask has the shape {list(array.shape)}; [{size}, {size}], or one for each of the {count} images, "
                f"[{count}, {size}, {size}], is wanted."
            )
        if array.dtype.kind not in "biuf":
            raise DdpmError(f"the mask holds values of type {array.dtype}; bool or numbers are wanted.")
        if array.dtype not in (bool, np.uint8) and not ((array >= 0) & (array <= 1)).all():
            raise DdpmError(
                "the mask holds numbers outside 0 to 1: give those as bool, as uint8 or divided by their maximum."
            )
        if array.dtype != bool:
            array = array > (127.5 if array.max(initial=0) > 1 else 0.5)
        return np.broadcast_to(array.reshape(-1, 1, size, size), (count, 1, size, size)).copy()

    def _to_device(self, images: np.ndarray) -> Tensor:
        return normalize(torch.from_numpy(images).to(self.device))


# Inversion is of the network alone: guidance bends the path, and what is clipped cannot be undone.
_DETERMINISTIC = Settings(sampler="ddim", eta=0.0, guidance=1.0, autoguidance=1.0, clip=False)
_INVERSION_STEPS = 50
# The keys of `generate` that are of a run of the pipeline, and one that older settings lack.
_OF_A_RUN: dict[str, Any] = {
    "guidance_rescale": 0.0,
    "checkpoint": "best",
    "num_images": 1,
    "replicate": 0,
    "replicates": 0,
    "classes": "all",
    "format": "png",
    "output_size": "auto",
    "trajectories": 1,
}
_CLASSIFYING_STEPS = 10
_ITERATIONS = 4  # of the fixed point of each step of the inversion


def _generator(checkpoint: Checkpoint, name: str, config: GenerateConfig | None, device: torch.device) -> Generator:
    """The generator of a checkpoint; without settings of its own, with what it can follow of the shipped model's."""
    if config is None:
        config = _config(load_checkpoint(pretrained.path_of("mnist")).metadata["sampling"], "mnist")
        config = config.model_copy(
            update={
                "steps": min(config.steps, checkpoint.diffusion.timesteps),
                "guidance": config.guidance if checkpoint.null_label else 1.0,
                "autoguidance": config.autoguidance if checkpoint.tensors.get("guide") else 1.0,
            }
        )
    # In float32: a batch of a few images gains nothing from bfloat16. The process is left as it is set up.
    generator = make_generator(checkpoint, name, config, 0, Runtime(device, torch.float32, compiled=False))
    denoiser = generator.denoiser
    guide = _in_parts(denoiser.guide) if denoiser.guide else None
    return replace(generator, denoiser=replace(denoiser, predict=_in_parts(denoiser.predict), guide=guide))


def _in_parts(predict: Predict) -> Predict:
    """The same of any number of images, in the memory that a few hundred take."""

    def predicted(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        parts = [slice(first, first + _BATCH) for first in range(0, len(x_t), _BATCH)]
        return torch.cat([predict(x_t[part], t[part], None if labels is None else labels[part]) for part in parts])

    return predicted


def _config(sampling: Mapping[str, Any], name: str) -> GenerateConfig:
    """The section `generate` with these `Settings`. Raises DdpmError that names where they stood."""
    try:
        return GenerateConfig.model_validate({**_OF_A_RUN, **sampling})
    except ValidationError as error:
        raise DdpmError(f"{name} was made by another version of this project: {describe(error)}.") from error


def _read_settings(path: Path) -> GenerateConfig:
    """The section `generate` of a params.yaml. Raises DdpmError."""
    try:
        return GenerateConfig.model_validate(read_yaml(path)["generate"])
    except ValidationError as error:
        raise DdpmError(f"{path}: generate: {describe(error, 1)}.") from error
    except FileNotFoundError as error:
        raise DdpmError(f"{path} is missing: name a params.yaml.") from error
    except OSError as error:
        raise DdpmError(f"{path} cannot be read ({error.strerror}): name a params.yaml.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DdpmError(f"{path} is no parameter file with a section generate: name a params.yaml.") from error


def _classes(labels: Labels, count: int, names: tuple[str, ...]) -> np.ndarray | None:
    """The class labels of so many images, int64 [n]. Raises DdpmError for those that the model does not know."""
    if labels is None:
        return None
    if not names:
        raise DdpmError("this model knows no class labels: leave labels away.")
    # As objects, the integers of arrays and tensors would become Python's.
    kept = _array(labels) if isinstance(labels, Tensor) else labels
    given = np.asarray(kept, None if hasattr(labels, "dtype") else object)
    if given.shape not in ((), (1,), (count,)):
        raise DdpmError(f"labels are one class label, or one for each of the {count} images.")
    found = np.array([_class(label, names) for label in given.flat], np.int64)
    return np.broadcast_to(found.reshape(given.shape), (count,)).copy()


def _class(label: object, names: tuple[str, ...]) -> int:
    label = _array(label)[()] if isinstance(label, Tensor) else label
    number = class_number(label, names)
    if number is not None:
        return number
    raise DdpmError(f"there is no class {label}: this model knows {known_classes(names)}.")


def _whole(value: object, name: str, least: int, most: int | None = None) -> int:
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = least - 1
    if not least <= found <= (most or 2**63 - 1):
        last = f"{most:,}" if most else "2⁶³ − 1"
        raise DdpmError(f"{name} is {value}; a whole number from {least} to {last} is wanted.")
    return found


def _fraction(value: float, name: str) -> float:
    if not isinstance(value, numbers.Real) or not 0.0 <= value <= 1.0:
        raise DdpmError(f"{name} is {value}; a number from 0 to 1 is wanted.")
    return float(value)


def _rgb(picture: Image.Image, name: str) -> np.ndarray:
    """A caller's Pillow image as uint8 [3, h, w]. Raises DdpmError where that cannot be, or its white is not known."""
    try:
        picture.load()
        dark = picture.mode == "I" and 0 < np.asarray(picture).max(initial=0) <= 255
        if picture.mode == "F" or dark:
            raise DdpmError(
                f"the {name} is a Pillow image of mode {picture.mode}{', of 16 bits but at most 255' if dark else ''}: "
                'give a NumPy array of its values, or its convert("L").'
            )
        return np.asarray(as_rgb(picture, _BACKGROUND)).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError) as error:  # of a file that is read only now, and of rare modes
        raise DdpmError(
            f"the {name} is a Pillow image that cannot be read as RGB ({error}): give another one."
        ) from error


def _array(given: Any) -> np.ndarray:  # noqa: ANN401
    """An array or tensor as an array. Raises ValueError for lists that are none."""
    if not isinstance(given, Tensor):
        return np.asarray(given)
    given = given.detach().cpu()
    return (given.float() if given.dtype == torch.bfloat16 else given).numpy()  # which NumPy does not know


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def _as(x_0: Tensor, as_: As) -> Images:
    if as_ == "tensor":
        return x_0
    images = denormalize(x_0)
    return images if as_ == "numpy" else [to_pil(image) for image in images]


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[int, Tensor, Tensor], None]]:
    """A progress bar over so many network evaluations, once it has taken a while: an `OnStep`."""
    with tqdm(total=steps, unit="step", delay=_SHOWN_AFTER, leave=False) as bar:
        yield lambda step, x_t, x_0: bar.update(bar.n < steps) and None  # the call with the result is no step
