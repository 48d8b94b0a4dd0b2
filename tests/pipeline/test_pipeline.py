"""The whole graph through the real dvc, on real MNIST with the smoke preset, in a temporary clone.

The tests of this file share one clone and run in order, as a user would go on in one folder.
"""

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from browser import PATIENCE, chromium
from clones import (
    STAGES,
    change,
    commit,
    copy_working_tree,
    ended,
    outputs,
    run_in,
    stages_run,
    start_history,
    surroundings,
    wait_for,
)
from PIL import Image

from ddpm.report.page import number
from presets.__main__ import apply


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Git repository of the working tree's files, with the smoke preset committed."""
    folder = tmp_path_factory.mktemp("clone") / "ddpm-mnist"
    # No results of earlier runs: this clone makes its own.
    copy_working_tree(folder)
    apply("smoke", folder / "params.yaml")
    start_history(folder, "smoke")
    return folder


@pytest.fixture(scope="module")
def reproduced(clone: Path) -> str:
    """What the first `dvc repro` printed; its results are committed."""
    output = run_in(clone, "dvc", "repro")
    commit(clone, "results")
    return output


def metrics(folder: Path, name: str) -> dict[str, float]:
    return json.loads((folder / "metrics" / f"{name}.json").read_text())


def test_repro_runs_every_stage(reproduced: str):
    assert stages_run(reproduced) == STAGES


def test_the_images_are_rgb_pngs_numbered_from_one(reproduced: str, clone: Path):
    names = sorted(path.name for path in (clone / "data/generated").iterdir())
    assert names == [f"{i:05d}.png" for i in range(1, 257)]
    for name in (names[0], names[-1]):
        with Image.open(clone / "data/generated" / name) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (28, 28))


def test_metrics_hold_quality_cost_and_counts(reproduced: str, clone: Path):
    fid, cost, train = (metrics(clone, name) for name in ("fid", "cost", "train"))
    assert fid["images"] == 256
    assert fid["reference_images"] == 60_000
    assert fid["fd_mnist_low"] < fid["fd_mnist"] < fid["fd_mnist_high"]
    assert fid["fd_mnist"] > fid["fd_mnist_floor"] > 0
    # All three are rounded to six digits.
    assert fid["fd_mnist_over_floor"] == pytest.approx(fid["fd_mnist"] / fid["fd_mnist_floor"], rel=1e-5)
    assert train["steps"] * 128 == train["images_seen"]
    assert 0 < train["val_loss"] < 1.1
    assert cost["train_peak_memory_mib"] > 100
    assert cost["device"]


def test_metrics_hold_memorization_and_likelihood(reproduced: str, clone: Path):
    memorization, likelihood = (metrics(clone, name) for name in ("memorization", "likelihood"))
    assert memorization["nearest_pixel"] > 0 == memorization["memorized_fraction_feature"]
    assert 0.3 < memorization["nearest_auc_pixel_real"] < 0.7
    assert likelihood["likelihood_images"] == 200
    assert 0.5 < likelihood["bpd_large"] < 8
    nearest = (clone / "data/evaluation/nearest.csv").read_text().splitlines()
    assert len(nearest) == 257
    protocol = metrics(clone, "fid")["protocol"]
    assert protocol["mnist"]["images"] == 256
    assert len(protocol["mnist"]["weights_sha256"]) == 64
    assert protocol["versions"].keys() == {"torch", "numpy", "pillow", "pytorch-fid"}


def test_the_headline_numbers_are_those_of_the_other_files(reproduced: str, clone: Path):
    together = {
        k: v for name in ("train", "cost", "fid", "memorization", "likelihood") for k, v in metrics(clone, name).items()
    }
    headline = metrics(clone, "headline")
    assert headline == {key: together[key] for key in headline}
    assert {"fd_mnist", "fd_mnist_floor", "bpd_small", "val_loss", "train_seconds"} <= headline.keys()
    shown = json.loads(run_in(clone, "dvc", "metrics", "show", "--json"))[""]["data"]
    assert list(shown) == ["metrics/headline.json"]


def test_metrics_have_six_significant_digits(reproduced: str, clone: Path):
    for path in (clone / "metrics").glob("*.json"):
        for key, value in json.loads(path.read_text()).items():
            if isinstance(value, float):
                assert value == float(f"{value:.6g}"), (path.name, key)


def test_figures_are_pictures(reproduced: str, clone: Path):
    for name in ("closest_pairs", "loss", "real_and_generated", "reverse_process", "samples"):
        with Image.open(clone / f"data/figures/{name}.png") as image:
            assert min(image.size) > 100
    with Image.open(clone / "data/figures/reverse_process.gif") as image:
        assert image.n_frames == 6  # five steps, and the finished images


def test_the_report_holds_the_headline_numbers_and_the_pictures(reproduced: str, clone: Path):
    page = (clone / "data/report.html").read_text()
    for key, value in metrics(clone, "headline").items():
        assert number(value) in page, key
    for name in ("closest_pairs", "real_and_generated", "reverse_process", "samples"):
        picture = base64.b64encode((clone / f"data/figures/{name}.png").read_bytes()).decode()
        assert page.count(picture) == 1, name
    assert page.count("Grid of samples after step") == len(list((clone / "data/previews").glob("*.png"))) > 0


def test_git_holds_the_metrics_and_none_of_the_data(reproduced: str, clone: Path):
    tracked = run_in(clone, "git", "ls-files").splitlines()
    assert {"dvc.lock", "metrics/fid.json", "metrics/train.json", "metrics/cost.json", "metrics/headline.json"} <= set(
        tracked
    )
    assert [name for name in tracked if name.startswith("data/") and not name.endswith(".gitignore")] == ["data/none"]


def test_repro_again_does_nothing(reproduced: str, clone: Path):
    assert stages_run(run_in(clone, "dvc", "repro")) == []
    assert "up to date" in run_in(clone, "dvc", "status")
    assert run_in(clone, "git", "status", "--porcelain") == ""


def test_where_and_how_fast_reruns_nothing(reproduced: str, clone: Path):
    params = clone / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("checkpoint_every_seconds: 60", "checkpoint_every_seconds: 61"))
    assert params.read_text() != before
    assert stages_run(run_in(clone, "dvc", "repro")) == []
    params.write_text(before)


def test_every_image_has_its_conditioning_label(reproduced: str, clone: Path):
    rows = (clone / "data/labels.csv").read_text().split()
    assert rows[0] == "image,label,cluster"
    assert [row.split(",")[0] for row in rows[1:]] == [str(number) for number in range(1, 257)]
    assert {row.split(",")[1] for row in rows[1:]} == set("0123456789")
    assert 0 <= metrics(clone, "fid")["label_accuracy"] <= 1 == round(metrics(clone, "fid")["label_accuracy_real"], 1)


def test_run_again_by_force_it_gives_the_same_bits(reproduced: str, clone: Path):
    before = outputs(clone)
    assert "data/generated" in before
    again = run_in(clone, "dvc", "repro", "--force", "--single-item", "train", "generate", "fid", "visualize", "export")
    assert stages_run(again) == ["train", "generate", "fid", "visualize", "export"]
    assert outputs(clone) == before
    run_in(clone, "git", "checkout", "--quiet", "--force", "HEAD")
    run_in(clone, "dvc", "checkout", "--force")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("visualize.snapshots=4", ["visualize", "report"]),
        ("generate.classes=[3,8]", ["generate", "fid", "visualize", "summary", "report"]),
        ("likelihood.images=50", ["likelihood", "summary", "report"]),
        (
            "model.base_channels=8",
            ["train", "generate", "fid", "likelihood", "visualize", "export", "summary", "report"],
        ),
    ],
)
def test_an_experiment_reruns_what_depends_on_its_parameter(
    reproduced: str, clone: Path, setting: str, expected: list[str]
):
    output = run_in(clone, "dvc", "exp", "run", "-S", setting, "-S", "train.epochs=0.1")
    assert stages_run(output) == expected


def test_the_last_experiment_is_compared_with_the_commit(reproduced: str, clone: Path):
    parameters = json.loads(run_in(clone, "dvc", "params", "diff", "--json"))["params.yaml"]
    channels = parameters["model.base_channels"]
    assert (channels["old"], channels["new"]) == (16, 8)
    difference = json.loads(run_in(clone, "dvc", "metrics", "diff", "--json"))
    changed = difference["metrics/headline.json"]
    assert changed["parameters"]["new"] < changed["parameters"]["old"]
    assert changed["fd_mnist"]["old"] != changed["fd_mnist"]["new"]
    table = run_in(clone, "dvc", "exp", "show", "--csv")
    assert table.count("workspace") == 1
    assert "model.base_channels" in table


def test_plots_of_two_revisions_are_drawn_without_a_network(reproduced: str, clone: Path):
    made = ended(clone, sys.executable, "-m", "tools.offline_plots")
    if made.returncode:
        pytest.skip(made.stderr)
    assert run_in(clone, "git", "status", "--porcelain", ".dvc") == ""
    run_in(clone, "dvc", "plots", "diff", "HEAD", "workspace")
    asked: list[str] = []
    with chromium() as browser:
        page = browser.new_context(offline=True).new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.goto((clone / "dvc_plots/index.html").as_uri())
        page.wait_for_function("document.querySelectorAll('.vega-embed canvas').length == 4")
        widths = page.eval_on_selector_all("img", "all => all.map(image => [image.src, image.naturalWidth])")
        beside = page.eval_on_selector_all("#data_figures_samples_png img", "all => all.map(image => image.offsetTop)")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert min(width for _, width in widths) > 100
    names = {Path(source).name for source, _ in widths}
    assert names > {"HEAD_data_figures_samples.png", "workspace_data_figures_samples.png"}
    assert len(beside) == 2
    assert beside[0] == beside[1]


def test_plots_show_a_training_while_it_runs(reproduced: str, clone: Path):
    changes = {"train.epochs": 50, "train.distance_every": 40, "train.distance_images": 256}
    change(clone, changes | {"runtime.compile": "off"})  # so long a run would be compiled, which shows nothing here
    log = clone / "data/model/log.csv"
    before = log.stat().st_mtime
    repro = subprocess.Popen(
        ["dvc", "repro", "train"], cwd=clone, env=surroundings(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    with repro:
        wait_for(lambda: (clone / "data/previews/distance.csv").exists() and log.stat().st_mtime != before, repro)
        shown = json.loads(run_in(clone, "dvc", "plots", "show", "--json"))["data"]
        assert repro.poll() is None
        started = psutil.Process(repro.pid).children(recursive=True)
        # Not SIGINT: where a shell started the tests in the background, they and all they start ignore it.
        os.killpg(repro.pid, signal.SIGTERM)
    psutil.wait_procs(started)
    names = {Path(name).name for name in shown}
    assert {"Training loss", "40.png", "distance.csv"} <= names
    run_in(clone, "git", "checkout", "--quiet", "--force", "HEAD")
    run_in(clone, "dvc", "checkout", "--force")


def test_an_unknown_parameter_is_refused(reproduced: str, clone: Path):
    done = ended(clone, "dvc", "exp", "run", "-S", "+model.base_chanels=8")
    run_in(clone, "git", "checkout", "--quiet", "params.yaml")
    assert done.returncode != 0
    assert "unknown key model.base_chanels" in done.stdout + done.stderr


def test_a_teammate_pulls_and_recomputes_nothing(reproduced: str, clone: Path, tmp_path: Path):
    run_in(clone, "git", "checkout", "--quiet", "--force", "HEAD")
    run_in(clone, "dvc", "checkout", "--force")
    run_in(clone, "dvc", "remote", "add", "--default", "team", str(tmp_path / "remote"))
    run_in(clone, "git", "commit", "--quiet", "--all", "--message", "remote")
    run_in(clone, "dvc", "push")
    teammate = tmp_path / "teammate"
    run_in(tmp_path, "git", "clone", "--quiet", str(clone), str(teammate))
    run_in(teammate, "dvc", "pull")
    assert stages_run(run_in(teammate, "dvc", "repro")) == []
    for name in ("00001.png", "00256.png"):
        mine, theirs = (folder / "data/generated" / name for folder in (clone, teammate))
        assert mine.read_bytes() == theirs.read_bytes()
