"""Lets `dvc plots` draw without a network: `python -m tools.offline_plots`, once a clone; `make setup` calls it.

DVC's page of plots loads Vega from a server on the web. This writes a template of that page with Vega in it, of the
npm packages in the versions that DVC names, and sets it in .dvc/config.local. The page is then one file, which shows
its curves anywhere.
"""

import argparse
from pathlib import Path

from ddpm.data.fetching import npm_files
from ddpm.utils.errors import DamagedFile, DdpmError, one_sentence
from ddpm.utils.files import atomic_path
from tools import run

SCRIPTS = {  # SHA-256 by place in the package, by package
    "vega@5.20.2": {"build/vega.min.js": "4794d0169cb1f3ebad8117fe98ba5bd652dd725905ec0384e832391dbccb03be"},
    "vega-lite@5.2.0": {"build/vega-lite.min.js": "d73157451b3978015ab31dacd55ff90d986ab8663fc0abed50f97b3cd90002cb"},
    "vega-embed@6.18.2": {
        "build/vega-embed.min.js": "1ba9826431ddc9805e815ad92acc811c819f2bfd32bda2a128b8c4b5070fab5e"
    },
}
PAGE = Path(__file__).with_name("plots.html")
TEMPLATE = Path(".dvc/plots.html")


def write_template() -> None:
    """Write `TEMPLATE` and tell DVC. Raises DdpmError where a script cannot be had: DVC's page then is as before."""
    try:
        found = [npm_files(package, digests) for package, digests in SCRIPTS.items()]
    except DamagedFile:
        raise
    except DdpmError as error:
        reason = " ".join(str(error).split())
        raise DdpmError(
            f"`dvc plots` draws curves with a network only, as Vega is not on this machine ({reason}): install npm, "
            "connect once and call `python -m tools.offline_plots`."
        ) from error
    scripts = "".join(f"<script>{script.decode()}</script>\n" for files in found for script in files.values())
    with atomic_path(TEMPLATE) as temporary:
        temporary.write_text(PAGE.read_text(encoding="utf-8").replace("{vega}", scripts), encoding="utf-8")
    run("dvc", "config", "--local", "plots.html_template", TEMPLATE.name)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m tools.offline_plots", description=__doc__).parse_args()
    with one_sentence():
        write_template()
