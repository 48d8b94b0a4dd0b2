"""The figures and pictures of the documents are those of the committed run: `make release-check`."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from benchmarks.page import PAGES, refreshed

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()


def committed_metrics() -> dict[str, float]:
    values: dict[str, float] = {}
    for name in ("fid", "memorisation", "likelihood", "train", "cost"):
        values |= json.loads((REPOSITORY / f"metrics/{name}.json").read_text())
    return values


@pytest.mark.parametrize(("page", "least"), [("README.md", 10), ("docs/benchmarks.md", 6)])
def test_every_figure_of_a_table_of_metrics_is_a_tracked_metric(page: str, least: int):
    rows = re.findall(r"^\|[^|]*\| `(\w+)` \| ([\d.,]+) \|$", (REPOSITORY / page).read_text(), re.MULTILINE)
    assert len(rows) >= least
    metrics = committed_metrics()
    for key, text in rows:
        shown = text.replace(",", "")
        decimals = len(shown.partition(".")[2])
        assert float(shown) == pytest.approx(metrics[key], abs=0.5001 * 10**-decimals), key


def test_the_pictures_are_outputs_of_the_committed_run():
    lock = YAML(typ="safe", pure=True).load(REPOSITORY / "dvc.lock")
    outputs = {Path(out["path"]).name: out["md5"] for out in lock["stages"]["visualize"]["outs"]}
    pictures = re.findall(r"\]\(docs/images/([\w.]+)\)", README)
    assert len(pictures) == 6
    for name in pictures:
        content = (REPOSITORY / "docs/images" / name).read_bytes()
        assert hashlib.md5(content).hexdigest() == outputs[name], f"run `make pictures`: {name} is of another run"


def test_the_lock_file_is_of_the_committed_parameters():
    lock = YAML(typ="safe", pure=True).load(REPOSITORY / "dvc.lock")
    params = YAML(typ="safe", pure=True).load(REPOSITORY / "params.yaml")
    locked: dict[str, object] = {}
    for stage in lock["stages"].values():
        locked |= stage.get("params", {}).get("params.yaml", {})
    assert {
        "seed",
        "data",
        "split",
        "model",
        "diffusion",
        "train",
        "generate",
        "fid",
        "likelihood",
        "visualize",
    } <= set(locked)
    for key, value in locked.items():
        found = params
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def test_every_file_the_readme_names_exists_or_is_an_output():
    outputs = ("data/", ".ckpt", "metrics/", ".venv")
    names = re.findall(r"`([\w./-]+/[\w.-]*|[\w-]+\.(?:yaml|txt|md))`", README)
    assert len(names) > 5
    for name in names:
        assert name.startswith(outputs) or (REPOSITORY / name).exists(), name


def test_the_tables_of_the_benchmarks_are_their_results():
    for path, tables in zip(PAGES, (3, 2), strict=True):
        page = path.read_text()
        assert page.count("<!-- end -->") >= tables
        assert refreshed(page) == page, "run `python -m benchmarks.page`"


def test_the_settings_of_the_tests_are_the_committed_ones():
    tested, committed = ((REPOSITORY / name).read_text() for name in ("tests/params.yaml", "params.yaml"))
    assert tested.partition("\nseed:")[1:] == committed.partition("\nseed:")[1:]
