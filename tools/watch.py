"""Watch trainings while they run: `python -m tools.watch` shows their curves and newest samples in the browser.

It shows what trains in this repository, by `dvc repro` or by experiments in copies of it (`--temp`, `dvc queue`,
`python -m tools.sweep`), the newest first; or the folders that are named, each as data/model is, with previews beside
it. It reads files alone: nothing waits for it, and it may come and go.
"""

import argparse
import base64
import html
import io
import time
from collections.abc import Iterable
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pandas as pd

from ddpm.export.serve import add_server_options, local_server, serve_until_interrupted
from ddpm.figures.curves import loss_curves
from ddpm.utils.errors import one_sentence
from stages.paths import MODEL, PREVIEWS

# Where DVC copies the repository to: for `--temp`, and for the queue.
COPIES = (".dvc/tmp/exps/standalone/*", ".dvc/tmp/exps/tmp*")
MOST = 8  # trainings on the page
REFRESH_SECONDS = 5
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{seconds}"><title>Training</title>
<style>body {{ font: 14px system-ui, sans-serif; margin: 1rem }} img {{ max-width: 100%; vertical-align: top }}
h2 {{ font-size: 1rem }}</style></head><body>{body}</body></html>
"""


def trainings(named: Iterable[Path] = ()) -> list[Path]:
    """The folders with a log.csv among ``named``, or of this repository and its copies, the newest first."""
    places = list(named) or [MODEL, *(copy / MODEL for pattern in COPIES for copy in Path().glob(pattern))]
    ages = {place: _changed(place / "log.csv") for place in places}
    return sorted(filter(ages.__getitem__, ages), key=ages.__getitem__, reverse=True)[:MOST]


def page(folders: list[Path]) -> str:
    """The page of trainings as HTML, complete in itself."""
    shown = [section(folder, _changed(folder / "log.csv"), time.time()) for folder in folders]
    body = "\n".join(shown) or "<p>Nothing trains here yet.</p>"
    return PAGE.format(seconds=REFRESH_SECONDS, body=body)


def section(folder: Path, changed: float, now: float) -> str:
    """One training as HTML: its last numbers, its curves, its newest preview."""
    previews = folder.with_name(PREVIEWS.name)
    try:
        log, curves = _curves(folder, changed)
        distances = _table(previews / "distance.csv")
        newest = [path.read_bytes() for path in sorted(previews.glob("*.png"), key=_changed)[-1:]]
    except (OSError, ValueError):  # deleted this moment, by DVC or by hand
        return ""
    last = log.iloc[-1]
    numbers = f"step {last['step']:.0f}, epoch {last['epoch']:.2f}, loss {last['loss']:.4f}"
    if len(distances):
        row = distances.iloc[-1]
        numbers += f", early distance {row['early_distance']:.4g} at step {row['step']:.0f}"
    images = [curves, *newest]
    tags = "\n".join(f'<img src="data:image/png;base64,{base64.b64encode(image).decode()}">' for image in images)
    return f"<h2>{html.escape(str(folder))}: {numbers}, {now - changed:.0f} s ago</h2>\n{tags}"


@lru_cache(maxsize=2 * MOST)
def _curves(folder: Path, _changed_at: float) -> tuple[pd.DataFrame, bytes]:
    """log.csv and the figure of the curves, drawn again when the file has changed."""
    log, validation = pd.read_csv(folder / "log.csv"), _table(folder / "validation.csv", "step", "val_loss")
    image = io.BytesIO()
    loss_curves(log, validation).savefig(image, format="png")
    return log, image.getvalue()


def _table(path: Path, *columns: str) -> pd.DataFrame:
    """A table, empty where there is none yet."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame({column: [] for column in columns})


def _changed(path: Path) -> float:
    """When a file was last written, in seconds; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


class _Handler(BaseHTTPRequestHandler):
    named: tuple[Path, ...] = ()

    def do_GET(self) -> None:
        """The page, whatever the path."""
        content = page(trainings(self.named)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing for each request."""


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tools.watch", description=__doc__)
    parser.add_argument("folder", nargs="*", type=Path, help="such as data/model; none: what trains here")
    add_server_options(parser, 8001)
    given = parser.parse_args()
    handler = type("Handler", (_Handler,), {"named": tuple(given.folder)})
    with one_sentence():
        serve_until_interrupted(local_server(handler, given.port), browser=not given.no_browser)


if __name__ == "__main__":
    main()
