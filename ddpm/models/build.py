"""From settings to a network."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm.config import ModelConfig
from ddpm.data.image_set import ImageSpec
from ddpm.models.conditioning import count
from ddpm.models.networks import NETWORKS


def conditioning_classes(model: ModelConfig, spec: ImageSpec) -> int:
    """How many class labels the network is conditioned on; 0 for one that is given none."""
    return spec.classes if model.classes == "auto" else model.classes


def conditioning_labels(model: ModelConfig, spec: ImageSpec) -> int:
    """How many conditioning labels the network knows: see `Conditioning.count`."""
    return count(conditioning_classes(model, spec), model.clusters)


def build_network(model: ModelConfig, spec: ImageSpec) -> nn.Module:
    """An untrained network for these images. Raises DdpmError where settings and images do not fit together."""
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


def input_channels(model: ModelConfig, spec: ImageSpec) -> int:
    """How many channels the network is given: those of x_t and, with self-conditioning, of x̂_0."""
    return spec.channels * (2 if model.self_conditioning else 1)


def flops_per_image(model: ModelConfig, spec: ImageSpec) -> int:
    """Floating-point operations (a multiply-add counts two) of one forward pass of one image."""
    with torch.device("meta"):
        network = build_network(model, spec)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            given = torch.empty(1, input_channels(model, spec), *spec.shape[1:])
            network(given, torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops()
