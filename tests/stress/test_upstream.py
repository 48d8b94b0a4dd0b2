"""What dvc would run again after an edit of the code: what the file decides, and nothing upstream of it."""

import json
import shutil
from pathlib import Path

import pytest
from clones import STAGES, change, outputs, run_in, small_run, stages_run

# What an edit of the file changes by itself; what is below runs only if these then give other bits.
DECIDES = {
    "ddpm/diffusion/samplers.py": {"generate", "likelihood", "export"},
    "ddpm/diffusion/guidance.py": {"generate", "export"},
    "ddpm/diffusion/likelihood.py": {"likelihood"},
    "ddpm/sampling/batches.py": {"generate"},
    "ddpm/evaluation/kernel.py": {"fid"},
    "ddpm/figures/grids.py": {"visualize"},
}


@pytest.fixture
def clone(tmp_path_factory: pytest.TempPathFactory, raw: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    run = small_run(tmp_path_factory.getbasetemp(), raw)
    return Path(shutil.copytree(run.folder, tmp_path / "clone", symlinks=True))


def comment(clone: Path, file: str) -> None:
    with (clone / file).open("a") as code:
        code.write("# a comment\n")


def changed(clone: Path) -> set[str]:
    """The stages that dvc calls changed."""
    return {*json.loads(run_in(clone, "dvc", "status", "--json"))}


def test_an_edit_reruns_what_the_file_decides_and_nothing_upstream(clone: Path):
    assert changed(clone) == set()
    for file, stages in DECIDES.items():
        comment(clone, file)
        assert changed(clone) == stages, file
        assert stages_run(run_in(clone, "dvc", "repro", "--dry"))[0] == min(stages, key=STAGES.index), file
        run_in(clone, "git", "checkout", "--quiet", file)

    before = outputs(clone)
    for file in ("ddpm/diffusion/samplers.py", "ddpm/evaluation/kernel.py", "ddpm/figures/grids.py"):
        comment(clone, file)
    # The images are the same, and so fid and visualize run for their own edit; summary and report show the seconds of
    # generate.
    assert stages_run(run_in(clone, "dvc", "repro")) == [
        "generate",
        "fid",
        "likelihood",
        "visualize",
        "export",
        "summary",
        "report",
    ]
    assert outputs(clone) == before
    # With other images all that is below runs.
    change(clone, {"generate.steps": 4})
    assert stages_run(run_in(clone, "dvc", "repro")) == ["generate", "fid", "visualize", "export", "summary", "report"]
    assert outputs(clone)["data/generated"] != before["data/generated"]
