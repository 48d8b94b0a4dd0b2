"""What README and docs/experiments.md say of many experiments, typed into a shell: a toy graph, and the real one."""

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from clones import SETTINGS, commit, empty_repository, ended, outputs, run_in, small_run, stages_run, wait_for

pytestmark = pytest.mark.long

GRAPH = """
stages:
  trial:
    cmd: python trial.py
    deps: [trial.py]
    params: [train, generate]
    metrics:
      - metrics/headline.json:
          cache: false
"""
TRIAL = """
import json
from pathlib import Path

Path("metrics").mkdir(exist_ok=True)
Path("metrics/headline.json").write_text(json.dumps({"length": len(Path("params.yaml").read_text())}))
"""


def block(page: Path, title: str) -> list[str]:
    """The shell commands of a section, in their order."""
    section = page.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"```bash\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def toy(tmp_path: Path, root: Path) -> Path:
    folder = tmp_path / "toy"
    empty_repository(folder)
    (folder / "params.yaml").write_bytes(SETTINGS.read_bytes())
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "trial.py").write_text(TRIAL)
    shutil.copytree(root / "presets", folder / "presets")
    (folder / "ddpm").symlink_to(root / "ddpm")
    (folder / ".gitignore").write_text("ddpm\n__pycache__/\n")
    commit(folder, "toy")
    run_in(folder, "dvc", "repro")
    commit(folder, "its results")
    return folder


def test_the_commands_of_the_page_queue_and_show_every_combination(toy: Path, root: Path):
    many, presets = block(root / "docs/experiments.md", "Many experiments")
    *queue, start, status, show = many.splitlines()
    # `dvc exp show` fails when it comes upon an experiment that a worker is about to set up: the worker starts last.
    for commands in (*queue, presets, start):
        run_in(toy, "bash", "-ec", commands)
    # An experiment that a worker takes up is in none of its lists for a moment: what has ended counts.
    wait_for(
        lambda: len(re.findall("Success|Failed", run_in(toy, "bash", "-ec", status))) == 12,
        seconds=900,
        every=5,  # each question takes two seconds of a core
    )
    run_in(toy, "bash", "-ec", show)
    table = pd.read_csv(toy / "experiments.csv").dropna(subset=["Experiment"])
    found = table[~table["Experiment"].isin(["smoke", "unconditional", "main", "master"])]
    changed = set(zip(found["train.lr"], found["train.optimizer"], found["generate.steps"], strict=True))
    lr, optimizer, steps = 0.01, "muon", 16
    lists = {(each, name, steps) for each in (0.005, 0.01, 0.02) for name in ("muon", "adamw")}
    assert changed == lists | {(lr, optimizer, each) for each in (10, 20, 30, 40)}
    assert {"smoke", "unconditional"} <= set(table["Experiment"])
    assert not subprocess.run(("git", "status", "--porcelain", "params.yaml"), cwd=toy, stdout=-1, check=True).stdout


def test_three_experiments_are_compared_and_the_best_is_applied_and_shared(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, raw: Path
):
    mine, team, theirs = (tmp_path / name for name in ("mine", "remote", "theirs"))
    shutil.copytree(small_run(tmp_path_factory.getbasetemp(), raw).folder, mine, symlinks=True)
    quick = ("-S", "fid.bootstrap=20", "-S", "export.formats=[]")
    for name, steps in (("few", 4), ("more", 6), ("most", 8)):
        said = stages_run(run_in(mine, "dvc", "exp", "run", "--name", name, "-S", f"generate.steps={steps}", *quick))
        assert "generate" in said
        assert "train" not in said
    run_in(mine, "bash", "-ec", f"dvc exp show --csv > {tmp_path}/shown.csv")
    assert {"few", "more", "most"} <= set(pd.read_csv(tmp_path / "shown.csv")["Experiment"])
    compared = run_in(mine, "python", "-m", "tools.compare", "few", "most")
    assert re.search(r"fd_mnist .*(difference|better|worse)", compared)
    run_in(mine, "dvc", "exp", "apply", "more")
    assert "generate:\n" in (mine / "params.yaml").read_text()
    commit(mine, "more steps")
    run_in(mine, "dvc", "remote", "add", "--default", "team", str(team))
    commit(mine, "where results are shared")
    run_in(mine, "dvc", "push")
    run_in(tmp_path, "git", "clone", "--quiet", str(mine), str(theirs))
    run_in(theirs, "dvc", "pull")
    assert "up to date" in run_in(theirs, "dvc", "status")
    assert ended(theirs, "dvc", "repro").returncode == 0
    names = sorted(path.name for path in (mine / "data/generated").iterdir())
    assert names
    for name in names:
        assert (theirs / "data/generated" / name).read_bytes() == (mine / "data/generated" / name).read_bytes()


def test_the_way_back_from_an_experiment_computes_nothing_though_the_commit_is_of_another_machine(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, raw: Path, root: Path
):
    text = "\n".join((root / page).read_text() for page in ("README.md", "docs/tutorial.md"))
    (back,) = set(re.findall(r"^git checkout HEAD.*dvc \w+", text, re.MULTILINE))
    shutil.copytree(small_run(tmp_path_factory.getbasetemp(), raw).folder, clone := tmp_path / "clone", symlinks=True)
    lock, before = (clone / "dvc.lock").read_text(), outputs(clone)
    # As in a fresh clone after its first run: the outputs of the commit are in no cache.
    (clone / "dvc.lock").write_text(lock.replace(before["data/model"], f"{0:032}.dir"))
    commit(clone, "the run of another machine")
    (clone / "dvc.lock").write_text(lock)
    assert "generate" in stages_run(run_in(clone, "dvc", "exp", "run", "-S", "generate.steps=4"))
    assert outputs(clone) != before
    assert stages_run(run_in(clone, "bash", "-ec", back)) in ([], ["summary"])
    assert outputs(clone) == before
