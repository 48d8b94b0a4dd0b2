"""One file for a trained network: tensors and plain settings in safetensors, nothing that executes on loading.

The file carries what built the network, so that sampling rebuilds it and never asks. Tensors are grouped by a prefix:
``ema`` (the average, which sampling uses), ``guide`` (the same early in the run, for autoguidance),
``labels`` (the tensors of `Conditioning`), ``weights``, ``optimizer``, ``sums``, ``times`` and ``power_…`` (what
resuming needs; the last, averages of other lengths, also for `ddpm.training.posthoc`).

It also carries its own SHA-256, as safetensors has no checksum: that of all its bytes, with zeros in place of the
digest. So no byte of a tensor or a setting can change unnoticed.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ddpm.config import DiffusionConfig, ModelConfig, describe
from ddpm.data.image_set import ImageSpec
from ddpm.models.build import build_network, conditioning_classes, fit_to_images, outline_network
from ddpm.models.conditioning import Conditioning, centroid_values
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile
from ddpm.utils.files import atomic_path

# safetensors writes several metadata keys in random order; one key keeps equal checkpoints equal byte for byte.
_METADATA_KEY = "ddpm"
_NO_DIGEST = "0" * 64
# Settings that earlier checkpoints do not name, with what they have: one that has it does not name it either.
_ADDED: dict[str, dict[str, Any]] = {
    "model": {"learned_variance": False, "self_conditioning": False},
    "diffusion": {"shift": 1.0, "zero_terminal_snr": False},
}


class _Spec(BaseModel):
    """What `ImageSpec.to_file` gives, within the bounds of the settings: anyone can write a file and its digest."""

    model_config = ConfigDict(extra="forbid", strict=True)
    size: Annotated[int, Field(ge=4, le=1024)]
    channels: Literal[1, 3]
    classes: Annotated[int, Field(ge=0, le=10_000)]
    name: str = ""
    class_names: list[str] = []


class _Header(BaseModel):
    """The types of what stands beside the tensors. What `Checkpoint.model` and its like may be, their own types say."""

    model_config = ConfigDict(strict=True)
    model: dict[str, Any]
    diffusion: dict[str, Any]
    spec: _Spec
    classes: int
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """model, diffusion, spec: what built the network. metadata: plain JSON values (step, losses, …).

    conditioning: on what labels. tensors: groups of named tensors, see above.
    """

    model: ModelConfig
    diffusion: DiffusionConfig
    spec: ImageSpec
    conditioning: Conditioning
    metadata: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(repr=False)

    @property
    def null_label(self) -> bool:
        """Whether the network was trained with the null label, too. Only metadata of one that was not name it."""
        return bool(self.metadata.get("null_label", True))


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically. Raises OSError that names ``path`` (a full disk, a folder that cannot be written)."""
    header = {
        "sha256": _NO_DIGEST,
        "model": _without_added("model", checkpoint.model.model_dump(mode="json")),
        "diffusion": _without_added("diffusion", checkpoint.diffusion.model_dump(mode="json")),
        "spec": checkpoint.spec.to_file(),
        "classes": checkpoint.conditioning.classes,
        "metadata": checkpoint.metadata,
    }
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, named in (checkpoint.tensors | {"labels": checkpoint.conditioning.tensors()}).items()
        for name, tensor in named.items()
    }
    content = memoryview(save(tensors, {_METADATA_KEY: json.dumps(header)}))
    digest = hashlib.sha256(content).hexdigest().encode()
    start = bytes(content[: 8 + _header_size(content)]).index(_NO_DIGEST.encode())
    # Not by safetensors' save_file: it hides the system's error, and lets nobody but the owner read the file.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for part in (content[:start], digest, content[start + len(digest) :]):
            file.write(part)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read what `save_checkpoint` wrote. Raises MissingFile, DamagedFile, DdpmError: a folder or another version."""
    if path.is_dir():
        raise DdpmError(f"{path} is a folder: name a file.")
    if not path.is_file():
        raise MissingFile(f"{path} is missing")
    content = path.read_bytes()
    try:
        start = 8 + _header_size(content)
        header = json.loads(json.loads(content[8:start])["__metadata__"][_METADATA_KEY])
        if "sha256" not in header:
            raise DamagedFile(f"{path} holds no SHA-256 of itself: it is damaged, or of an older version")
        if header["sha256"] != _digest_but_for(content, str(header["sha256"]).encode()):
            raise DamagedFile(f"{path} is damaged (its SHA-256 does not match)")
        _check_header(header)
        tensors: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load(content).items():
            group, name = key.split("/", 1)
            tensors.setdefault(group, {})[name] = tensor if group == "labels" else tensor.to(device)
        model = ModelConfig.model_validate(_ADDED["model"] | header["model"])
        diffusion = DiffusionConfig.model_validate(_ADDED["diffusion"] | header["diffusion"])
        spec = ImageSpec.from_file(header["spec"])
        conditioning = Conditioning(header["classes"], **tensors.pop("labels"))
        _check_conditioning(conditioning, model, spec)
        return Checkpoint(model, diffusion, spec, conditioning, header["metadata"], tensors)
    except ValidationError as error:
        raise DdpmError(f"{path} was made by another version of this project: {describe(error)}.") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged or no checkpoint of this project ({error})") from error


def _check_header(header: Any) -> None:  # noqa: ANN401
    """Raises ValueError that names the key whose value is wrong."""
    try:
        metadata = _Header.model_validate(header).metadata
    except ValidationError as error:
        raise ValueError(describe(error)) from error
    if not isinstance(metadata.get("sampling", {}), dict):
        raise ValueError("metadata.sampling is no section with keys")


def _check_conditioning(conditioning: Conditioning, model: ModelConfig, spec: ImageSpec) -> None:
    """Raises ValueError for labels that the network does not know."""
    classes, clusters = conditioning_classes(model, spec), int(fit_to_images(model, spec).clusters)
    shape = (max(1, classes), clusters)
    wanted = {"frequencies": shape} | ({"centroids": (*shape, centroid_values(spec.shape))} if clusters > 1 else {})
    tensors = conditioning.tensors()
    if conditioning.classes != classes or {name: tensor.shape for name, tensor in tensors.items()} != wanted:
        raise ValueError("its labels are not those of its network")
    frequencies = conditioning.frequencies
    if frequencies.dtype != torch.float64 or frequencies.min() < 0 or not 0 < frequencies.sum() < math.inf:
        raise ValueError("the frequencies of its labels are negative, not finite or all zero")
    if not all(tensor.is_floating_point() and bool(tensor.float().isfinite().all()) for tensor in tensors.values()):
        raise ValueError("the means of its clusters are no finite numbers")


def _without_added(section: str, settings: dict[str, Any]) -> dict[str, Any]:
    missing = object()
    return {key: value for key, value in settings.items() if value != _ADDED[section].get(key, missing)}


def _header_size(content: bytes | memoryview) -> int:
    """The length of safetensors' JSON header, which follows the 8 bytes that hold it."""
    return int.from_bytes(content[:8], "little")


def _digest_but_for(content: bytes, digest: bytes) -> str:
    """SHA-256 of ``content`` with zeros where ``digest`` first stands in it."""
    start = content.find(digest)
    view = memoryview(content)
    found = hashlib.sha256(view[:start])
    found.update(_NO_DIGEST.encode())
    found.update(view[start + len(digest) :])
    return found.hexdigest()


def restore_network(checkpoint: Checkpoint, name: str, group: str = "ema") -> nn.Module:
    """The network with the weights of that group, the averaged ones or those of the guide, in evaluation mode.

    Raises DamagedFile when the weights are of another architecture than the settings beside them, DdpmError when they
    are not finite.
    """
    model, weights = checkpoint.model.model_copy(update={"dropout": 0.0}), checkpoint.tensors.get(group, {})
    # Without memory: settings may describe more than the file holds, or the machine.
    outline = outline_network(model, checkpoint.spec)
    expected = {key: value.shape for key, value in outline.state_dict().items()}
    if expected != {key: value.shape for key, value in weights.items()}:
        raise DamagedFile(f"{name} holds weights of another architecture than its settings describe")
    if not all(bool(weight.float().isfinite().all()) for weight in weights.values()):
        raise DdpmError(f"{name} holds weights that are not finite numbers: train again with a smaller train.lr.")
    network = build_network(model, checkpoint.spec)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)
