"""Put the results of the benchmarks into the tables of `PAGES`: `python -m benchmarks.page`.

A table stands between `<!-- NAME -->` and `<!-- end -->`, NAME being a file benchmarks/results/NAME.json and, after a
colon, a list in it other than "rows".
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import run
from ddpm.utils.files import atomic_path, read_json

RESULTS = Path(__file__).parent / "results"
NAMES = ("benchmarks", "grid", "robustness", "trials", "use")
PAGES = tuple(Path(__file__).parents[1] / f"docs/{name}.md" for name in NAMES)
_PLACE = re.compile(r"^<!-- (\w+)(?::(\w+))? -->\n.*?<!-- end -->", re.DOTALL | re.MULTILINE)


def cell(value: object) -> str:
    """A value as a reader wants it: three significant digits, thousands set apart."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows that share their keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def refreshed(page: str) -> str:
    """The page with every table as the results have it. Raises MissingFile for a result that is not there."""

    def fill(place: "re.Match[str]") -> str:
        name, key = place[1], place[2] or "rows"
        head = place[0].partition("\n")[0]
        return f"{head}\n\n{table(read_json(RESULTS / f'{name}.json')[key])}\n\n<!-- end -->"

    return _PLACE.sub(fill, page)


def main() -> None:
    for page in PAGES:
        with atomic_path(page) as temporary:
            temporary.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    run(main)
