"""Edit images with a trained model: complete a part, vary, go from one to another.

Images are files such as the model's training images, of MNIST white on black; those of another size are resized.
`python -m ddpm edit inpaint --help` and so on say more.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm.api import Model
from ddpm.commands.options import (
    add_options,
    check_output,
    given_settings,
    open_model,
    read_picture,
    write_images,
)
from ddpm.utils.errors import DdpmError
from ddpm.utils.images import to_grey

_SIDES = ("left", "right", "top", "bottom")

_INPAINT = """Sample a part of an image again, so that it fits what is left (RePaint, Lugmayr et al. 2022).

  python -m ddpm edit inpaint digit.png --erase right --count 8
  python -m ddpm edit inpaint digit.png --mask mask.png --label 8

Without --label the class is the one by which the model predicts best what is left."""

_VARY = """Images like this one: noised up to a time, and sampled back from there (SDEdit, Meng et al. 2022).

  python -m ddpm edit vary digit.png --count 8 --strength 0.6
  python -m ddpm edit vary digit.png --label 9 --strength 0.8     made into a nine"""

_INTERPOLATE = """From one image to another.

  python -m ddpm edit interpolate a.png b.png              through their noises by DDIM: the ends are a and b
  python -m ddpm edit interpolate a.png b.png --strength 0.6 --labels 4 9
                                                           between the two noised up to that time, as in DDPM"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The three edits and their options."""
    edits = parser.add_subparsers(metavar="EDIT", required=True)
    inpaint = _edit(edits, "inpaint", "complete a part of an image", _INPAINT, _inpaint)
    inpaint.add_argument("image", type=Path, help="a picture")
    part = inpaint.add_mutually_exclusive_group(required=True)
    part.add_argument("--mask", type=Path, metavar="FILE", help="a picture of that size, white where the model paints")
    part.add_argument("--erase", choices=_SIDES, help="the half that the model paints")
    inpaint.add_argument("--label", metavar="CLASS", help="what it is to be, by name or by number")
    inpaint.add_argument("--count", type=int, default=1, help="how many completions (default 1)")
    inpaint.add_argument("--resamplings", type=int, default=10, help="how often each step is taken (default 10)")
    inpaint.add_argument("--jump-length", type=int, help="steps undone at a time (default 10, or half of 10 or fewer)")

    vary = _edit(edits, "vary", "images like one", _VARY, _vary)
    vary.add_argument("image", type=Path, help="a picture")
    vary.add_argument("--strength", type=float, default=0.5, help="0: the image; 1: a fresh sample (default 0.5)")
    vary.add_argument("--label", metavar="CLASS", help="what they are to be, by name or by number")
    vary.add_argument("--count", type=int, default=8, help="how many variations (default 8)")

    interpolate = _edit(edits, "interpolate", "from one image to another", _INTERPOLATE, _interpolate)
    interpolate.add_argument("a", type=Path, help="a picture")
    interpolate.add_argument("b", type=Path, help="another")
    interpolate.add_argument("--count", type=int, default=9, help="images in all (default 9)")
    interpolate.add_argument("--labels", nargs=2, metavar="CLASS", help="what a and b are, by name or by number")
    interpolate.add_argument("--strength", type=float, help="noise the images up to this time instead, in (0, 1]")
    add_options(inpaint, "edited.png", sampler=False)  # RePaint's steps are ancestral
    add_options(vary, "edited.png")
    add_options(interpolate, "edited.png")
    interpolate.set_defaults(seed=None)


def run(arguments: argparse.Namespace) -> None:
    """Edit, and write the images. Raises DdpmError, OSError."""
    check_output(arguments)
    images = np.asarray(arguments.edit(open_model(arguments), arguments))
    write_images(arguments, images, columns=len(images))


def _edit(
    edits: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    description: str,
    edit: Callable[[Model, argparse.Namespace], object],
) -> argparse.ArgumentParser:
    parser = edits.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(edit=edit)
    return parser


def _inpaint(model: Model, given: argparse.Namespace) -> object:
    size = model.spec.size
    if given.mask:
        mask = to_grey(read_picture(given.mask, size))[0, 0]
    else:
        row, column = np.mgrid[:size, :size]
        first = (column if given.erase in ("left", "right") else row) < size // 2
        mask = first if given.erase in ("left", "top") else ~first
    return model.inpaint(
        read_picture(given.image, size),
        mask,
        labels="auto" if given.label is None else given.label,
        count=given.count,
        jump_length=given.jump_length,
        resamplings=given.resamplings,
        seed=given.seed,
        **given_settings(given),
    )


def _vary(model: Model, given: argparse.Namespace) -> object:
    return model.vary(
        read_picture(given.image, model.spec.size),
        given.strength,
        labels=given.label,
        count=given.count,
        seed=given.seed,
        **given_settings(given),
    )


def _interpolate(model: Model, given: argparse.Namespace) -> object:
    if given.strength is None and (given.seed is not None or given.sampler):
        raise DdpmError("--seed and --sampler need --strength: the noises of the two images are those that DDIM finds.")
    partly = {} if given.strength is None else {"strength": given.strength, "seed": given.seed or 0}
    return model.interpolate(
        read_picture(given.a, model.spec.size),
        read_picture(given.b, model.spec.size),
        given.count,
        labels=given.labels,
        **partly,
        **given_settings(given),
    )
