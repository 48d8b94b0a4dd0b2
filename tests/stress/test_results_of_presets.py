"""`python -m tools.results` runs a preset in a clone and keeps what it gave; real runs of a small repository."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clones import REPOSITORY, commit, empty_repository, ended, run_in
from ruamel.yaml import YAML

from tools.results import KEPT

MADE = [path for path in KEPT if path != "params.yaml"]
PIPELINE = f"""
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    params: [train.epochs]
    outs: {MADE}
"""
MAKE = f"""
import json
from pathlib import Path
from ruamel.yaml import YAML
epochs = YAML(typ="safe").load(Path("params.yaml"))["train"]["epochs"]
for path in map(Path, {MADE}):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({{"train_epochs": epochs, "parameters": 1234}}))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    empty_repository(folder)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "make.py").write_text(MAKE)
    (folder / "docs/results").mkdir(parents=True)
    (folder / "docs/results/README.md").write_text("before\n<!-- table -->\n<!-- end -->\nafter\n")
    shutil.copy(REPOSITORY / "tests/params.yaml", folder / "params.yaml")
    run_in(folder, "dvc", "repro", "--quiet")
    commit(folder, "default")
    return folder


def keep(folder: Path, *presets: str) -> subprocess.CompletedProcess[str]:
    return ended(folder, sys.executable, "-m", "tools.results", *presets, PYTHONPATH=str(REPOSITORY))


def test_the_results_of_a_preset_stand_beside_the_committed_ones(repository: Path):
    yaml = YAML(typ="safe")
    default = yaml.load(repository / "params.yaml")["train"]["epochs"]
    changed = yaml.load(REPOSITORY / "presets/smoke.yaml")["train"]["epochs"]
    assert default != changed
    done = keep(repository, "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    kept = repository / "docs/results/smoke"
    assert {path.name for path in kept.iterdir()} == {Path(name).name for name in KEPT}
    assert json.loads((kept / "headline.json").read_text())["train_epochs"] == changed
    page = (repository / "docs/results/README.md").read_text()
    assert "| metric | default | smoke |" in page
    assert f"| train_epochs | {default:g} | {changed:g} |" in page
    assert "| parameters | 1,234 | 1,234 |" in page
    assert (page.split("\n")[0], page.split("\n")[-2]) == ("before", "after")
    # The user's own settings are as they were, and a second call computes nothing.
    assert yaml.load(repository / "params.yaml")["train"]["epochs"] == default
    assert "didn't change, skipping" in keep(repository, "smoke").stdout
    assert (repository / "docs/results/README.md").read_text() == page


def test_what_fails_keeps_nothing_and_is_one_sentence(repository: Path):
    done = keep(repository, "nothing")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "there is no preset nothing; there are baseline" in done.stderr
    (repository / "make.py").write_text("raise SystemExit(1)")
    commit(repository, "fails")
    done = keep(repository, "smoke")
    assert done.returncode == 1
    assert "did not end well" in done.stderr
    assert not (repository / "docs/results/smoke").exists()
