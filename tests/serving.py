"""Web servers of this machine, and a folder on one."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

from ddpm.export.serve import local_server


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep no log."""


@contextmanager
def in_background(server: HTTPServer) -> Iterator[str]:
    """The address of the server, which ends with the context."""
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def served_folder(folder: Path) -> AbstractContextManager[str]:
    """The address of a server of the files in the folder."""
    return in_background(local_server(partial(_QuietHandler, directory=folder), 0))
