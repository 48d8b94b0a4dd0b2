"""Sample, draw and blend in a browser: serves the page of a model at an address of this machine.

    python -m ddpm page
    python -m ddpm page data/model/best.safetensors
    python -m ddpm page data/export/page

The page itself is a folder of static files, which any web server can offer: `python -m ddpm export` writes it.
"""

import argparse
import tempfile
import webbrowser
from pathlib import Path

import ddpm
from ddpm.export.browser_runtime import fetch_runtime
from ddpm.export.page import write_page
from ddpm.export.serve import HOST, page_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "model",
        nargs="?",
        default="mnist",
        help="a shipped model, a checkpoint, or the folder of a page (default mnist)",
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default 8000)")
    parser.add_argument("--no-browser", action="store_true", help="open no window")


def run(arguments: argparse.Namespace) -> None:
    """Serve until interrupted. Raises DdpmError, OSError."""
    with tempfile.TemporaryDirectory(prefix="page-") as scratch:
        folder = Path(arguments.model)
        if not folder.is_dir():
            runtime, model, folder = fetch_runtime(), ddpm.load(arguments.model, device="cpu"), Path(scratch)
            print("preparing the page …", flush=True)
            write_page(folder, model.checkpoint, str(arguments.model), model.generator.config, 0, runtime)
        with page_server(folder, arguments.port) as server:
            address = f"http://{HOST}:{server.server_port}/"
            print(f"{address}  (Ctrl+C ends it)", flush=True)
            if not arguments.no_browser:
                webbrowser.open(address)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()
