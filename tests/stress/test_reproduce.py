"""Running a commit again from nothing: what is compared, what is not counted, and real runs of a small repository."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clones import REPOSITORY, commit, empty_repository, ended, run_in

from tools.reproduce import compare, outputs

LOCK = """
schema: '2.0'
stages:
  train:
    cmd: python train.py
    deps:
    - {path: train.py, hash: md5, md5: 00}
    outs:
    - {path: data/model, hash: md5, md5: 0a.dir, size: 1, nfiles: 2}
    - {path: data/cost/train.json, hash: md5, md5: 0b, size: 1}
  summary:
    cmd: python summary.py
    outs:
    - {path: metrics/cost.json, hash: md5, md5: 0c, size: 1}
"""
PIPELINE = """
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    outs: [data/digits.txt]
    metrics:
      - metrics/cost.json:
          cache: false
"""
# What leaks in from outside would make digits.txt another one.
MAKE = """
import json, os, time
from pathlib import Path
Path("data").mkdir(exist_ok=True)
Path("metrics").mkdir(exist_ok=True)
Path("data/digits.txt").write_text(os.environ.get("DDPM_CKPT_DIR", "nothing leaks in"))
time.sleep(1)
Path("metrics/cost.json").write_text(json.dumps({"seconds": time.time()}))
"""
RANDOM = MAKE.replace('os.environ.get("DDPM_CKPT_DIR", "nothing leaks in")', "os.urandom(8).hex()")


def test_the_outputs_of_a_lock_file():
    assert outputs(LOCK) == {"data/model": "0a.dir", "data/cost/train.json": "0b", "metrics/cost.json": "0c"}
    assert outputs("") == {}


def test_same_different_missing_and_timings():
    found = compare(LOCK, LOCK.replace("0b", "1b").replace("0c", "1c"))
    assert dict(found["verdict"]) == {
        "data/model": "same",
        "data/cost/train.json": "timing",
        "metrics/cost.json": "timing",
    }
    found = compare(LOCK, "stages: {a: {outs: [{path: data/model, md5: 1a.dir}, {path: data/new, md5: 0d}]}}")
    assert list(found.loc["data/model"]) == ["0a.dir", "1a.dir", "differs"]
    assert list(found.loc["data/new"]) == ["missing", "0d", "differs"]
    assert list(found.loc["data/cost/train.json"]) == ["0b", "missing", "timing"]
    assert set(compare(LOCK, "")["verdict"]) == {"differs", "timing"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline in two commits: `same` gives the same bits each time, `random` does not."""
    folder = tmp_path_factory.mktemp("reproduce") / "repository"
    empty_repository(folder)
    for name, code in (("same", MAKE), ("random", RANDOM)):
        (folder / "dvc.yaml").write_text(PIPELINE)
        (folder / "make.py").write_text(code)
        run_in(folder, "dvc", "repro", "--quiet")
        commit(folder, name)
        run_in(folder, "git", "tag", name)
    return folder


def reproduce(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "tools.reproduce", *options)
    return ended(folder, *command, PYTHONPATH=str(REPOSITORY), **variables)


def test_a_deterministic_pipeline_is_the_same_again_and_takes_nothing_from_outside(repository: Path, tmp_path: Path):
    # The user's own configuration shares the cache of this very repository, in which all the results are.
    (tmp_path / "config").write_text(f"[cache]\n    dir = {repository / '.dvc/cache'}\n")
    kept = tmp_path / "kept"
    done = reproduce(
        repository,
        *("--revision", "same", "--keep", str(kept)),
        DDPM_CKPT_DIR=str(tmp_path / "kept runs"),
        DVC_GLOBAL_CONFIG_DIR=str(tmp_path),
        GIT_DIR=str(repository / ".git"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Running stage 'make'" in done.stdout
    assert done.stdout.split()[-4:] == ["same", "1", "timing", "1"]
    assert (kept / "data/digits.txt").read_text() == "nothing leaks in"
    assert [path for path in (kept / ".dvc/cache/files").rglob("*") if path.is_file()]


def test_images_that_git_does_not_have_are_brought_into_the_clone(repository: Path, tmp_path: Path):
    code = MAKE.replace('os.environ.get("DDPM_CKPT_DIR", "nothing leaks in")', 'Path("photos/a.txt").read_text()')
    (repository / "make.py").write_text(code)
    (repository / "params.yaml").write_text("data: {path: photos}\n")
    (repository / "photos").mkdir()
    (repository / "photos/a.txt").write_text("a picture")
    (repository / ".gitignore").write_text("/photos\n")
    run_in(repository, "dvc", "repro", "--quiet")
    commit(repository, "images")
    done = reproduce(repository)
    (repository / "params.yaml").write_text("data: {path: ../repository/photos}\n")
    commit(repository, "images from outside")
    refused = reproduce(repository)
    shutil.rmtree(repository / "photos")
    run_in(repository, "git", "reset", "--quiet", "--hard", "random")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[-4:] == ["same", "1", "timing", "1"]
    assert refused.returncode == 1
    said = "error: data.path=../repository/photos lies outside of the repository: name it by an absolute path."
    assert refused.stderr.strip() == said


def test_a_random_output_differs(repository: Path, tmp_path: Path):
    (repository / "make.py").write_text("never committed")
    done = reproduce(repository, TMPDIR=str(tmp_path))
    run_in(repository, "git", "checkout", "--quiet", "make.py")
    assert done.returncode == 1, done.stdout + done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("data/digits.txt")] == ["differs"]
    assert list(tmp_path.glob("reproduce-*")) == []


def test_a_run_killed_again_and_again_is_compared_at_its_end(repository: Path):
    done = reproduce(repository, "--revision", "same", "--kills", "2", "--seconds", "0.6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed: 2 of 2" in done.stdout
    assert done.stdout.split()[-4:] == ["same", "1", "timing", "1"]


def test_a_kill_while_dvc_writes_its_locks_is_got_over(repository: Path):
    # What such a kill leaves: a file that was opened to be written, and nothing in it.
    once = 'if not Path("once").exists():\n    Path("once").touch()\n    Path(".dvc/tmp/rwlock").write_text("")\n'
    (repository / "make.py").write_text(MAKE + once + "    time.sleep(1000)\n")
    run_in(repository, "git", "commit", "--quiet", "--all", "--message", "cut off")
    done = reproduce(repository, "--kills", "1", "--seconds", "20")
    run_in(repository, "git", "reset", "--quiet", "--hard", "random")
    assert "killed: 1 of 1" in done.stdout
    assert "Unable to read RWLock-file" not in done.stderr
    assert done.stdout.split()[-2:] == ["timing", "1"]


def test_a_run_that_fails_is_not_the_same(repository: Path):
    (repository / "make.py").write_text("raise SystemExit(1)")
    run_in(repository, "git", "commit", "--quiet", "--all", "--message", "fails")
    done = reproduce(repository)
    run_in(repository, "git", "reset", "--quiet", "--hard", "random")
    assert done.returncode == 1
    assert "missing  differs" in done.stdout


def test_what_cannot_be_run_again_is_one_sentence(repository: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for folder, options, reason in (
        (tmp_path / "empty", (), "not a git repository"),
        (repository, ("--revision", "nowhere"), "nowhere is neither a Git revision nor the name of an experiment"),
        (repository, ("--keep", str(repository)), "not an empty directory"),
    ):
        done = reproduce(folder, *options)
        assert done.returncode == 1
        assert reason in done.stderr
        assert len(done.stderr.splitlines()) == 1
