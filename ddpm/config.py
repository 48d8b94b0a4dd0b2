"""The typed settings. No default stands here: those are in ``params.yaml``; here stand the types and the bounds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ddpm.errors import DamagedFile, DdpmError, MissingFile

Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
InsideUnit = Annotated[float, Field(strict=True, gt=0, lt=1)]
BelowOne = Annotated[float, Field(strict=True, ge=0, lt=1)]
AutoOrCount = Annotated[Literal["auto"] | Count, Field(union_mode="left_to_right")]
Name = Annotated[str, Field(min_length=1)]


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

    classes: CountOrZero
    base_channels: Annotated[int, Field(strict=True, ge=2, multiple_of=2)]
    channel_multipliers: Annotated[tuple[Count, ...], Field(min_length=1)]
    blocks_per_level: Count
    mid_blocks: Count
    patch_size: Literal[1, 2, 4]
    attention: Annotated[bool, Field(strict=True)]
    time_conditioning: Literal["film", "shift"]
    norm_groups: Count
    dropout: BelowOne


class DiffusionConfig(_Section):
    """The forward process and what the network predicts. beta_start and beta_end belong to the linear schedule."""

    schedule: Literal["linear", "cosine"]
    timesteps: Count
    beta_start: InsideUnit
    beta_end: InsideUnit
    target: Literal["eps", "v", "x_0"]

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start ({self.beta_start}) must not exceed beta_end ({self.beta_end})")
        return self


class TrainConfig(_Section):
    """The training run. epochs may be a fraction; everything counted in steps is in optimizer steps."""

    epochs: Positive
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
    """The sampling run. draw numbers the set of images; digits and guidance are for a network that is told labels."""

    checkpoint: Literal["best", "last"]
    num_images: Count
    draw: CountOrZero
    digits: Literal["all"] | Annotated[tuple[CountOrZero, ...], Field(min_length=1)]
    guidance: NotNegative
    guidance_interval: tuple[NotNegative, NotNegative]
    sampler: Literal["ddpm", "ddim", "dpmpp_2m", "heun"]
    steps: Count
    spacing: Literal["even", "log_snr"]
    variance: Literal["small", "large"]
    eta: NotNegative
    clip: Annotated[bool, Field(strict=True)]
    output_size: Annotated[int, Field(strict=True, ge=8, le=1024)]
    trajectories: Count

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

    bootstrap: CountOrZero
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

    grid_columns: Count
    snapshots: Annotated[int, Field(strict=True, ge=2)]
    gif_seconds: Positive
    scale: Count


class RuntimeConfig(_Section):
    """Where and how fast, never what: nothing here is a dependency of a stage."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    precision: Literal["auto", "float32", "bfloat16"]
    compile: Literal["auto", "on", "off"]
    deterministic: Annotated[bool, Field(strict=True)]
    generate_batch_size: AutoOrCount
    workers: AutoOrCount
    checkpoint_every_seconds: Positive


class Config(_Section):
    """All of ``params.yaml``."""

    seed: CountOrZero
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
        return self


def parse_config(values: Mapping[str, Any], name: str) -> Config:
    """Check ``values``, nested mappings as read from the YAML file ``name``. Raises DdpmError naming each wrong key."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise DdpmError(f"{name}: {describe(error)}.") from error


def describe(error: ValidationError) -> str:
    """The wrong keys of a pydantic error and what is wrong with each, on one line."""
    problems: list[str] = []
    told = set()
    for problem in error.errors(include_url=False):
        # The first two parts name a key; what follows is a place in a list, or a member of a union that did not fit.
        key = ".".join(str(part) for part in problem["loc"][:2])
        if key in told:
            continue
        told.add(key)
        if problem["type"] == "extra_forbidden":
            problems.append(f"unknown key {key}")
        elif problem["type"] == "missing":
            problems.append(f"missing key {key}")
        elif problem["type"] == "value_error":
            problems.append(": ".join(filter(None, (key, str(problem["ctx"]["error"])))))
        else:
            problems.append(f"{key} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}")
    return "; ".join(problems)


def load_config(path: Path) -> Config:
    """Read a complete parameter file as YAML 1.2, in which ``1e-05`` is a number, as DVC does.

    Raises MissingFile, DamagedFile for what is no YAML, DdpmError naming each wrong key.
    """
    try:
        values = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is missing") from error
    except YAMLError as error:
        raise DamagedFile(f"{path} is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise DamagedFile(f"{path} holds no keys")
    return parse_config(values, str(path))
