"""The typed settings. No default stands here: those are in ``params.yaml``; here stand the types and the bounds.

An upper bound lies far above what is of use, and below what ends in overflow or in files that no program reads.
"""

import math
import reprlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML

from ddpm.errors import DamagedFile, DdpmError, MissingFile

Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
CountOrZero = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
InsideUnit = Annotated[float, Field(strict=True, gt=0, lt=1)]
BelowOne = Annotated[float, Field(strict=True, ge=0, lt=1)]
AutoOrCount = Annotated[Literal["auto"] | Count, Field(union_mode="left_to_right")]
Blocks = Annotated[int, Field(strict=True, ge=1, le=64)]
Beta = Annotated[float, Field(strict=True, ge=1e-6, lt=1)]
Digit = Annotated[int, Field(strict=True, ge=0, le=9)]
Name = Annotated[str, Field(min_length=1, pattern=r"^[^\p{Cc}\p{Zl}\p{Zp}]*$")]  # on one line

_IMAGE_SIZE = 28
# Below it the last ᾱ counts as 0 in float32, and what divides by it is no number.
_LEAST_ALPHA_BAR = 1e-30


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 100


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    """source: auto, mirror, npm, or a folder with the four IDX files."""

    source: Name


class SplitConfig(_Section):
    """train_fraction: share of the 60,000 training images to train on, the rest being for validation."""

    train_fraction: InsideUnit


class ModelConfig(_Section):
    """The U-Net: see `ddpm.model.unet.UNet`. classes: how many labels it is told apart by; 0 for none."""

    classes: Annotated[int, Field(strict=True, ge=0, le=1000)]
    base_channels: Annotated[int, Field(strict=True, ge=2, le=4096, multiple_of=2)]
    channel_multipliers: Annotated[
        tuple[Annotated[int, Field(strict=True, ge=1, le=64)], ...], Field(min_length=1, max_length=8)
    ]
    blocks_per_level: Blocks
    mid_blocks: Blocks
    patch_size: Literal[1, 2, 4]
    attention: Annotated[bool, Field(strict=True)]
    time_conditioning: Literal["film", "shift"]
    norm_groups: Count
    dropout: BelowOne

    @model_validator(mode="after")
    def _several_values_a_group(self) -> Self:
        widths = [self.base_channels * multiplier for multiplier in (1, *self.channel_multipliers)]
        for level, pair in enumerate(pairwise(widths)):
            one_pixel = self.patch_size * 2**level >= _IMAGE_SIZE
            if one_pixel and any(self.norm_groups % width == 0 for width in pair):
                raise ValueError(
                    f"norm_groups ({self.norm_groups}) leaves each value alone in its group where channel_multipliers "
                    f"({list(self.channel_multipliers)}) lead down to one pixel: lower it, or name fewer levels"
                )
        return self


class DiffusionConfig(_Section):
    """The forward process and what the network predicts. beta_start and beta_end belong to the linear schedule."""

    schedule: Literal["linear", "cosine"]
    timesteps: Annotated[int, Field(strict=True, ge=1, le=10_000)]
    beta_start: Beta
    beta_end: Beta
    target: Literal["eps", "v", "x_0"]

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start ({self.beta_start}) must not exceed beta_end ({self.beta_end})")
        return self

    @model_validator(mode="after")
    def _some_signal_left(self) -> Self:
        rise = (self.beta_end - self.beta_start) / max(1, self.timesteps - 1)
        log_alpha_bar = sum(math.log1p(-self.beta_start - t * rise) for t in range(self.timesteps))
        if self.schedule == "linear" and log_alpha_bar < math.log(_LEAST_ALPHA_BAR):
            raise ValueError(
                f"beta_start ({self.beta_start}) to beta_end ({self.beta_end}) in {self.timesteps} timesteps leaves "
                "nothing of the image: lower beta_end or timesteps"
            )
        return self


class TrainConfig(_Section):
    """The training run. epochs may be a fraction; everything counted in steps is in optimizer steps."""

    epochs: Annotated[float, Field(strict=True, gt=0, le=1_000_000)]
    batch_size: Count
    optimizer: Literal["muon", "adamw"]
    lr: Positive
    weight_decay: NotNegative
    adam_beta2: InsideUnit
    warmup_steps: CountOrZero
    lr_decay: Literal["cosine", "linear", "none"]
    grad_clip: Positive
    ema_decay: BelowOne
    weighting: Literal["none", "min_snr"]
    min_snr_gamma: Positive
    label_dropout: BelowOne
    time_density: Literal["uniform", "log_normal"]
    log_sigma_mean: Annotated[float, Field(strict=True, ge=-5, le=5)]
    log_sigma_std: Positive
    time_sampling: Literal["uniform", "stratified"]
    log_every: Count
    validate_every: Count
    validation_images: Count
    preview_every: CountOrZero
    preview_steps: Count
    keep_every_epochs: CountOrZero


class GenerateConfig(_Section):
    """The sampling run. draw numbers the set of images, repeats further sets.

    digits and guidance are for a network that is told labels.
    """

    checkpoint: Literal["best", "last"]
    num_images: Annotated[int, Field(strict=True, ge=1, le=10_000_000)]
    draw: CountOrZero
    repeats: Annotated[int, Field(strict=True, ge=0, le=1000)]
    digits: Literal["all"] | Annotated[tuple[Digit, ...], Field(min_length=1)]
    guidance: Annotated[float, Field(strict=True, ge=0, le=100)]
    guidance_interval: tuple[NotNegative, NotNegative]
    sampler: Literal["ddpm", "ddim", "dpmpp_2m", "heun"]
    steps: Count
    spacing: Literal["even", "log_snr"]
    variance: Literal["small", "large"]
    eta: Annotated[float, Field(strict=True, ge=0, le=1)]
    clip: Annotated[bool, Field(strict=True)]
    output_size: Annotated[int, Field(strict=True, ge=8, le=1024)]
    trajectories: Annotated[int, Field(strict=True, ge=1, le=10_000)]

    @model_validator(mode="after")
    def _enough_images(self) -> Self:
        if self.trajectories > self.num_images:
            raise ValueError(f"trajectories ({self.trajectories}) must not exceed num_images ({self.num_images})")
        return self

    @model_validator(mode="after")
    def _interval_in_order(self) -> Self:
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(f"guidance_interval ({low}, {high}) must name its lower end first")
        return self


class FidConfig(_Section):
    """The evaluation. inception_weights: a file of pytorch-fid's weights; null for torch's hub cache or download."""

    bootstrap: Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
    inception: Literal["auto", "required", "off"]
    inception_weights: Name | None
    inception_features: Literal[64, 192, 768, 2048]

    @property
    def weights_path(self) -> Path | None:
        """inception_weights as a path."""
        return Path(self.inception_weights) if self.inception_weights else None


class LikelihoodConfig(_Section):
    """The bound on the likelihood: of how many test images, at how many times each beside the last step."""

    images: Annotated[int, Field(strict=True, ge=2, le=10_000)]
    times_per_image: Count


class VisualizeConfig(_Section):
    """The figures. grid_columns × grid_columns samples; gif_seconds: how long one run of the animation lasts."""

    grid_columns: Annotated[int, Field(strict=True, ge=1, le=100)]
    snapshots: Annotated[int, Field(strict=True, ge=2, le=100)]
    gif_seconds: Annotated[float, Field(strict=True, gt=0, le=600)]
    scale: Annotated[int, Field(strict=True, ge=1, le=16)]


class RuntimeConfig(_Section):
    """Where and how fast, never what: nothing here is a dependency of a stage."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:(0|[1-9][0-9]?))?)$")]
    precision: Literal["auto", "float32", "bfloat16"]
    compile: Literal["auto", "on", "off"]
    deterministic: Annotated[bool, Field(strict=True)]
    generate_batch_size: AutoOrCount
    workers: Annotated[
        Literal["auto"] | Annotated[int, Field(strict=True, ge=1, le=1024)], Field(union_mode="left_to_right")
    ]
    checkpoint_every_seconds: Positive


class Config(_Section):
    """All of ``params.yaml``."""

    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)]
    data: DataConfig
    split: SplitConfig
    model: ModelConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    generate: GenerateConfig
    fid: FidConfig
    likelihood: LikelihoodConfig
    visualize: VisualizeConfig
    runtime: RuntimeConfig

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for key, steps in (("generate.steps", self.generate.steps), ("train.preview_steps", self.train.preview_steps)):
            if steps > self.diffusion.timesteps:
                raise ValueError(f"{key} ({steps}) must not exceed diffusion.timesteps ({self.diffusion.timesteps})")
        if self.model.classes and not self.train.label_dropout and self.generate.guidance != 1.0:
            raise ValueError(
                f"generate.guidance ({self.generate.guidance}) needs a network that was at times told no label: "
                "raise train.label_dropout above 0, or set generate.guidance to 1"
            )
        if self.generate.digits != "all" and max(self.generate.digits) >= self.model.classes:
            raise ValueError(
                f"generate.digits ({list(self.generate.digits)}) needs a network that is told these labels: "
                f"raise model.classes ({self.model.classes}) to 10, or set generate.digits to all"
            )
        return self


def parse_config(values: Mapping[str, Any], name: str) -> Config:
    """Check ``values``, nested mappings as read from the YAML file ``name``. Raises DdpmError naming each wrong key."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise DdpmError(f"{name}: {describe(error)}.") from error


def describe(error: ValidationError) -> str:
    """The wrong keys of a pydantic error and what is wrong with each, on one line."""
    problems: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False):
        # The first two parts name a key; what follows is a place in a list, or a member of a union that did not fit.
        key = ".".join(_shown_key(part) for part in problem["loc"][:2])
        told = problems.setdefault(key, [])
        if problem["type"] == "extra_forbidden":
            told.append(f"unknown key {key}")
        elif problem["type"] == "missing":
            told.append(f"missing key {key}")
        elif problem["type"] == "value_error":
            told.append(": ".join(filter(None, (key, str(problem["ctx"]["error"])))))
        else:
            reason = f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
            if not told:
                told.append(f"{key} = {_shown(problem['input'])}: {reason}")
            elif problem["type"] != "too_short" and not any(reason in earlier for earlier in told):
                told.append(reason)
    return "; ".join(", or ".join(told) for told in problems.values())


def _shown_key(part: int | str) -> str:
    return part if isinstance(part, str) and part.isprintable() and len(part) < _SHORT.maxstring else _shown(part)


def _shown(value: object) -> str:
    """A value as Python writes it, shortened where it is long: some lines of YAML can stand for billions of values."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "an immense number"


def load_config(path: Path) -> Config:
    """Read a complete parameter file as YAML 1.2, in which ``1e-05`` is a number, as DVC does.

    Raises MissingFile, DamagedFile for what is no YAML, DdpmError naming each wrong key.
    """
    try:
        values = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is missing") from error
    except OSError:
        raise
    except Exception as error:  # ruamel lets pass what the conversion of a date, a number or a tag raises
        raise DamagedFile(f"{path} is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise DamagedFile(f"{path} holds no keys")
    return parse_config(values, str(path))
