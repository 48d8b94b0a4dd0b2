"""Sample, draw and blend in a browser: serves the page of a model at an address of this machine.

python -m ddpm page                                          of the shipped model
python -m ddpm page --model data/model/best.safetensors      of another one
python -m ddpm page --model data/export/page                 one that is written already

The page is a folder of static files, which any web server can offer: `python -m ddpm export` writes it.
"""

import argparse
import tempfile
from pathlib import Path

from ddpm import pretrained
from ddpm.commands.options import add_model_options, open_model
from ddpm.export.browser_runtime import fetch_runtime
from ddpm.export.denoise import refusal
from ddpm.export.page import write_page
from ddpm.export.serve import add_server_options, page_server, serve_until_interrupted
from ddpm.utils.errors import DdpmError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_server_options(parser, 8000)
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serve until interrupted. Raises DdpmError, OSError."""
    with tempfile.TemporaryDirectory(prefix="page-") as scratch:
        folder = Path(arguments.model)
        if arguments.model in pretrained.names() or not folder.is_dir():
            model = open_model(arguments)
            if why := refusal(model.checkpoint):
                raise DdpmError(f"no page: {why}.")
            runtime, folder = fetch_runtime(), Path(scratch)
            print("writing the page …", flush=True)
            write_page(folder, model.checkpoint, arguments.model, model.generator.config, 0, runtime)
        serve_until_interrupted(page_server(folder, arguments.port), browser=not arguments.no_browser)
