"""From settings to a network."""

import itertools
import math
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ddpm.config import ModelConfig
from ddpm.data.image_set import ImageSpec
from ddpm.models.conditioning import count
from ddpm.models.networks import NETWORKS
from ddpm.utils.errors import DdpmError

# The resolutions that `auto` aims at.
_PATCH_SIZES, _FIRST_SIDE, _LAST_SIDE, _WIDEST = (1, 2, 4), 16, 8, 4
# At most so many clusters, in each class or where there are none; of at least so many images on average.
_CLUSTERS, _IMAGES_OF_A_CLASS, _IMAGES_WITHOUT_CLASSES = 200, 24, 100


def fit_to_images(model: ModelConfig, spec: ImageSpec, fewest: int | None = None) -> ModelConfig:
    """The settings with a value in place of every `auto` that the U-Net and its conditioning have.

    patch_size: the smallest of 1, 2 and 4 that leaves at most 16 pixels a side, or 4. channel_multipliers: 1, 2, 4,
    4, …, one for each resolution from there down to at most 8 pixels, and two at least unless that is odd. clusters:
    200, in each class or of a data set without classes, but no more than one for every 24 images of the smallest class,
    or for every 100 without classes; ``fewest`` are there (None: enough).

    Raises DdpmError, with the nearest sizes that fit, where one of the first two is `auto` and a resolution is not a
    whole number of pixels. Where both are given, the network aligns such resolutions itself.
    """
    patch, multipliers = _resolutions(model, spec.size)
    if "auto" in (model.patch_size, model.channel_multipliers) and not _divides(model, spec.size):
        smaller = [size for size in range(1, spec.size) if _divides(model, size)]
        larger = next(size for size in itertools.count(spec.size) if _divides(model, size))
        nearest = " or ".join(map(str, [*smaller[-1:], larger]))
        raise DdpmError(
            f"images of {spec.size} × {spec.size} pixels cannot be halved as often as model.patch_size and "
            f"model.channel_multipliers want: bring them to {nearest} pixels."
        )
    chosen: dict[str, Any] = {"patch_size": patch, "channel_multipliers": multipliers}
    if model.clusters == "auto":
        images = _IMAGES_OF_A_CLASS if conditioning_classes(model, spec) else _IMAGES_WITHOUT_CLASSES
        chosen["clusters"] = _CLUSTERS if fewest is None else max(1, min(_CLUSTERS, fewest // images))
    return model.model_copy(update=chosen)


def _resolutions(model: ModelConfig, size: int) -> tuple[int, tuple[int, ...]]:
    """The patch size and the channel multipliers for images of so many pixels a side."""
    patch, multipliers = model.patch_size, model.channel_multipliers
    side = next((p for p in _PATCH_SIZES if size <= p * _FIRST_SIDE), _PATCH_SIZES[-1]) if patch == "auto" else patch
    if multipliers == "auto":
        halvings = max(int(size // side % 2 == 0), math.ceil(math.log2(size / (side * _LAST_SIDE))))
        multipliers = tuple(min(2**level, _WIDEST) for level in range(halvings + 1))
    return side, multipliers


def _divides(model: ModelConfig, size: int) -> bool:
    """Whether every resolution is a whole number of pixels; of a network of one resolution the patches' alone."""
    patch, multipliers = _resolutions(model, size)
    alone = getattr(NETWORKS[model.network], "one_resolution", False)
    halvings = 0 if alone else len(multipliers) - 1
    return size % (patch * 2**halvings) == 0


def conditioning_classes(model: ModelConfig, spec: ImageSpec) -> int:
    """How many class labels the network is conditioned on; 0 for one that is given none."""
    return spec.classes if model.classes == "auto" else model.classes


def conditioning_labels(model: ModelConfig, spec: ImageSpec) -> int:
    """How many conditioning labels the network knows: see `Conditioning.count`."""
    return count(conditioning_classes(model, spec), int(fit_to_images(model, spec).clusters))


def build_network(model: ModelConfig, spec: ImageSpec) -> nn.Module:
    """An untrained network for these images. Raises DdpmError where settings and images do not fit together."""
    model = fit_to_images(model, spec)
    network = NETWORKS.build(
        model.network,
        model,
        input_channels=input_channels(model, spec),
        output_channels=spec.channels * (2 if model.learned_variance else 1),
        image_size=spec.size,
        classes=conditioning_labels(model, spec),
    )
    assert isinstance(network, nn.Module)
    return network


class _NoInitialization(TorchFunctionMode):
    """Leaves alone what torch.nn.init is to fill: for normal numbers on the meta device it imports the compiler."""

    def __torch_function__(self, function: Any, _: object, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs.get("tensor", *args[:1])
        return function(*args, **kwargs)


def outline_network(model: ModelConfig, spec: ImageSpec) -> nn.Module:
    """The network on the meta device: its shapes, which take no memory. Raises what `build_network` does."""
    with torch.device("meta"), _NoInitialization():
        return build_network(model, spec)


def input_channels(model: ModelConfig, spec: ImageSpec) -> int:
    """How many channels the network is given: those of x_t and, with self-conditioning, of x̂_0."""
    return spec.channels * (2 if model.self_conditioning else 1)


def flops_per_image(model: ModelConfig, spec: ImageSpec) -> int:
    """Floating-point operations (a multiply-add counts two) of one forward pass of one image."""
    network = outline_network(model, spec)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        given = torch.empty(1, input_channels(model, spec), *spec.shape[1:])
        network(given, torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops()
