"""Average the weights of a training over another length than it did.

python -m ddpm average data/model/last.safetensors --length 0.03 --out average.safetensors
python -m ddpm sample --model average.safetensors

The training must have kept snapshots (`train.posthoc_snapshots: 32`); they lie in the folder posthoc beside its
checkpoints. The length is the standard deviation of the average's profile in time, as a fraction of the whole training:
0.03 is the last few hundredths, 0.2 most of it.
"""

import argparse
from pathlib import Path

from ddpm.models.checkpoint import save_checkpoint
from ddpm.training.posthoc import averaged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("checkpoint", type=Path, help="of the training; its guide and settings are kept")
    parser.add_argument("--length", type=float, required=True, help="above 0, up to 0.288")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the checkpoint to write")


def run(arguments: argparse.Namespace) -> None:
    """Write the checkpoint, and say how near it is to the average of that length. Raises DdpmError, OSError."""
    checkpoint, distance = averaged(arguments.checkpoint, arguments.length)
    save_checkpoint(arguments.out, checkpoint)
    print(f"{arguments.out}: length {arguments.length:g}, its profile within {distance:.2%} of the exact one")
