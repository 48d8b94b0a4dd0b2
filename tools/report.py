"""The report of the run in the workspace beside another: `python -m tools.report` compares it with the last commit.

It is the page of the stage `report`, with a section of the differences, and the parameters that differ marked. The
stage leaves them out: what it writes would otherwise hang on where Git stands, and not on the run alone.
"""

import argparse
from pathlib import Path

from ddpm.config import load_config
from ddpm.report.run import Comparison
from ddpm.report.runs import changed_parameters
from ddpm.utils.errors import one_sentence
from ddpm.utils.files import atomic_path
from stages.paths import METRICS, PARAMS
from stages.report import page
from tools.compare import differences, read_whole_run


def compared_with(name: str) -> Comparison:
    """The workspace beside the run ``name``: a revision, an experiment or a folder. Raises DdpmError."""
    other, this = (read_whole_run(run) for run in (name, str(METRICS)))
    changed = [(key, other.parameters[key], this.parameters[key]) for key in changed_parameters([other, this])]
    return Comparison(name, differences(other, this), changed if other.parameters else None)


def main() -> None:
    """Run; what the user can fix ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__)
    parser.add_argument(
        "--against", metavar="RUN", default="HEAD", help="revision, experiment or folder (default HEAD)"
    )
    output = Path("dvc_plots/report.html")  # where the pages of `dvc plots` lie, which Git and DVC ignore
    parser.add_argument("--output", metavar="FILE", type=Path, default=output, help=f"where to (default {output})")
    given = parser.parse_args()
    with one_sentence():
        html = page(load_config(PARAMS), compared_with(given.against))
        with atomic_path(given.output) as temporary:
            temporary.write_text(html, encoding="utf-8")
        print(given.output)


if __name__ == "__main__":
    main()
