"""The report of a run: what stands in it, what it does without, and how a browser shows it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, visit
from clones import change, commit, run_in
from pages import ReadPage, assert_accessible
from PIL import Image
from playwright.sync_api import Browser

from ddpm.report.charts import Curve, Scale, line_chart
from ddpm.report.metrics import Difference, quality_keys
from ddpm.report.page import number
from ddpm.report.run import Comparison, run_page
from tools import report

HEADLINE = {
    "fd_mnist": 0.776042,
    "fd_mnist_low": 0.568132,
    "fd_mnist_high": 1.01135,
    "fd_mnist_floor": 0.197461,
    "label_accuracy": 0.9889,
    "bpd_small": 2.62779,
    "val_loss": 0.0837949,
    "parameters": 630884,
    "train_seconds": 425.269,
    "generate_seconds": 120.895,
    "generate_nfe": 33,
}
METRICS: dict[str, dict[str, Any]] = {
    "headline": HEADLINE,
    "fid": {
        "replicates": 3,
        "images": 10_000,
        "fd_mnist": 0.776042,
        "fd_mnist_low": 0.568132,
        "fd_mnist_high": 1.01135,
        "fd_mnist_real": 0.422062,
        "fd_mnist_floor": 0.197461,
        "fd_mnist_replicates_mean": 0.764733,
        "fd_mnist_replicates_std": 0.0179236,
        "label_accuracy": 0.9889,
        "label_accuracy_low": 0.9871,
        "label_accuracy_high": 0.9912,
        "protocol": {"mnist": {"confident": "one class at 0.9", "images": 10_000}},
    },
    "memorization": {"memorized_fraction_pixel": 0.0033},
    "likelihood": {"bpd_small": 2.62779, "bpd_small_se": 0.00947143},
    "train": {"val_loss": 0.0837949, "parameters": 630884, "steps": 2316, "flops_per_image": 73025536},
    "cost": {
        "train_seconds": 425.269,
        "device": "AMD EPYC",
        "threads": 1,
        "compiled": True,
        "torch": "2.14.1",
        "generate_seconds": 120.895,
        "generate_nfe": 33,
        "generate_device": "NVIDIA H100",
    },
}
PARAMETERS = {
    "seed": 3407,
    "data": {"name": "mnist", "path": "data/none"},
    "model": {"network": "unet", "attention": False, "channel_multipliers": [1, 2]},
    "train": {"epochs": 5.5},
    "generate": {"sampler": "ddpm", "steps": 24, "num_images": 10_000},
}
SCHEMES = ("light", "dark")


class Folder:
    """The files that a report is made of."""

    def __init__(self, folder: Path) -> None:
        self.metrics, self.model, self.previews, self.figures = (
            folder / name for name in ("metrics", "model", "previews", "figures")
        )

    def page(self, parameters: dict[str, Any] = PARAMETERS, comparison: Comparison | None = None) -> str:
        return run_page(self.metrics, self.model, self.previews, self.figures, parameters, comparison)


def write_results(folder: Path) -> Folder:
    found = Folder(folder)
    for place in (found.metrics, found.model, found.previews, found.figures):
        place.mkdir(parents=True)
    for name, values in METRICS.items():
        (found.metrics / f"{name}.json").write_text(json.dumps(values))
    rows = [f"{label},{which},0.{9 - label},{label}.5" for label in range(3) for which in ("generated", "real")]
    (found.metrics / "classes.csv").write_text("\n".join(["label,set,fraction,fd_mnist", *rows, ""]))
    (found.model / "log.csv").write_text("step,epoch,loss\n20,0.1,0.8\n40,0.2,0.4\n60,0.3,0.2\n")
    validation = "step,val_loss,val_mse,val_mse_t1of2,val_mse_t2of2\n30,0.4,0.3,0.2,0.4\n60,0.1,0.2,0.1,0.3\n"
    (found.model / "validation.csv").write_text(validation)
    pictures = {f"previews/{step}": 476 for step in range(500, 4500, 500)}
    pictures |= {"figures/samples": 958, "figures/real_and_generated": 980, "figures/reverse_process": 980}
    for name, width in (pictures | {"figures/closest_pairs": 643}).items():
        noise = np.random.default_rng(width).integers(256, size=(40, width), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
    return found


@pytest.fixture
def results(tmp_path: Path) -> Folder:
    return write_results(tmp_path)


@pytest.fixture
def comparison() -> Comparison:
    differences = [
        Difference("fd_mnist", 1.3, 0.776042, -0.9, -0.1, "better"),
        Difference("label_accuracy", 0.999, 0.9889, -0.02, -0.005, "worse"),
        Difference("train_seconds", 600.0, 425.269),
    ]
    return Comparison("HEAD <1>", differences, [("train.epochs", 3, 5.5), ("model.attention", True, False)])


def test_costs_are_not_among_the_numbers_of_quality():
    cost = {"train_seconds": 1.0, "train_images_per_second": 2.0, "generate_nfe": 22}
    assert quality_keys(["fd_mnist", "fd_mnist_low", "parameters", "flops_per_image", *cost], cost) == ["fd_mnist"]


def test_every_headline_number_stands_beside_its_interval_the_real_score_and_the_floor(results: Folder):
    page = ReadPage(results.page())
    fd = ["0.776 0.5681 to 1.011", "0.4221", "0.1975", "0.7647 ± 0.01792"]
    assert page.row("fd_mnist") == fd
    assert page.row("label_accuracy")[:2] == ["0.9889 0.9871 to 0.9912", "–"]
    assert page.row("bpd_small")[:2] == ["2.628 standard error 0.009471", "–"]
    assert page.row("val_loss")[:2] == ["0.08379", "–"]
    for key, value in HEADLINE.items():
        assert number(value) in page.text, key


def test_cost_parameters_and_protocol_are_in_it(results: Folder):
    page = ReadPage(results.page())
    assert page.row("wall") == ["425.3", "120.9"]
    assert page.row("device") == ["AMD EPYC", "NVIDIA H100"]
    assert page.row("compiled") == ["yes", "–"]
    assert page.row("mnist.confident")[0] == "one class at 0.9"
    assert page.row("channel_multipliers")[0] == "[1, 2]"
    assert page.row("attention")[0] == "false"
    assert page.row("seed")[0] == "3407"
    assert page.row("1") == ["0.8", "0.8", "1.5", "1.5"]


def test_it_loads_nothing_and_is_well_formed_and_accessible(results: Folder, comparison: Comparison):
    for text in (results.page(), results.page(comparison=comparison)):
        page = ReadPage(text)
        assert all(address.startswith(("data:", "#")) for address in page.addresses())
        assert len(page.of("img")) == 4 + 6
        assert page.of("script") == []
        assert_accessible(page)


def test_equal_results_give_equal_bytes(results: Folder, tmp_path: Path):
    assert results.page() == results.page() == write_results(tmp_path / "again").page()


def test_previews_are_at_most_six_with_the_first_and_the_last(results: Folder):
    shown = [picture["alt"] for picture in ReadPage(results.page()).of("img") if "step" in picture["alt"]]
    assert len(shown) == 6
    assert (shown[0], shown[-1]) == ("Grid of samples after step 500", "Grid of samples after step 4,000")


def test_names_are_escaped(results: Folder):
    evil = "<script>alert(1)</script>\" onload='x'"
    (results.metrics / "classes.csv").write_text("label,set,fraction\n<b>1</b>,generated,1\n")
    text = results.page(PARAMETERS | {"data": {"name": evil, "path": evil}})
    page = ReadPage(text)
    assert page.of("script") == page.of("b") == []
    assert page.headings[0] == f"Run report: {evil}"
    assert page.row("path")[0] == " ".join(evil.split())
    assert page.row("<b>1</b>")[0] == "1"


@pytest.mark.parametrize(
    ("lost", "section"),
    [
        (["metrics/classes.csv"], "Classes"),
        (["figures/closest_pairs.png"], "Nearest neighbours"),
        (["figures/reverse_process.png"], "Trajectory"),
        (["figures/samples.png", "figures/real_and_generated.png"], "Samples"),
        (["metrics/cost.json"], "Cost and device"),
    ],
)
def test_what_is_not_there_has_no_section(results: Folder, tmp_path: Path, lost: list[str], section: str):
    assert section in ReadPage(results.page()).headings
    for name in lost:
        (tmp_path / name).unlink()
    page = ReadPage(results.page())
    assert section not in page.headings
    assert_accessible(page)


def test_data_without_labels_and_a_training_without_previews_have_a_report(results: Folder):
    (results.metrics / "classes.csv").write_text("label,set,fraction\n")
    (results.metrics / "likelihood.json").unlink()
    for path in (*results.model.iterdir(), *results.previews.iterdir()):
        path.unlink()
    page = ReadPage(results.page())
    assert {"Classes", "Training"}.isdisjoint(page.headings)
    assert "class-conditional" not in page.text


def test_a_training_that_diverged_has_a_report(results: Folder):
    (results.model / "log.csv").write_text("step,loss\n20,1\n40,nan\n60,inf\n80,-1\n")
    assert "Loss" in ReadPage(results.page()).headings


def test_a_comparison_says_which_is_better_and_marks_what_differs(results: Folder, comparison: Comparison):
    page = ReadPage(results.page(comparison=comparison))
    assert "Compared with HEAD <1>" in page.headings
    rows = page.rows("its 95 % interval")
    assert rows["fd_mnist"] == ["1.3", "0.776", "-0.524", "-0.9 to -0.1", "better"]
    assert rows["label_accuracy"][-1] == "worse"
    assert rows["train_seconds"] == ["600", "425.3", "-174.7", "–", ""]
    assert page.row("train.epochs") == ["3", "5.5"]
    assert len(page.of("mark")) == 2


def test_an_axis_is_logarithmic_where_values_differ_by_orders():
    linear, log = Scale([0.0, 10.0], 0, 100, margin=0), Scale([1.0, 100.0], 0, 200, margin=0)
    assert [linear(value) for value in (0, 5, 10)] == pytest.approx([0, 50, 100])
    assert [log(value) for value in (1, 10, 100)] == pytest.approx([0, 100, 200])


@pytest.mark.parametrize("values", [[0.07, 0.8], [3.0, 3.0], [0.0, 0.0], [-1.0, 1e-9], [1e-6, 1e6], [9.0, 80.0]])
def test_ticks_are_few_round_numbers_inside_of_the_axis(values: list[float]):
    scale = Scale(values, 0, 100)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))
    assert all(-1e-6 <= scale(tick) <= 100 + 1e-6 for tick in ticks)
    assert all(float(f"{tick:.2g}") == pytest.approx(tick, abs=1e-12) for tick in ticks)


def test_a_curve_falls_where_its_values_fall():
    page = ReadPage(line_chart([Curve("loss", [1, 2, 3], [0.9, 0.5, 0.1])], "step", "loss", "Loss"))
    dots = [(float(dot["cx"]), float(dot["cy"])) for dot in page.of("circle")]
    assert dots == sorted(dots)
    assert len(dots) == 3


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "index.html").write_text(write_results(folder / "results").page())
    return folder


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_browser_shows_it_without_a_scroll_bar_across(browser: Browser, site: Path, width: int, scheme: str):
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with visit(browser, site, **options) as visited:
        page = visited.page
        for folded in page.query_selector_all("summary"):
            folded.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        shown = page.evaluate("[...document.querySelectorAll('section, figure')].map(part => part.clientWidth)")
        assert min(shown) > 100
        for kind in ("h1", "header p", ".hint", "summary", "nav a", ".beside"):
            assert contrast(*colours(page, kind)) >= 4.5, kind


def colours(page: Any, selector: str) -> tuple[list[float], list[float]]:  # noqa: ANN401
    """The colour of a text and that of the nearest ground below it: red, green, blue in 0 … 255."""
    script = """selector => {
        let part = document.querySelector(selector);
        const numbers = text => text.match(/[\\d.]+/g).map(Number), colour = numbers(getComputedStyle(part).color);
        let ground = [0, 0, 0, 0];
        for (; part && ground[3] === 0; part = part.parentElement) {
            ground = numbers(getComputedStyle(part).backgroundColor);
            if (ground.length === 3) break;
        }
        return [colour.slice(0, 3), ground.slice(0, 3)];
    }"""
    one, other = page.evaluate(script, selector)
    return one, other


def contrast(one: list[float], other: list[float]) -> float:
    """The contrast ratio of two colours (WCAG 2.2, §1.4.3)."""

    def luminance(colour: list[float]) -> float:
        parts = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_command_adds_the_last_commit(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_results(workspace)
    run_in(workspace, "git", "init", "--quiet")
    commit(workspace, "a run")
    better = METRICS["fid"] | {"fd_mnist": 0.3, "fd_mnist_low": 0.25, "fd_mnist_high": 0.35}
    (workspace / "metrics/fid.json").write_text(json.dumps(better))
    change(workspace, {"train.epochs": 9.5})
    monkeypatch.setattr(sys, "argv", ["report"])
    report.main()
    output = Path(capsys.readouterr().out.strip())
    page = ReadPage((workspace / output).read_text())
    assert "Compared with HEAD" in page.headings
    assert page.row("train.epochs") == ["5.5", "9.5"]
    assert page.rows("its 95 % interval")["fd_mnist"][-1] == "better"
