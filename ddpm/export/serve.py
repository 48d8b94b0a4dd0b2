"""The page at an address of this machine."""

import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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


def page_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of the folder, not started yet; port 0 is a free one. Raises MissingFile, DdpmError for a used port."""
    if not (folder / "index.html").is_file():
        raise MissingFile(f"{folder}/index.html is missing")
    try:
        return ThreadingHTTPServer((HOST, port), functools.partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise DdpmError(f"port {port} cannot be used ({error.strerror}): choose another with --port.") from error
