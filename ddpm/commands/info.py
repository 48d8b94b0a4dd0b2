"""What a checkpoint holds: the network, what it was trained on, and how it samples.

python -m ddpm info mnist                             the model that comes with the package
python -m ddpm info data/model/best.safetensors --json
"""

import argparse
import json
from pathlib import Path

from ddpm import pretrained
from ddpm.models.build import flops_per_image
from ddpm.models.checkpoint import load_checkpoint
from ddpm.utils.errors import DamagedFile
from ddpm.utils.files import sha256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("checkpoint", help=f"{' or '.join(pretrained.names())}, or a file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Print. Raises DdpmError, OSError."""
    found = described(pretrained.path_of(arguments.checkpoint))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for section, values in found.items():
        print(section)
        for key, value in values.items():
            print(f"  {key:<24}{f'{value:,}' if isinstance(value, int) and value > 9_999 else value}")


def described(path: Path) -> dict[str, dict[str, object]]:
    """Sections of plain values. Raises MissingFile, DamagedFile, DdpmError."""
    checkpoint = load_checkpoint(path)
    conditioning, metadata = checkpoint.conditioning, dict(checkpoint.metadata)
    sampling = metadata.pop("sampling", {})
    parameters = {
        group: sum(tensor.numel() for tensor in checkpoint.tensors[group].values())
        for group in ("ema", "guide")
        if checkpoint.tensors.get(group)
    }
    if "ema" not in parameters:
        raise DamagedFile(f"{path} holds no averaged weights, as a model to sample from does")
    names = checkpoint.spec.class_names
    named = {} if names == tuple(map(str, range(len(names)))) else {"class_names": ", ".join(names)}
    return {
        "file": {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)},
        "images": {"size": checkpoint.spec.size, "channels": checkpoint.spec.channels, **named},
        "conditioning": {"classes": conditioning.classes, "clusters": conditioning.clusters},
        "network": {
            "parameters": parameters["ema"],
            "guide": "guide" in parameters,
            "flops_per_evaluation": flops_per_image(checkpoint.model, checkpoint.spec),
            **checkpoint.model.model_dump(mode="json", exclude={"classes", "clusters"}),
        },
        "diffusion": checkpoint.diffusion.model_dump(mode="json"),
        "training": metadata,
        "sampling": sampling or {"settings": "none kept: those of the model mnist, or of a params.yaml"},
    }
