"""Write the report of the run: what the other stages found, on one page that needs no other file."""

from ddpm.config import Config
from ddpm.report.run import Comparison, run_page
from ddpm.utils.files import atomic_path
from stages.paths import FIGURES, METRICS, MODEL, PREVIEWS, REPORT
from stages.runner import run


def page(config: Config, comparison: Comparison | None = None) -> str:
    """The report as HTML. What is in `runtime` changes no result; where the run was computed, its cost says."""
    parameters = config.model_dump(mode="json", exclude={"runtime"})
    return run_page(METRICS, MODEL, PREVIEWS, FIGURES, parameters, comparison)


def report(config: Config) -> None:
    with atomic_path(REPORT) as temporary:
        temporary.write_text(page(config), encoding="utf-8")
    print(REPORT)


if __name__ == "__main__":
    run(report)
