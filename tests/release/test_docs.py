"""Figures, pictures and names in the documents are those of the committed run and of the code: `make release-check`.

A figure that depends on the run is followed by a comment with its key in metrics/*.json: ``1.33<!-- fd_mnist -->``. One
that was measured outside the pipeline is marked ``<!-- measured -->``: after a new run, look it up by hand.
"""

import csv
import difflib
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from benchmarks.common import defaults
from benchmarks.page import PAGES, RESULTS, refreshed
from ddpm.utils.files import read_json
from stages.summary import HEADLINE
from tools import results
from tools.screenshots import IMAGES, SAMPLED

REPOSITORY = Path(__file__).parents[2]
CARDS = {
    "mnist": "long_10_clusters",
    "mnist_unconditional": "long_unconditional",
}  # of which run each model is
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
DOCUMENTS += [REPOSITORY / f"ddpm/pretrained/{name}.md" for name in CARDS]
FIGURE = re.compile(r"(-?\d[\d,]*(?:\.\d+)?)<!-- (\w+) -->")
# Of CUDA devices, and of networks that predict a variance: not measured by the committed run.
ELSEWHERE = re.compile(r"(fid|kd|precision|recall|density|coverage)_inception|bpd_(steps_)?learned(_se)?")


def committed_metrics() -> dict[str, object]:
    values: dict[str, object] = {}
    for path in sorted((REPOSITORY / "metrics").glob("*.json")):
        values |= json.loads(path.read_text())
    return values


def parameters() -> dict[str, dict[str, object]]:
    return YAML(typ="safe", pure=True).load(REPOSITORY / "params.yaml")


def lock() -> dict[str, dict[str, list[dict[str, str]]]]:
    return YAML(typ="safe", pure=True).load(REPOSITORY / "dvc.lock")["stages"]


def hold(page: str, metrics: dict[str, object], least: int) -> None:
    """Whether a page has so many figures at least, and all of them are these."""
    text = (REPOSITORY / page).read_text()

    def current(figure: re.Match[str]) -> str:
        shown, key = figure.groups()
        value = metrics.get(key)
        if key == "measured":
            return figure[0]
        assert isinstance(value, int | float), f"{key} was not measured"
        return f"{value:,.{len(shown.partition('.')[2])}f}<!-- {key} -->"

    assert len(FIGURE.findall(text)) >= least
    pair = text.splitlines(keepends=True), FIGURE.sub(current, text).splitlines(keepends=True)
    difference = "".join(difflib.unified_diff(*pair, f"a/{page}", f"b/{page}", n=0))
    if difference:
        pytest.fail(f"figures of another run, which `patch -p1` with this corrects:\n{difference}", pytrace=False)


@pytest.mark.parametrize(("page", "least"), [("README.md", 25), ("docs/benchmarks.md", 6)])
def test_figures_are_those_of_the_committed_run(page: str, least: int):
    hold(page, committed_metrics(), least)


@pytest.mark.parametrize(("name", "key"), [("blind", "programs"), ("verdict", "rows")])
def test_what_benchmarks_say_of_the_committed_images_is_of_them(name: str, key: str):
    (row,) = (row for row in read_json(RESULTS / f"{name}.json")[key] if row["images"] == "default")
    assert row["ambiguous_fraction"] == pytest.approx(committed_metrics()["ambiguous_fraction"], abs=1e-9)


def test_the_spread_over_trainings_is_of_the_default():
    found = read_json(RESULTS / "seeds.json")
    assert found["preset"] is None
    assert found["defaults"] == defaults()["defaults"]


@pytest.mark.parametrize("name", CARDS)
def test_figures_of_a_model_card_are_those_of_its_run_or_of_its_file(name: str):
    # shipped.json, where it is there: of the file, whose weights are rounded; by `python -m ddpm evaluate`.
    metrics: dict[str, object] = {}
    for file in ("fid", "headline", "likelihood", "shipped"):
        path = REPOSITORY / "docs/results" / CARDS[name] / f"{file}.json"
        if file != "shipped" or path.exists():
            metrics |= json.loads(path.read_text())
    hold(f"ddpm/pretrained/{name}.md", metrics, 20)


def test_painted_halves_are_read_as_the_digits_that_they_were():
    found = json.loads((REPOSITORY / "benchmarks/results/editing.json").read_text())
    auto = {row["erased"]: row["auto"] for row in found["rows"]}
    assert auto.keys() == {"left", "right", "top", "bottom", "all"}
    assert min(auto.values()) >= 0.95
    assert f"{100 * auto['all']:.1f}<!-- measured --> %" in (REPOSITORY / "README.md").read_text()
    mean, largest = (f"{found['inversion_error'][key]:.3f}<!-- measured -->" for key in ("mean", "largest"))
    stated = f"{mean} grey levels of 256 a pixel on average, {largest} at most"
    assert stated in (REPOSITORY / "docs/use.md").read_text()


@pytest.mark.parametrize("name", ["editing", "halves"])
def test_edits_were_measured_by_the_weights_that_ship(name: str):
    found = json.loads((REPOSITORY / f"benchmarks/results/{name}.json").read_text())
    weights = (REPOSITORY / f"ddpm/pretrained/{found['model']}.safetensors").read_bytes()
    assert found["weights_sha256"] == hashlib.sha256(weights).hexdigest(), "run `python -m benchmarks.editing` again"


def test_every_metric_is_explained_and_every_explained_metric_exists():
    page, _, renamed = (REPOSITORY / "docs/metrics.md").read_text().partition("## Renamed keys")
    explained = set(re.findall(r"`(\w+)`", page))
    ends = tuple(name for name in explained if name.startswith("_"))
    found = set(committed_metrics()) | {key.replace("NETWORK", "mnist") for key in HEADLINE}
    for path in (REPOSITORY / "metrics").glob("*.csv"):
        found |= set(next(csv.reader(path.read_text().splitlines())))
    for key in found:
        names = {key, key.removeprefix("generate_"), *(key.removesuffix(end) for end in ends)}
        assert names & explained, f"{key} is not explained in docs/metrics.md"
    named = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) + re.findall(r"\| ([^|]*) \|$", renamed, re.MULTILINE)
    for name in re.findall(r"`(?:NAME)?(\w+)`", " ".join(named)):
        assert ELSEWHERE.fullmatch(name) or any(key.endswith(name) for key in found), f"no metric is called {name}"


def test_metrics_have_six_significant_digits():
    for key, value in committed_metrics().items():
        assert not isinstance(value, float) or value == float(f"{value:.6g}"), key


def test_the_pictures_and_the_report_are_outputs_of_the_committed_run():
    outputs = {f"images/{Path(out['path']).name}": out["md5"] for out in lock()["visualize"]["outs"]}
    outputs["results/default/report.html"] = lock()["report"]["outs"][0]["md5"]
    shown = {name for page in DOCUMENTS for name in re.findall(r"\]\((?:docs/)?([\w./]+)\)", page.read_text())}
    assert set(outputs) <= shown
    for name, md5 in outputs.items():
        content = (REPOSITORY / "docs" / name).read_bytes()
        assert hashlib.md5(content).hexdigest() == md5, f"run `make pictures`: {name} is of another run"


@pytest.mark.parametrize("name", SAMPLED)
def test_the_pictures_of_the_shipped_model_are_of_it(name: str, tmp_path: Path):
    command = [sys.executable, "-m", "ddpm", "sample", *SAMPLED[name], "--out", str(tmp_path / name)]
    subprocess.run(command, check=True, capture_output=True)
    shown, found = (np.asarray(Image.open(path)).astype(int) for path in (REPOSITORY / IMAGES / name, tmp_path / name))
    # Other machines round otherwise.
    assert (np.abs(shown - found) <= 1).mean() > 0.99, "run `python -m tools.screenshots`"


def test_the_lock_file_is_of_the_committed_parameters():
    locked: dict[str, object] = {}
    for stage in lock().values():
        locked |= stage.get("params", {}).get("params.yaml", {})
    assert set(parameters()) - {"runtime"} <= set(locked)
    for key, value in locked.items():
        found: object = parameters()
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def test_the_lock_file_is_of_the_committed_code():
    code = {
        dep["path"]: dep["md5"] for stage in lock().values() for dep in stage["deps"] if dep["path"].endswith(".py")
    }
    assert len(code) > 30
    stale = [path for path, md5 in code.items() if hashlib.md5((REPOSITORY / path).read_bytes()).hexdigest() != md5]
    assert stale == []


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_what_the_documents_name_exists(page: Path):
    text = page.read_text()
    for link in re.findall(r"\]\(([\w./-]+?)(?:#[\w-]+)?\)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`([\w./-]+/[\w.-]*|[\w-]+\.(?:yaml|txt|md))`", text):
        assert (
            name.startswith(("data/", "build/", ".ckpt", ".venv", ".dvc/", "dvc_plots/"))
            or (REPOSITORY / name).exists()
        ), name
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module
    for section, key in re.findall(rf"(?<![\w./])({'|'.join(parameters())})\.(\w+)\b(?!\()", text):
        if key not in ("csv", "json", "npz", "py", "sbatch", "yaml"):
            assert key in parameters()[section], f"{section}.{key} is no parameter"
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([\w-]+)", text, re.MULTILINE)) <= targets


def test_a_checkout_is_small_enough_to_be_carried_to_a_gpu():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True).stdout
    assert 1e6 < sum((REPOSITORY / name).stat().st_size for name in files.split("\0")[:-1]) < 60e6


def test_the_tables_of_the_benchmarks_are_their_results():
    for path, tables in zip(PAGES, (6, 2, 2, 5, 1), strict=True):
        page = path.read_text()
        assert page.count("<!-- end -->") >= tables
        assert refreshed(page) == page, "run `python -m benchmarks.page`"


def test_the_table_of_the_presets_has_the_committed_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    page = (REPOSITORY / "docs/results/README.md").read_text()
    assert results.refreshed(page) == page, "run `python -m tools.results`"


def test_the_settings_of_the_tests_are_the_committed_ones():
    tested, committed = ((REPOSITORY / name).read_text() for name in ("tests/params.yaml", "params.yaml"))
    assert tested.partition("\nseed:")[1:] == committed.partition("\nseed:")[1:]
