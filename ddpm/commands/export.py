"""Write a model for other programs.

python -m ddpm export                                                         the shipped model, into the folder export
python -m ddpm export --model data/model/best.safetensors --out digits        another one
python -m ddpm export --formats onnx --page off                               an ONNX file alone

denoise.onnx (ONNX) and denoise.pt2 (torch.export) hold one denoising evaluation, (x_t, t, label) -> x̂_0, for any number
of images; model.json what sampling needs beside it; page is a folder that samples in a browser. Sizes, speeds and the
difference from PyTorch are printed.
"""

import argparse
from pathlib import Path

from ddpm.commands.options import add_model_options, open_model
from ddpm.export.formats import EXPORT_FORMATS
from ddpm.export.write import write_export
from ddpm.utils.files import atomic_folder, check_new_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    names = list(EXPORT_FORMATS)
    parser.add_argument("--out", type=Path, default=Path("export"), metavar="FOLDER", help="a new one (default export)")
    parser.add_argument("--formats", nargs="*", default=names, choices=names, help="(default: all)")
    parser.add_argument(
        "--page",
        default="auto",
        choices=("auto", "required", "off"),
        help="auto: where its runtime can be had from npm (default)",
    )
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write, and print what was written. Raises DdpmError, OSError."""
    folder: Path = arguments.out
    check_new_folder(folder)
    model = open_model(arguments)
    with atomic_folder(folder) as temporary:
        given = (temporary, model.checkpoint, arguments.model, arguments.formats, arguments.page)
        print(write_export(*given, model.generator.config, 0))
