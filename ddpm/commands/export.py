"""Write a model for other programs.

    python -m ddpm export --out digits
    python -m ddpm export data/model/best.safetensors --out digits --formats onnx --page off

FOLDER/denoise.onnx (ONNX) and FOLDER/denoise.pt2 (torch.export) hold one denoising evaluation, (x_t, t, label) -> x̂_0,
for any number of images; FOLDER/model.json holds what sampling needs beside it; FOLDER/page is a page that samples in a
browser. Sizes, speeds and the difference from PyTorch are printed.
"""

import argparse
from pathlib import Path

import ddpm
from ddpm.export.formats import EXPORT_FORMATS
from ddpm.export.write import write_export
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import atomic_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("model", nargs="?", default="mnist", help="a shipped model or a checkpoint (default mnist)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--formats", nargs="*", default=list(EXPORT_FORMATS), choices=list(EXPORT_FORMATS), help="default: all"
    )
    parser.add_argument(
        "--page",
        default="auto",
        choices=("auto", "required", "off"),
        help="auto (default): where its runtime can be had",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write, and print what was written. Raises DdpmError, OSError."""
    folder: Path = arguments.out
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DdpmError(f"{folder} is there already: name a new folder, or delete it first.")
    model = ddpm.load(arguments.model, device="cpu")
    with atomic_folder(folder) as temporary:
        given = (temporary, model.checkpoint, str(arguments.model), arguments.formats, arguments.page)
        print(write_export(*given, model.generator.config, 0))
