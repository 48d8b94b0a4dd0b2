"""The typed settings. No default stands here: those are in ``params.yaml``; here stand the types and the bounds.

An upper bound lies far above what is of use, and below what ends in overflow or in files that no program reads.
"""

import math
import re
import reprlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML

from ddpm.data.decoding import RESIZINGS
from ddpm.data.sources import SOURCES
from ddpm.diffusion.denoiser import CLIPPINGS
from ddpm.diffusion.objective import TIME_DENSITIES, TIME_SAMPLINGS, WEIGHTINGS
from ddpm.diffusion.process import TARGETS
from ddpm.diffusion.samplers import SAMPLERS, VARIANCES
from ddpm.diffusion.schedule import SCHEDULES, SPACINGS, build_schedule
from ddpm.evaluation.features import EXTRACTORS
from ddpm.export.formats import EXPORT_FORMATS
from ddpm.models.networks import NETWORKS
from ddpm.training.optimizers import LR_DECAYS, OPTIMIZERS
from ddpm.utils.errors import DdpmError
from ddpm.utils.image_files import FORMATS
from ddpm.utils.registry import Registry


@dataclass(frozen=True)
class _Checked:
    """A validator that runs before pydantic's own. schema: what it allows, as JSON schema, when that is asked for."""

    check: Callable[[object], object]
    schema: Callable[[], dict[str, Any]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:  # noqa: ANN401
        return BeforeValidator(self.check).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, _: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:  # noqa: ANN401
        return self.schema()


def _name_in(names: Registry[Any]) -> _Checked:
    """A validator that a value is one of the names that a registry holds when the value is checked."""

    def check(value: object) -> object:
        if value not in list(names):
            raise ValueError(f"input should be one of {', '.join(names)}")
        return value

    return _Checked(check, lambda: {"enum": list(names)})


def _like(pattern: str, description: str) -> _Checked:
    """A validator that a value is text which the whole ``pattern`` matches; the message has its ``description``."""

    def check(value: object) -> object:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"input should be {description}")
        return value

    return _Checked(check, lambda: {"type": "string", "description": description})


Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
CountOrZero = Annotated[int, Field(ge=0, le=1_000_000_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
InsideUnit = Annotated[float, Field(gt=0, lt=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Interval = Annotated[tuple[NotNegative, NotNegative], Field(strict=False)]
Blocks = Annotated[int, Field(ge=1, le=64)]
Beta = Annotated[float, Field(ge=1e-6, lt=1)]
ClassLabel = Annotated[int, Field(ge=0)]
Name = Annotated[str, _like(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+", "text on one line")]
ModelFile = Annotated[str, _like("[A-Za-z0-9_]+", "the name of a file in data/model without its ending, such as best")]
Device = Annotated[str, _like("auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?", "auto, cpu, cuda, cuda:0, cuda:1, …, mps")]


class _Yaml(reprlib.Repr):
    """Writes values like YAML, shortened where they are long: some lines of YAML can stand for billions of values."""

    def repr_NoneType(self, _: None, level: int) -> str:  # noqa: N802, ARG002 (the name is reprlib's)
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:  # noqa: ARG002
        return str(value).lower()


# Messages of pydantic that speak of Python, by their type.
_PLAIN = {
    "missing": "input should be a longer list",
    "model_type": "input should be a section with keys",
    "tuple_type": "input should be a list",
}
# Of the variance at a schedule's last time: more than any schedule of a thousand steps leaves.
_MUCH_LEFT = 0.1
_SHORT = _Yaml()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 100


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataConfig(_Section):
    """name: the data set. source: where it comes from, see the module of that name in ddpm/data/sources.

    The others are of the data set `folder` alone, see there.
    """

    name: Annotated[str, _name_in(SOURCES)]
    source: Name
    path: Name
    labels: Name
    image_size: Annotated[int, Field(ge=7, le=1024)]  # the patches of `swd` have 7 pixels a side
    channels: Literal["auto", 1, 3]
    resize: Annotated[str, _name_in(RESIZINGS)]
    background: Annotated[str, _like("[a-z]+|#[0-9a-f]{6}", 'a colour such as white or "#ff8000"')]
    broken_fraction: BelowOne
    test_fraction: InsideUnit
    test_seed: Annotated[int, Field(ge=0, lt=2**63)]


class SplitConfig(_Section):
    """train_fraction: fraction of the training images to train on, the rest being for validation."""

    train_fraction: InsideUnit


class ModelConfig(_Section):
    """The network: see `ddpm.models.networks.unet.UNet`.

    classes: auto (as many as the data has), 0: it is given no class label. clusters: see `ddpm.models.conditioning`.
    What else may be auto: see `ddpm.models.build.fit_to_images`.
    """

    network: Annotated[str, _name_in(NETWORKS)]
    classes: Literal["auto", 0]
    clusters: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)]
    base_channels: Annotated[int, Field(ge=2, le=4096, multiple_of=2)]
    channel_multipliers: (
        Literal["auto"] | Annotated[tuple[Blocks, ...], Field(strict=False, min_length=1, max_length=8)]
    )
    blocks_per_level: Blocks
    mid_blocks: Blocks
    patch_size: Literal["auto", 1, 2, 4]
    attention: bool
    time_conditioning: Literal["film", "shift"]
    time_multiplier: Annotated[int, Field(ge=1, le=16)]
    upsampling: Literal["nearest", "transposed"]
    initialization: Literal["zero", "xavier"]
    norm_groups: Count
    dropout: BelowOne
    learned_variance: bool
    self_conditioning: bool

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        multipliers = (1, 2, 4) if self.channel_multipliers == "auto" else (1, *self.channel_multipliers)
        for width in {self.base_channels * multiplier for multiplier in multipliers}:
            if width % self.norm_groups:
                raise ValueError(f"norm_groups ({self.norm_groups}) must divide the {width} channels of every level")
        return self


class DiffusionConfig(_Section):
    """The forward process and what the network predicts: see `ddpm.diffusion.schedule` and `ddpm.diffusion.process`."""

    schedule: Annotated[str, _name_in(SCHEDULES)]
    timesteps: Annotated[int, Field(ge=1, le=10_000)]
    beta_start: Beta
    beta_end: Beta
    shift: Annotated[float, Field(gt=0, le=100)]
    zero_terminal_snr: bool
    target: Annotated[str, _name_in(TARGETS)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start ({self.beta_start}) must not exceed beta_end ({self.beta_end})")
        if self.zero_terminal_snr and self.target == "eps":
            raise ValueError(
                "zero_terminal_snr needs another target than eps, which says nothing of x_0 where all is noise"
            )
        try:
            build_schedule(self)
        except DdpmError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return self


class TrainConfig(_Section):
    """The training run. epochs may be a fraction; everything counted in steps is in optimizer steps."""

    epochs: Annotated[float, Field(gt=0, le=1_000_000)]
    batch_size: Count
    shards: Count
    optimizer: Annotated[str, _name_in(OPTIMIZERS)]
    lr: Positive
    weight_decay: NotNegative
    adam_beta2: InsideUnit
    warmup_steps: CountOrZero
    lr_decay: Annotated[str, _name_in(LR_DECAYS)]
    grad_clip: Positive
    ema_decay: BelowOne
    posthoc_snapshots: CountOrZero
    weighting: Annotated[str, _name_in(WEIGHTINGS)]
    min_snr_gamma: Positive
    vlb_weight: NotNegative
    offset_noise: NotNegative
    label_dropout: BelowOne
    guide_fraction: BelowOne
    time_density: Annotated[str, _name_in(TIME_DENSITIES)]
    log_sigma_mean: Annotated[float, Field(ge=-5, le=5)]
    log_sigma_std: Positive
    time_sampling: Annotated[str, _name_in(TIME_SAMPLINGS)]
    log_every: Count
    validate_every: Count
    validation_images: Count
    preview_every: CountOrZero
    preview_steps: Count
    distance_every: CountOrZero
    distance_images: Annotated[int, Field(ge=256, le=100_000)]
    keep_every_epochs: CountOrZero

    @model_validator(mode="after")
    def _shards_divide(self) -> Self:
        if self.batch_size % self.shards:
            raise ValueError(f"shards ({self.shards}) must divide batch_size ({self.batch_size})")
        return self


class GenerateConfig(_Section):
    """The sampling run. checkpoint: a file of data/model. replicate: which set of images; replicates: further sets.

    classes and guidance are for a class-conditional network.
    """

    checkpoint: ModelFile
    num_images: Annotated[int, Field(ge=1, le=10_000_000)]
    replicate: CountOrZero
    replicates: Annotated[int, Field(ge=0, le=1000)]
    classes: Literal["all"] | Annotated[tuple[ClassLabel | Name, ...], Field(strict=False, min_length=1)]
    guidance: Annotated[float, Field(ge=0, le=100)]
    guidance_interval: Interval
    guidance_rescale: Annotated[float, Field(ge=0, le=1)]
    autoguidance: Annotated[float, Field(ge=0, le=100)]
    autoguidance_interval: Interval
    sampler: Annotated[str, _name_in(SAMPLERS)]
    steps: Count
    spacing: Annotated[str, _name_in(SPACINGS)]
    variance: Annotated[float, Field(ge=0, le=1)] | Literal["learned"] | Annotated[str, _name_in(VARIANCES)]
    eta: Annotated[float, Field(ge=0, le=1)]
    clip: bool | Annotated[str, _name_in(CLIPPINGS)]
    format: Annotated[str, _name_in(FORMATS)]
    output_size: Literal["auto"] | Annotated[int, Field(ge=8, le=1024)]
    trajectories: Annotated[int, Field(ge=1, le=10_000)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for key in ("guidance_interval", "autoguidance_interval"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} ({low}, {high}) must name its lower end first")
        if self.trajectories > self.num_images:
            raise ValueError(f"trajectories ({self.trajectories}) must not exceed num_images ({self.num_images})")
        return self


class FidConfig(_Section):
    """The evaluation. extractors: see `ddpm.evaluation.features.extractor_names`; swd: see `open_evaluator`.

    classifier_epochs: of the training of the data set's own; what begins with inception is that network's.
    """

    extractors: Literal["auto"] | Annotated[tuple[Annotated[str, _name_in(EXTRACTORS)], ...], Field(strict=False)]
    classifier_epochs: Annotated[int, Field(ge=1, le=10_000)]
    swd: Literal["auto", "on", "off"]
    bootstrap: Annotated[int, Field(ge=0, le=1_000_000)]
    inception: Literal["auto", "required"]
    inception_weights: Name | None
    inception_features: Literal[64, 192, 768, 2048]


class LikelihoodConfig(_Section):
    """The bound on the likelihood: of how many test images, at how many times each beside the last step."""

    images: Annotated[int, Field(ge=2, le=10_000)]
    times_per_image: Count


class VisualizeConfig(_Section):
    """The figures. grid_columns × grid_columns samples; gif_seconds: how long one run of the animation lasts."""

    grid_columns: Annotated[int, Field(ge=1, le=100)]
    snapshots: Annotated[int, Field(ge=2, le=100)]
    gif_seconds: Annotated[float, Field(gt=0, le=600)]
    scale: Annotated[int, Field(ge=1, le=16)]


class ExportConfig(_Section):
    """The model for other programs. formats: of one denoising evaluation. page: the one that samples in a browser."""

    formats: Annotated[tuple[Annotated[str, _name_in(EXPORT_FORMATS)], ...], Field(strict=False)]
    page: Literal["auto", "required", "off"]


class RuntimeConfig(_Section):
    """Where and how fast, never what: nothing here is a dependency of a stage."""

    device: Device
    precision: Literal["auto", "float32", "bfloat16"]
    compile: Literal["auto", "on", "off"]
    deterministic: bool
    generate_batch_size: Literal["auto"] | Count
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
    processes: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
    checkpoint_every_seconds: Positive


class Config(_Section):
    """All of ``params.yaml``."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    data: DataConfig
    split: SplitConfig
    model: ModelConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    generate: GenerateConfig
    fid: FidConfig
    likelihood: LikelihoodConfig
    visualize: VisualizeConfig
    export: ExportConfig
    runtime: RuntimeConfig

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.fid.extractors and self.fid.swd == "off":
            raise ValueError(
                "fid.extractors is empty and fid.swd is off, so nothing is measured: set one of them to auto"
            )
        for name in self.fid.extractors if self.fid.extractors != "auto" else ():
            if name in SOURCES and name != self.data.name:  # a shipped network has the name of its data set
                raise ValueError(
                    f"fid.extractors ({name}) knows {name} alone, but data.name is {self.data.name}: name classifier "
                    "instead, or set fid.extractors to auto"
                )
        for key, steps in (("generate.steps", self.generate.steps), ("train.preview_steps", self.train.preview_steps)):
            if steps > self.diffusion.timesteps:
                raise ValueError(f"{key} ({steps}) must not exceed diffusion.timesteps ({self.diffusion.timesteps})")
        labelled = self.model.classes or self.model.clusters != 1
        if labelled and not self.train.label_dropout and self.generate.guidance != 1.0:
            raise ValueError(
                f"generate.guidance ({self.generate.guidance}) needs a network trained with the null label too: "
                "raise train.label_dropout above 0, or set generate.guidance to 1"
            )
        if self.generate.autoguidance != 1.0 and not self.train.guide_fraction:
            raise ValueError(
                f"generate.autoguidance ({self.generate.autoguidance}) needs a guide: raise train.guide_fraction above "
                "0, or set generate.autoguidance to 1"
            )
        if self.generate.variance == "learned" and not self.model.learned_variance:
            raise ValueError(
                "generate.variance (learned) needs a network that predicts it: set model.learned_variance to true, or "
                "generate.variance to small, large or a fraction"
            )
        if self.generate.classes != "all" and not self.model.classes:
            raise ValueError(
                f"generate.classes ({list(self.generate.classes)}) needs a class-conditional network: set "
                "model.classes to auto, or generate.classes to all"
            )
        self._refuse_checkpoint()
        if (left := build_schedule(self.diffusion).alpha_bar[-1].item()) > _MUCH_LEFT:
            warnings.warn(
                f"the {self.diffusion.schedule} schedule leaves {left:.0%} of the image's variance at its end, where "
                "sampling starts from noise alone: raise diffusion.beta_end or diffusion.timesteps, or set "
                "diffusion.zero_terminal_snr to true",
                stacklevel=2,
            )
        return self

    def _refuse_checkpoint(self) -> None:
        """Raise ValueError for a checkpoint that is neither written by the training nor made of its snapshots."""
        name, train = self.generate.checkpoint, self.train
        if kept := re.fullmatch(r"epoch_(\d{4}|[1-9]\d{4,8})", name):
            every, epoch = train.keep_every_epochs, int(kept[1])
            if not every or epoch % every or not 0 < epoch <= math.ceil(train.epochs):
                raise ValueError(
                    f"generate.checkpoint ({name}) is not kept by a training of {train.epochs:g} epochs with "
                    f"train.keep_every_epochs ({every}): set that to a divisor of the epoch, or generate.checkpoint to "
                    "best or last"
                )
        elif name not in ("best", "last") and not train.posthoc_snapshots:
            raise ValueError(
                f"generate.checkpoint ({name}) is written by no training: set it to best or last, to epoch_0003 and "
                "the like with train.keep_every_epochs, or to the name of an average with train.posthoc_snapshots"
            )


def parse_config(values: Mapping[str, Any], name: str) -> Config:
    """Check ``values``, nested mappings as read from the YAML file ``name``. Raises DdpmError naming each wrong key."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise DdpmError(f"{name}: {describe(error)}.") from error


def describe(error: ValidationError, depth: int = 2) -> str:
    """The wrong keys of a pydantic error and what is wrong with each, on one line and without words of Python.

    depth: how many parts a key has; 1 where a section was validated alone.
    """
    problems: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False):
        kind, place, value = problem["type"], problem["loc"], problem["input"]
        reason = str(problem["ctx"]["error"]) if kind == "value_error" else _PLAIN.get(kind, problem["msg"])
        reason = f"{reason[:1].lower()}{reason[1:]}".replace("tuple", "list").partition(" after validation")[0]
        # The first parts name a key; what follows is a place in a list, or a member of a union that did not fit.
        key = ".".join(_shown(part).strip("'") for part in place[:depth])
        reasons = problems.setdefault(key, [])
        if kind == "extra_forbidden":
            reasons.append(f"unknown key {key}")
        elif kind == "missing" and len(place) <= depth:
            reasons.append(f"missing key {key}")
        elif kind == "value_error" and isinstance(value, Mapping):
            reasons.append(": ".join(filter(None, (key, reason))))
        elif kind == "too_short" and value:
            continue  # it has members, and what is wrong with them is said already
        elif not reasons:
            reasons.append(f"{key} = {_shown(value)}: {reason}")
        elif not any(reason in earlier for earlier in reasons):
            reasons.append(reason)
    return "; ".join(", or ".join(reasons) for reasons in problems.values())


def _shown(value: object) -> str:
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "an immense number"


def read_yaml(path: Path) -> Any:  # noqa: ANN401
    """What a file of YAML 1.2 holds, in which ``1e-05`` is a number, as for DVC. Raises OSError, ValueError."""
    try:
        return YAML(typ="safe", pure=True).load(path)
    except OSError:
        raise
    except Exception as error:  # ruamel lets pass what the conversion of a date, a number or a tag raises
        raise ValueError(" ".join(str(error).split())) from error


def load_config(path: Path) -> Config:
    """Read a complete parameter file.

    Raises DdpmError for a missing file, what is no YAML, and naming each wrong key.
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError as error:
        raise DdpmError(f"{path} is missing: run this in the folder that holds params.yaml and dvc.yaml.") from error
    except ValueError as error:
        raise DdpmError(f"{path} is not valid YAML ({error}): correct it.") from error
    if not isinstance(values, dict):
        raise DdpmError(f"{path} holds no keys: correct it, or restore it with `git checkout {path}`.")
    return parse_config(values, str(path))
