"""The page of `dvc plots` that needs no network; tests/pipeline opens it in a browser."""

from pathlib import Path

import pytest
from clones import empty_repository, run_in

from ddpm.data import fetching
from ddpm.utils.errors import DamagedFile, DdpmError
from tools import offline_plots


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    empty_repository(tmp_path / "repository")
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path / "repository"


def test_without_npm_one_sentence_says_what_to_do_and_nothing_is_set(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(DdpmError, match=r"npm is not installed\): install npm, connect once and call"):
            offline_plots.write_template()
    assert not offline_plots.TEMPLATE.exists()
    assert run_in(repository, "dvc", "config", "--list").count("html_template") == 0


def test_a_package_of_another_content_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetching, "npm_file", lambda *_: b"alert(1)")
    with pytest.raises(DamagedFile, match=r"vega\.min\.js of the npm package vega@\S+ has SHA-256 \w+…, not \w+…"):
        offline_plots.write_template()
    assert not offline_plots.TEMPLATE.exists()


def test_the_scripts_are_those_that_dvc_would_load():
    from dvc_render.vega import VegaRenderer

    assert all(f'/npm/{package}"' in VegaRenderer.SCRIPTS for package in offline_plots.SCRIPTS)
    assert VegaRenderer.SCRIPTS.count("<script") == len(offline_plots.SCRIPTS)
