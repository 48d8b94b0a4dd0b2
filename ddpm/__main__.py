"""Use a trained model from the shell. Nothing need be trained first: `python -m ddpm sample` samples 64 digits.

`python -m ddpm COMMAND --help` has examples of each.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ddpm.utils.errors import one_sentence

# Each sub-command and what it does: a module of `ddpm.commands`, of which only the one that is called is imported.
COMMANDS = {
    "sample": "sample images",
    "edit": "complete a part of an image, vary it, go from one to another",
    "info": "what a checkpoint holds",
    "average": "average the weights of a training over another length",
    "page": "sample, draw and blend in a browser",
    "export": "write a model for other programs: ONNX, torch.export, a page that samples in a browser",
    "evaluate": "measure a folder of images as the stage `fid` does",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence in place of all options, which --help shows."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for; its ``run`` is the function to call. Raises SystemExit for a mistake in it."""
    shown = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="python -m ddpm", description=__doc__, formatter_class=shown)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=shown)
        if name in arguments[:1]:
            module = importlib.import_module(f"ddpm.commands.{name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser.parse_args(arguments)


def main() -> None:
    """Run; what the user can fix ends it with one sentence and exit status 1."""
    with one_sentence(need_less="give it fewer images at a time, or another --device"):
        try:
            arguments = parse(sys.argv[1:])
            arguments.run(arguments)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads the output has enough of it, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


if __name__ == "__main__":
    main()
