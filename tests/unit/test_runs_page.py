"""The page of many runs, from folders as `tools.compare` takes them, read by a parser and in a browser."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, visit
from pages import ReadPage, assert_accessible
from playwright.sync_api import Browser

from ddpm.report.charts import Axis, parallel_coordinates
from ddpm.utils.errors import DdpmError
from tools import compare

# The second is better than the first by its distance, the third not that anybody could tell.
DISTANCES = {"a <b>&": 2.0, "cheap": 1.2, "dear": 2.1}
SECONDS = {"a <b>&": 400.0, "cheap": 60.0, "dear": 3000.0}


def write_run(folder: Path, name: str, images: int = 10_000) -> str:
    """A run of settings of its own; the folder metrics/ of a workspace has its parameters beside it."""
    metrics = folder / name / "metrics"
    metrics.mkdir(parents=True)
    fd = DISTANCES[name]
    cost = {"train_seconds": SECONDS[name], "generate_seconds": 100.0, "device": "cpu"}
    numbers: dict[str, Any] = {"fd_mnist": fd, "fd_mnist_low": fd - 0.3, "fd_mnist_high": fd + 0.4}
    accuracy = {"label_accuracy": 0.99, "label_accuracy_low": 0.98, "label_accuracy_high": 0.995}
    headline = {**numbers, "label_accuracy": 0.99, "bpd_small": 2.5 if name == "cheap" else 3.5, **cost}
    del headline["device"]
    protocol = {"mnist": {"images": images, "confident": "at 0.9"}}
    files = {"fid": {**numbers, **accuracy, "protocol": protocol}, "headline": headline, "cost": cost}
    for file, values in files.items():
        (metrics / f"{file}.json").write_text(json.dumps(values))
    schedule = "linear" if name == "cheap" else "cosine"
    sections = {"train": {"epochs": len(name)}, "diffusion": {"schedule": schedule}, "runtime": {"device": name[0]}}
    (folder / name / "params.yaml").write_text(json.dumps({"seed": 1} | sections))
    return str(metrics)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder, name) for name in DISTANCES]


def call(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare", *arguments])
        compare.main()


@pytest.fixture(scope="module")
def site(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    call(*runs, "--html", str(folder / "index.html"))
    return folder


@pytest.fixture
def page(site: Path) -> ReadPage:
    return ReadPage((site / "index.html").read_text())


def test_every_run_stands_in_the_table_with_its_intervals_and_costs(page: ReadPage):
    rows = page.rows("fd_mnist")
    assert rows["1"] == ["2 1.7 to 2.4", "0.99 0.98 to 0.995", "3.5", "400", "100"]
    assert rows["2"] == ["1.2 0.9 to 1.6 better", "0.99 0.98 to 0.995", "2.5", "60", "100"]
    assert rows["3"][0] == "2.1 1.8 to 2.5"


def test_differences_are_those_of_the_command(page: ReadPage, runs: list[str]):
    table = compare.compare(runs[0], runs[1])
    assert table["verdict"]["fd_mnist"] == "B is better"
    found = [[cell.strip() for cell in row] for row in page.tables[2]]
    low, high = (f"{table[end]['fd_mnist']:.4g}" for end in ("low", "high"))
    assert found[1] == ["fd_mnist", "2", "1.2", "-0.8", f"{low} to {high}", "better"]
    assert found[2][-1] == "no difference that counts"
    assert found[3] == ["bpd_small", "3.5", "2.5", "-1", "–", ""]


def test_parameters_that_differ_are_shown_and_no_others(page: ReadPage):
    assert page.rows("parameter") == {
        "train.epochs": ["6", "5", "4"],
        "diffusion.schedule": ["cosine", "linear", "cosine"],
    }


def test_whiskers_are_the_intervals(page: ReadPage):
    drawn = [path["d"] for path in page.of("path") if path.get("class") == "whisker"]
    assert len(drawn) == 3 + 3  # of either cost
    tops = {}
    for name, d in zip(DISTANCES, drawn, strict=False):
        across, bottom, top = (float(number) for number in d[1:].replace("V", " ").split())
        assert bottom > top
        tops[name] = across, top
    # Down on the page is less.
    assert sorted(tops, key=lambda name: -tops[name][1]) == sorted(DISTANCES, key=lambda name: DISTANCES[name])
    assert sorted(tops, key=lambda name: tops[name][0]) == sorted(SECONDS, key=lambda name: SECONDS[name])


def test_it_loads_nothing_and_is_well_formed_and_accessible(page: ReadPage, runs: list[str]):
    assert all(address.startswith(("data:", "#")) for address in page.addresses())
    assert page.of("b") == []
    assert f"Differences from {runs[0]}" in page.headings
    assert "<b>&" in runs[0]
    assert_accessible(page)


def test_a_line_is_broken_where_a_run_has_no_value():
    axes = [Axis("x", [1.0, 2.0]), Axis("y", [None, 3.0]), Axis("z", [5.0, 6.0], measured=True), Axis("w", ["p", "q"])]
    lines = [
        path["d"]
        for path in ReadPage(parallel_coordinates(axes, ["a", "b"], "two")).of("path")
        if "line" in path["class"]
    ]
    assert [(line.count("M"), line.count("L")) for line in lines] == [(2, 1), (1, 3)]


def test_runs_without_parameters_or_common_costs_are_compared_too(runs: list[str], tmp_path: Path):
    other = tmp_path / "bare"
    other.mkdir()
    (other / "fid.json").write_bytes((Path(runs[1]) / "fid.json").read_bytes())
    call(runs[0], str(other), "--html", str(tmp_path / "page.html"))
    found = ReadPage((tmp_path / "page.html").read_text())
    assert "Parameters that differ" not in found.headings
    assert "Quality against cost" not in found.headings
    assert found.rows("fd_mnist")["2"][-1] == "–"


def test_runs_that_were_not_measured_alike_make_no_page(runs: list[str], tmp_path: Path):
    other = write_run(tmp_path, "dear", images=500)
    with pytest.raises(SystemExit, match="not measured alike"):
        call(runs[0], other, "--html", str(tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()


def test_the_tables_of_the_command_are_as_without_a_page(
    runs: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    call(*runs[:2])
    alone = capsys.readouterr().out
    call(*runs[:2], "--html", str(tmp_path / "page.html"))
    assert capsys.readouterr().out == alone
    call(*runs)
    both = capsys.readouterr().out
    assert f"B = {runs[1]}\n{alone}" in both
    assert f"B = {runs[2]}" in both


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize("width", [375, 1280])
def test_a_run_that_is_chosen_stands_out(browser: Browser, site: Path, width: int):
    with visit(browser, site, viewport={"width": width, "height": 800}) as visited:
        page = visited.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        button = page.locator("button[data-run='1']")

        def standing_out() -> set[str]:
            return set(page.eval_on_selector_all(".on", "parts => parts.map(part => part.dataset.run)"))

        assert standing_out() == set()
        button.focus()
        page.keyboard.press("Enter")
        page.mouse.move(0, 0)
        assert (button.get_attribute("aria-pressed"), standing_out()) == ("true", {"1"})
        others = page.locator("svg .run[data-run='0']").first
        others.evaluate("part => Promise.all(part.getAnimations().map(found => found.finished))")
        assert float(others.evaluate("part => getComputedStyle(part).opacity")) < 0.5
        button.press("Enter")
        assert standing_out() == set()


def test_an_unknown_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DdpmError, match="nowhere is neither a Git revision"):
        compare.read_whole_run("nowhere")
