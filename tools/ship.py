"""Make the weights that the package ships of a run of the pipeline: `python -m tools.ship FOLDER NAME`.

FOLDER holds the run: its params.yaml and data/model. Kept are the averaged weights, those of the guide where the run's
settings use autoguidance, what else sampling needs, and how the run samples, as the model's defaults.
Numbers are rounded to float16, which halves the file and moves no weight by more than one part in 2,000.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ddpm.api import Settings
from ddpm.config import read_yaml
from ddpm.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ddpm.pretrained import FOLDER
from ddpm.utils.errors import one_sentence
from tools import run


def shipped(folder: Path) -> Checkpoint:
    """What ships of the run in ``folder``. Raises DdpmError."""
    # Not by load_config: the run may be of a commit whose other settings had other keys.
    params = read_yaml(folder / "params.yaml")
    generate = params["generate"]
    checkpoint = load_checkpoint(folder / f"data/model/{generate['checkpoint']}.safetensors")
    conditioning = checkpoint.conditioning
    if conditioning.centroids is not None:
        conditioning = replace(conditioning, centroids=conditioning.centroids.half())
    metadata = {
        "commit": run("git", "-C", str(folder), "rev-parse", "HEAD").strip(),
        "epochs": params["train"]["epochs"],
        "sampling": {key: generate[key] for key in Settings.__annotations__ if key in generate},
    }
    groups = ["ema", "guide"] if generate["autoguidance"] != 1.0 else ["ema"]
    return replace(
        checkpoint,
        conditioning=conditioning,
        metadata=checkpoint.metadata | metadata,
        tensors={group: _halved(checkpoint.tensors[group]) for group in groups},
    )


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() for name, tensor in tensors.items()}


def main() -> None:
    """Write ddpm/pretrained/NAME.safetensors."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.ship", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", help="such as mnist")
    given = parser.parse_args()
    with one_sentence():
        path = FOLDER / f"{given.name}.safetensors"
        save_checkpoint(path, shipped(given.folder))
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
