"""tools/doctor.py on small real repositories of Git and DVC whose cache and workspace are damaged one by one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clones import REPOSITORY, commit, empty_repository, ended, run_in

from tools.doctor import examine, owners, read_cache

MAKE = """
from pathlib import Path
pictures = Path("data/pictures")
pictures.mkdir(parents=True)
for i in range(4):
    (pictures / f"{i}.txt").write_text(f"picture {i}")
Path("data/one.bin").write_bytes(bytes(1000))
Path("metrics").mkdir(exist_ok=True)
Path("metrics/score.json").write_text("{}")
"""
PIPELINE = """
stages:
  make:
    cmd: python make.py
    outs: [data/pictures, data/one.bin]
    metrics:
      - metrics/score.json:
          cache: false
"""
IGNORED = "*.tmp\n__pycache__/\n"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with all in order: a stage's folder, file and metric, an added file, a remote."""
    folder = tmp_path_factory.mktemp("doctor") / "template"
    empty_repository(folder)
    for name, text in (("make.py", MAKE), ("dvc.yaml", PIPELINE), (".dvcignore", IGNORED), ("own.txt", "own")):
        (folder / name).write_text(text)
    run_in(folder, "dvc", "add", "--quiet", "own.txt")
    run_in(folder, "dvc", "repro", "--quiet")
    run_in(folder, "dvc", "remote", "add", "--default", "team", str(folder.parent / "remote"))
    run_in(folder, "dvc", "push", "--quiet")
    commit(folder, "all in order")
    return folder


@pytest.fixture
def repository(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template, which is the working folder."""
    folder = tmp_path / "repository"
    shutil.copytree(template, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DDPM_CKPT_DIR", raising=False)
    return folder


def stored(path: str) -> Path:
    """The object of a file, or of a folder's list of files."""
    objects, _ = read_cache(Path(".dvc/cache"))
    return next(objects[name] for name, paths in owners(objects).items() if path in paths)


def spoil(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file's bytes as a failing disk would, neither its permissions nor its time."""
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flipped(content: bytes) -> bytes:
    return content[:3] + bytes([content[3] ^ 1]) + content[4:]


def shortened(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


def objects() -> set[Path]:
    return {path for path in Path(".dvc/cache/files").rglob("*") if path.is_file()}


@pytest.fixture
def findings(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What the command says is wrong, one line each."""

    def examined(fix: bool = False) -> list[str]:
        capsys.readouterr()
        count = examine(fix)
        first, *lines = capsys.readouterr().out.splitlines()
        assert first == f"{count or 'nothing'} wrong"
        return lines[:count]

    return examined


def test_an_intact_repository_is_intact(repository: Path, capsys: pytest.CaptureFixture[str]):
    (repository / "data/pictures/left.tmp").touch()  # .dvcignore leaves it out
    assert examine(fix=True) == 0
    assert "7 objects" in capsys.readouterr().out
    assert Path("data/pictures/left.tmp").exists()


@pytest.mark.parametrize(
    ("path", "change"),
    [("data/pictures/3.txt", flipped), ("data/pictures", flipped), ("data/pictures", emptied), ("own.txt", shortened)],
)
def test_a_damaged_object_is_named_and_restored(
    repository: Path, findings: Callable[..., list[str]], path: str, change: Callable[[bytes], bytes]
):
    damaged, before = stored(path), objects()
    spoil(damaged, change)
    (text,) = [text for text in findings(fix=True) if text.startswith(f"damaged: {damaged} ")]
    assert path in text
    assert before - objects() == {damaged}
    run_in(repository, "dvc", "pull")
    assert findings() == []


def test_dvc_itself_does_not_see_a_damaged_object(repository: Path, findings: Callable[..., list[str]]):
    """The reason for the command: were DVC to see it, it would not be needed."""
    good = Path("data/pictures/3.txt").read_bytes()
    damaged = stored("data/pictures/3.txt")
    spoil(damaged, flipped)
    shutil.rmtree("data/pictures")
    run_in(repository, "dvc", "checkout")
    assert Path("data/pictures/3.txt").read_bytes() == flipped(good)
    assert "up to date" in run_in(repository, "dvc", "status")
    # Nor does DVC look at the workspace again when the object is intact: what it checked out must go, too.
    spoil(damaged, lambda _: good)
    run_in(repository, "dvc", "checkout")
    assert Path("data/pictures/3.txt").read_bytes() == flipped(good)
    assert any(text.startswith("changed: ") and "data/pictures/3.txt" in text for text in findings())


@pytest.mark.parametrize("link", ["copy", "hardlink"])
def test_copies_of_a_damaged_object_in_the_workspace_are_restored_too(
    repository: Path, findings: Callable[..., list[str]], link: str
):
    good = Path("data/pictures/3.txt").read_bytes()
    run_in(repository, "dvc", "config", "cache.type", link)
    spoil(stored("data/pictures/3.txt"), flipped)
    shutil.rmtree("data/pictures")
    run_in(repository, "dvc", "checkout")
    assert len(findings(fix=True)) == 2
    run_in(repository, "dvc", "pull")
    assert Path("data/pictures/3.txt").read_bytes() == good
    assert findings() == []


def test_without_a_remote_the_stage_computes_it_again(repository: Path, findings: Callable[..., list[str]]):
    spoil(stored("data/one.bin"), flipped)
    assert len(findings(fix=True)) == 1
    assert "Running stage 'make'" in run_in(repository, "dvc", "repro")
    assert findings() == []


def test_what_is_intact_in_the_workspace_is_stored_again_by_commit(
    repository: Path, findings: Callable[..., list[str]]
):
    spoil(stored("data/one.bin"), flipped)
    spoil(stored("data/pictures"), shortened)
    findings(fix=True)
    assert any(text.startswith("not in the cache (") and "data/one.bin" in text for text in findings())
    run_in(repository, "dvc", "commit")
    assert findings() == []


@pytest.mark.parametrize("path", ["data/pictures/2.txt", "own.txt"])
def test_a_changed_file_of_the_workspace_is_named_and_left_alone(
    repository: Path, findings: Callable[..., list[str]], path: str
):
    spoil(stored("data/one.bin"), flipped)  # it is deleted, which leaves what is merely changed alone
    Path(path).write_text("mine")
    assert any(text.startswith("changed: ") and path in text for text in findings(fix=True))
    assert Path(path).read_text() == "mine"


def test_files_too_many_too_few_and_gone_from_the_cache_are_named(repository: Path, findings: Callable[..., list[str]]):
    stored("data/pictures/1.txt").unlink()
    Path("data/pictures/4.txt").write_text("another")
    Path("data/pictures/0.txt").unlink()
    Path("data/one.bin").unlink()
    found = findings()
    for start, path in (
        ("missing: ", "data/pictures/0.txt"),
        ("missing: ", "data/one.bin"),
        ("not part of the recorded output: ", "data/pictures/4.txt"),
        ("not in the cache (", "data/pictures/1.txt"),
    ):
        assert any(text.startswith(start) and path in text for text in found), found


def test_a_missing_folder_is_named_before_its_files(repository: Path, findings: Callable[..., list[str]]):
    shutil.rmtree("data/pictures")
    (text,) = findings()
    assert text.startswith("missing: data/pictures/, ")


def test_the_command_says_by_its_exit_status_whether_all_is_well(repository: Path):
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return ended(repository, sys.executable, "-m", "tools.doctor", *options, PYTHONPATH=str(REPOSITORY))

    intact = run()
    assert intact.returncode == 0, intact.stderr
    assert "nothing wrong" in intact.stdout
    spoil(stored("own.txt"), shortened)
    for done in (run(), run("--fix"), run()):
        assert done.returncode == 1
        assert "own.txt" in done.stdout
