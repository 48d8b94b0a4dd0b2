"""The hooks before a commit: the project's own ruff corrects what is staged and stops the commit."""

import sys
from pathlib import Path

import pytest
from clones import REPOSITORY, commit, ended, run_in
from pre_commit.clientlib import load_config

CONFIG = ".pre-commit-config.yaml"
# Hooks that a user has for all repositories are theirs.
SETTINGS = {"GIT_CONFIG_GLOBAL": "/dev/null"}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with the hooks installed and the programs of this environment in .venv."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in (CONFIG, "pyproject.toml", ".gitignore"):
        (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    run_in(folder, "git", "init", "--quiet")
    run_in(folder, "pre-commit", "install", PRE_COMMIT_HOME=str(tmp_path / "kept"), **SETTINGS)
    return folder


def test_the_hooks_are_those_of_make_lint():
    lint = (REPOSITORY / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    for hook in load_config(REPOSITORY / CONFIG)["repos"][0]["hooks"]:
        assert hook["name"] in lint


# Git is called from an editor too, where no environment is active.
@pytest.mark.parametrize("path", ["/usr/local/bin:/usr/bin:/bin", None])
def test_a_commit_is_stopped_corrected_and_then_made(clone: Path, tmp_path: Path, path: str | None):
    variables = {"PRE_COMMIT_HOME": str(tmp_path / "kept")} | SETTINGS | ({"PATH": path} if path else {})
    (clone / "code.py").write_text('"""Some code."""\n\nimport os\n\nvalues = [ 1,\n  2 ]\n')
    run_in(clone, "git", "add", "--all")
    refused = ended(clone, "git", "commit", "--message", "first", **variables)
    assert refused.returncode == 1
    assert "ruff check" in refused.stderr
    assert (clone / "code.py").read_text() == '"""Some code."""\n\nvalues = [1, 2]\n'
    commit(clone, "first")
    assert run_in(clone, "git", "show", "--format=", "HEAD:code.py").endswith("values = [1, 2]\n")
