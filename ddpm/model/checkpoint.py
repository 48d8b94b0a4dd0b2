"""One file for a trained network: tensors and plain settings in safetensors, nothing that executes on loading.

The file carries what built the network, so that sampling rebuilds it and never asks. Tensors are grouped by a prefix:
``ema`` (the average, which samples are drawn with), ``weights``, ``optimizer`` and ``rng`` (what resuming needs).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddpm.config import DiffusionConfig, ModelConfig, describe
from ddpm.diffusion.schedule import Schedule, cosine_schedule, linear_schedule
from ddpm.errors import DamagedFile, DdpmError, MissingFile
from ddpm.files import atomic_path
from ddpm.model.unet import UNet

# safetensors writes several metadata keys in random order; one key keeps equal checkpoints equal byte for byte.
_METADATA_KEY = "ddpm"


@dataclass(frozen=True)
class Checkpoint:
    """model, diffusion: what built the network. image_size: pixels a side. facts: plain JSON values (step, losses, …).

    class_shares: how often each label occurs among the training images, empty for a network that is told none.
    tensors: groups of named tensors, "ema" at least.
    """

    model: ModelConfig
    diffusion: DiffusionConfig
    image_size: int
    class_shares: list[float]
    facts: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(repr=False)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically. Raises OSError (a full disk, a folder that cannot be written)."""
    header = {
        "model": checkpoint.model.model_dump(mode="json"),
        "diffusion": checkpoint.diffusion.model_dump(mode="json"),
        "image_size": checkpoint.image_size,
        "class_shares": checkpoint.class_shares,
        "facts": checkpoint.facts,
    }
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, named in checkpoint.tensors.items()
        for name, tensor in named.items()
    }
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={_METADATA_KEY: json.dumps(header)})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read what `save_checkpoint` wrote. Raises MissingFile, DamagedFile, or DdpmError for one of another version."""
    if not path.is_file():
        raise MissingFile(f"{path} is missing")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {})[_METADATA_KEY])
            tensors: dict[str, dict[str, Tensor]] = {}
            for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                group, name = key.split("/", 1)
                tensors.setdefault(group, {})[name] = file.get_tensor(key)
        return Checkpoint(
            ModelConfig.model_validate(header["model"]),
            DiffusionConfig.model_validate(header["diffusion"]),
            int(header["image_size"]),
            [float(share) for share in header["class_shares"]],
            header["facts"],
            tensors,
        )
    except ValidationError as error:
        raise DdpmError(f"{path} was made by another version of this project: {describe(error)}.") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"{path} is damaged or no checkpoint of this project ({error})") from error


def build_network(model: ModelConfig) -> UNet:
    """An untrained network for single-channel images."""
    return UNet(image_channels=1, **model.model_dump())


def flops_per_image(model: ModelConfig, image_size: int) -> int:
    """Floating-point operations (a multiply-add counts two) of one forward pass of one image."""
    with torch.device("meta"):
        network = build_network(model)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 1, image_size, image_size), torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops()


def build_schedule(diffusion: DiffusionConfig) -> Schedule:
    """The schedule the network is trained on."""
    if diffusion.schedule == "linear":
        return linear_schedule(diffusion.timesteps, diffusion.beta_start, diffusion.beta_end)
    return cosine_schedule(diffusion.timesteps)


def restore_network(checkpoint: Checkpoint, name: str) -> UNet:
    """The network with its averaged weights, in evaluation mode.

    Raises DamagedFile when the weights are of another architecture than the settings beside them, DdpmError when they
    are not finite.
    """
    network = build_network(checkpoint.model)
    weights = checkpoint.tensors.get("ema", {})
    expected = {key: value.shape for key, value in network.state_dict().items()}
    if expected != {key: value.shape for key, value in weights.items()}:
        raise DamagedFile(f"{name} holds weights of another architecture than its settings describe")
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise DdpmError(f"{name} holds weights that are not finite numbers: train again with a smaller train.lr.")
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)
