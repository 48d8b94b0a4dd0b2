"""The doctor on small real repositories of Git and DVC whose cache, workspace and remote are spoiled one by one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clones import REPOSITORY, commit, empty_repository, ended, run_in
from filelock import FileLock

from ddpm.utils.errors import DdpmError
from tools.doctor import check_remotes, examine, left_over, md5, md5_of_list, move_away

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
    """A repository with all in order: a stage's folder, file and metric, an added file, a verified remote."""
    folder = tmp_path_factory.mktemp("doctor") / "template"
    empty_repository(folder)
    for name, text in (("make.py", MAKE), ("dvc.yaml", PIPELINE), (".dvcignore", IGNORED), ("own.txt", "own")):
        (folder / name).write_text(text)
    run_in(folder, "dvc", "add", "--quiet", "own.txt")
    run_in(folder, "dvc", "repro", "--quiet")
    run_in(folder, "dvc", "remote", "add", "--default", "team", str(folder.parent / "remote"))
    run_in(folder, "dvc", "remote", "modify", "team", "verify", "true")
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
    """The object of a file, or of a folder's list."""
    files = {file.name: md5(file) for file in Path(path).iterdir()} if Path(path).is_dir() else {}
    name = md5_of_list(files) if files else md5(Path(path))
    assert name
    return Path(".dvc/cache/files/md5", name[:2], name[2:])


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


def texts(mend: bool = False) -> list[str]:
    return [finding.text for finding in examine(mend)]


def test_a_sound_repository_is_sound(repository: Path, capsys: pytest.CaptureFixture[str]):
    (repository / "data/pictures/left.tmp").touch()  # .dvcignore leaves it out
    assert texts() == []
    assert "7 objects" in capsys.readouterr().out
    assert Path("data/pictures/left.tmp").exists()


@pytest.mark.parametrize(
    ("path", "change"),
    [("data/pictures/3.txt", flipped), ("data/pictures", flipped), ("data/pictures", emptied), ("own.txt", shortened)],
)
def test_a_damaged_object_is_named_and_replaced_by_a_good_one(
    repository: Path, path: str, change: Callable[[bytes], bytes]
):
    damaged, before = stored(path), objects()
    spoil(damaged, change)
    assert [text for text in texts(mend=True) if f"damaged: {damaged}" in text and path in text]
    assert before - objects() == {damaged}
    run_in(repository, "dvc", "pull")
    assert texts() == []


def test_dvc_checks_out_a_damaged_object_and_keeps_it_when_the_cache_is_mended(repository: Path):
    good = Path("data/pictures/3.txt").read_bytes()
    damaged = stored("data/pictures/3.txt")
    spoil(damaged, flipped)
    shutil.rmtree("data/pictures")
    run_in(repository, "dvc", "checkout")
    assert Path("data/pictures/3.txt").read_bytes() == flipped(good)
    assert "up to date" in run_in(repository, "dvc", "status")
    # Nor does DVC look at the workspace again when there is a good object: what it checked out must go, too.
    spoil(damaged, lambda _: good)
    run_in(repository, "dvc", "checkout")
    assert Path("data/pictures/3.txt").read_bytes() == flipped(good)
    assert any("data/pictures: 3.txt is changed" in text for text in texts())


@pytest.mark.parametrize("link", ["copy", "hardlink"])
def test_a_damaged_object_that_was_checked_out_is_mended_in_the_workspace_too(repository: Path, link: str):
    good = Path("data/pictures/3.txt").read_bytes()
    run_in(repository, "dvc", "config", "cache.type", link)
    spoil(stored("data/pictures/3.txt"), flipped)
    shutil.rmtree("data/pictures")
    run_in(repository, "dvc", "checkout")
    assert len(texts(mend=True)) == 2
    run_in(repository, "dvc", "pull")
    assert Path("data/pictures/3.txt").read_bytes() == good
    assert texts() == []


def test_without_a_remote_a_stage_makes_it_again(repository: Path, capsys: pytest.CaptureFixture[str]):
    spoil(stored("data/one.bin"), flipped)
    texts(mend=True)
    assert "`dvc commit` stores anew" in capsys.readouterr().out
    assert "Running stage 'make'" in run_in(repository, "dvc", "repro")
    assert texts() == []


def test_what_is_sound_in_the_workspace_is_stored_anew_by_commit(repository: Path):
    spoil(stored("data/one.bin"), flipped)
    spoil(stored("data/pictures"), shortened)
    texts(mend=True)
    assert all(text.startswith("missing from the cache") for text in texts())
    run_in(repository, "dvc", "commit")
    assert texts() == []


@pytest.mark.parametrize(
    ("path", "brings"),
    [
        ("data/pictures/2.txt", "`dvc checkout data/pictures`"),
        ("own.txt", "`dvc checkout own.txt`"),
        ("metrics/score.json", "`git checkout metrics/score.json`"),
    ],
)
def test_a_changed_file_of_the_workspace_is_named_and_left_alone(repository: Path, path: str, brings: str):
    spoil(stored("data/one.bin"), flipped)  # it is mended, which leaves what is merely changed alone
    Path(path).write_text("mine")
    found = next(text for text in texts(mend=True) if text.startswith("changed: "))
    assert Path(path).name in found
    assert brings in found
    assert Path(path).read_text() == "mine"


def test_a_file_too_many_and_a_file_too_few_are_named(repository: Path):
    Path("data/pictures/4.txt").write_text("another")
    Path("data/pictures/0.txt").unlink()
    (found,) = texts()
    assert "0.txt is missing" in found
    assert "4.txt is not part of it" in found


def test_missing_is_told_from_changed(repository: Path):
    Path("data/one.bin").unlink()
    Path("metrics/score.json").unlink()
    shutil.rmtree("data/pictures")
    found = texts()
    assert len(found) == 3
    assert all(text.startswith("missing: ") for text in found)
    assert sum("`dvc checkout data/" in text for text in found) == 2
    shutil.rmtree(".dvc/cache")
    assert sum("`dvc pull` or `dvc repro`" in text for text in texts()) == 2


def test_an_object_that_is_gone_is_named(repository: Path):
    for path in ("data/pictures/1.txt", "data/one.bin"):
        stored(path).unlink()
    found = texts()
    assert all(text.startswith("missing from the cache") for text in found)
    assert "1 of the 4 files of data/pictures: 1.txt" in found[0]
    assert "data/one.bin" in found[1]
    run_in(repository, "dvc", "fetch")
    assert texts() == []


def test_the_command_says_by_its_exit_status_whether_all_is_well(repository: Path):
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return ended(repository, sys.executable, "-m", "tools.doctor", *options, PYTHONPATH=str(REPOSITORY))

    sound = run()
    assert sound.returncode == 0, sound.stderr
    assert "nothing wrong" in sound.stdout
    spoil(stored("own.txt"), shortened)
    for done in (run(), run("--mend"), run()):
        assert done.returncode == 1
        assert "own.txt" in done.stdout


def test_outside_a_dvc_repository_it_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DdpmError, match=r"holds dvc\.yaml"):
        examine(mend=False)


def test_a_remote_that_is_not_verified_is_named_with_the_mend():
    config = (
        "core.remote=a\nremote.a.url=/a\nremote.a.verify=true\nremote.b.url=s3://b\nremote.b.verify=false\n"
        "remote.c.d.url=ssh://c\n"
    )
    found = [finding.text for finding in check_remotes(config)]
    assert len(found) == 2
    assert "`dvc remote modify b verify true`" in found[0]
    assert "remote modify c.d verify" in found[1]


def test_folders_of_killed_runs_are_listed_with_size_and_age(tmp_path: Path):
    for name in ("train-1", "train-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state").write_bytes(bytes(3 * 2**20))
        os.utime(tmp_path / name / "state", (1000, 1000))
    (tmp_path / "train-2/lock").touch()
    os.utime(tmp_path / "train-2/lock", (1000, 1000))
    with FileLock(tmp_path / "train-2/lock"):
        first, second = left_over(tmp_path, now=1000 + 2 * 3600)
    assert first.endswith("train-1: 3.0 MiB, last written 2.0 hours ago, left over")
    assert second.endswith("in use now")
    assert left_over(tmp_path / "nowhere", now=0) == []


def test_nothing_is_overwritten_where_damaged_files_go(tmp_path: Path):
    for content in ("first", "second"):
        (tmp_path / "a.txt").write_text(content)
        move_away([tmp_path / "a.txt"], tmp_path / "damaged")
    assert [(tmp_path / "damaged" / name).read_text() for name in ("a.txt", "a.txt.1")] == ["first", "second"]
