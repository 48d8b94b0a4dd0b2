"""Sample, draw and blend in a browser: serves the page of a model at an address of this machine.

python -m ddpm page                                          of the shipped model
python -m ddpm page --model data/model/best.safetensors      of another one
python -m ddpm page --model data/export/page                 one that is written already

The page is a folder of static files, which any web server can offer: `python -m ddpm export` writes it.
"""

import argparse
import tempfile
import webbrowser
from pathlib import Path

from ddpm.commands.options import add_model_options, open_model
from ddpm.export.browser_runtime import fetch_runtime
from ddpm.export.page import write_page
from ddpm.export.serve import HOST, page_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--port", type=int, default=8000, help="0: one that is free (default 8000)")
    parser.add_argument("--no-browser", action="store_true", help="open no window")
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serve until interrupted. Raises DdpmError, OSError."""
    with tempfile.TemporaryDirectory(prefix="page-") as scratch:
        folder = Path(arguments.model)
        if not folder.is_dir():
            model, runtime, folder = open_model(arguments), fetch_runtime(), Path(scratch)
            print("writing the page …", flush=True)
            write_page(folder, model.checkpoint, arguments.model, model.generator.config, 0, runtime)
        with page_server(folder, arguments.port) as server:
            address = f"http://{HOST}:{server.server_port}/"
            print(f"{address}  (Ctrl+C ends it)", flush=True)
            if not arguments.no_browser:
                webbrowser.open(address)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()
