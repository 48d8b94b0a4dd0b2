"""What several sub-commands share: which model, how it samples, where images come from and go."""

import argparse
import os
from pathlib import Path

import numpy as np

from ddpm import pretrained
from ddpm.api import Model, Settings, load
from ddpm.data.decoding import decode
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile
from ddpm.utils.files import atomic_folder, check_new_folder, save_arrays
from ddpm.utils.images import enlarge, tile, write_png, write_rgb_pngs

DEVICES = "auto (CUDA where there is a device), cpu, cuda, …"
_GAP_GREY = 64
_LARGEST_SCALE = 100
_SETTINGS = ("sampler", "steps", "guidance", "autoguidance")


def add_options(parser: argparse.ArgumentParser, default: str, *, sampler: bool = True) -> None:
    """All that a command which samples has: where the images go (to ``default``), which model, how it samples.

    sampler: whether it is to be chosen.
    """
    _add_output_options(parser, default)
    add_model_options(parser)
    _add_sampling_options(parser, sampler=sampler)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and where it computes."""
    names = " or ".join(pretrained.names())
    parser.add_argument("--model", default="mnist", metavar="MODEL", help=f"{names}, or a checkpoint (default mnist)")
    parser.add_argument("--params", type=Path, metavar="YAML", help="a params.yaml: sample by its section generate")
    parser.add_argument("--device", default="auto", help=DEVICES)


def _add_sampling_options(parser: argparse.ArgumentParser, *, sampler: bool) -> None:
    """How the model samples: its own settings unless said otherwise."""
    group = parser.add_argument_group("sampling", "the model's own settings unless given here")
    group.add_argument("--seed", type=int, default=0, help="other noise, other images (default 0)")
    group.add_argument("--steps", type=int, help="more is slower, and not always better")
    group.add_argument("--guidance", type=float, metavar="W", help="1: none; above, more typical of the class")
    group.add_argument("--autoguidance", type=float, metavar="W", help="1: none; above, away from the guide's faults")
    if sampler:
        group.add_argument("--sampler", choices=list(SAMPLERS))


def _add_output_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Where the images go, and how."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(default),
        help=f"NAME.png: one picture; NAME.npz: arrays; else a folder of PNGs (default {default})",
    )
    parser.add_argument("--columns", type=int, help="of the picture (default: as many as rows)")
    parser.add_argument(
        "--scale", type=int, default=1, help="pixels of the picture per pixel of an image, up to 100 (default 1)"
    )


def open_model(arguments: argparse.Namespace) -> Model:
    """The model that the options name. Raises DdpmError."""
    return load(arguments.model, device=arguments.device, settings=arguments.params)


def given_settings(arguments: argparse.Namespace) -> Settings:
    """The settings that the options change."""
    given = {key: value for key in _SETTINGS if (value := getattr(arguments, key, None)) is not None}
    return Settings(**given)  # type: ignore[typeddict-item]


def read_picture(path: Path, size: int) -> np.ndarray:
    """A PNG, JPEG or WebP file as an image, uint8 [1, 3, size, size]; says so where it is resized.

    Raises MissingFile, DamagedFile.
    """
    try:
        pixels, own = decode(path, size, "stretch", background=(0, 0, 0))
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is missing") from error
    except DamagedFile as error:
        raise DamagedFile(f"{path} is no image that can be read: {error}") from error
    if own != (size, size):
        print(f"{path} is {own[0]} × {own[1]} pixels: resized to {size} × {size}")
    return pixels[None]


def write_images(
    arguments: argparse.Namespace, images: np.ndarray, columns: int | None = None, **beside: np.ndarray | None
) -> None:
    """Write uint8 images [n, c, h, w] as the options say, and say so; an npz file has the arrays ``beside`` them, too.

    Raises DdpmError, OSError.
    """
    out, count = arguments.out, len(images)
    check_output(arguments)
    if out.suffix == ".npz":
        save_arrays(out, images=images, **{name: array for name, array in beside.items() if array is not None})
    elif out.suffix == ".png":
        columns = arguments.columns or columns or round(count**0.5 + 0.499)
        write_png(out, enlarge(tile(images, min(columns, count), background=_GAP_GREY), arguments.scale))
    else:
        with atomic_folder(out) as folder:
            write_rgb_pngs(folder, images, 1, count)
    print(f"{count} {'images' if count > 1 else 'image'} in {out}")


def check_output(arguments: argparse.Namespace) -> None:
    """Raises DdpmError where the images could not be written as asked, before they are sampled."""
    out = arguments.out
    if out.suffix not in ("", ".png", ".npz"):
        raise DdpmError(f"--out {out}: NAME.png, NAME.npz or the name of a folder is wanted.")
    if out.suffix in (".png", ".npz") and out.is_dir():
        raise DdpmError(f"--out {out} is a folder: name a file.")
    if not out.suffix:
        check_new_folder(out)
    check_whole(arguments, columns=1, scale=1)
    if arguments.scale > _LARGEST_SCALE:
        raise DdpmError(f"--scale {arguments.scale}: a whole number from 1 to {_LARGEST_SCALE} is wanted.")
    if out.suffix != ".png" and (arguments.columns or arguments.scale != 1):
        raise DdpmError(f"--out {out}: --columns and --scale are of one picture, NAME.png; leave them away.")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise DdpmError(f"--out {out}: {folder} is no folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DdpmError(f"--out {out}: this user may not write to {folder}; name another place.")


def check_whole(arguments: argparse.Namespace, **least: int) -> None:
    """Raises DdpmError for an option whose value is less than its least one."""
    for name, smallest in least.items():
        value = getattr(arguments, name)
        if value is not None and value < smallest:
            option = name.replace("_", "-")
            raise DdpmError(f"--{option} {value}: a whole number from {smallest} on is wanted.")
