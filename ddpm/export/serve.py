"""Pages at an address of this machine."""

import argparse
import functools
import sys
import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ddpm.utils.errors import DdpmError, MissingFile

HOST = "127.0.0.1"  # of this machine alone


class _Handler(SimpleHTTPRequestHandler):
    # Not from the machine's own tables, in which these may be missing or wrong.
    extensions_map = {  # noqa: RUF012 (the base class has it so)
        ".css": "text/css",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript",
        ".json": "application/json",
        ".mjs": "text/javascript",
        ".svg": "image/svg+xml",
        ".wasm": "application/wasm",
        "": "application/octet-stream",
    }

    def end_headers(self) -> None:
        """Nothing is kept by the browser: the page of another model may be at the same address tomorrow."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing for each file."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *given: Any) -> None:  # noqa: ANN401
        """Nothing where a browser went away in the middle of a file."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*given)


def page_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of the folder, not started yet; port 0 is a free one. Raises MissingFile, DdpmError for a used port."""
    if not (folder / "index.html").is_file():
        raise MissingFile(f"{folder}/index.html is missing")
    return local_server(functools.partial(_Handler, directory=str(folder)), port)


def local_server(handler: Callable[..., BaseHTTPRequestHandler], port: int) -> ThreadingHTTPServer:
    """A server of this machine alone, not started yet; port 0 is a free one. Raises DdpmError for one in use."""
    try:
        return _Server((HOST, port), handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "there are 0 to 65535"
        raise DdpmError(f"port {port} cannot be used ({reason}): choose another with --port.") from error


def add_server_options(parser: argparse.ArgumentParser, port: int) -> None:
    """What `serve_until_interrupted` and its caller read."""
    parser.add_argument("--port", type=int, default=port, help=f"0: one that is free (default {port})")
    parser.add_argument("--no-browser", action="store_true", help="open no window")


def serve_until_interrupted(server: ThreadingHTTPServer, *, browser: bool) -> None:
    """Say the address, open it in a browser where that is wanted, and answer until Ctrl-C."""
    with server:
        address = f"http://{HOST}:{server.server_port}/"
        print(f"{address}  (Ctrl+C ends it)", flush=True)
        if browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
