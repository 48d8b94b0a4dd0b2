"""Commands beside the pipeline."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ddpm.utils.errors import DdpmError

_FOREIGN = ("DDPM_CKPT_DIR", "DVC_ROOT", "DVC_STAGE", "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")


def run(*command: str, cwd: Path | None = None, **variables: str) -> str:
    """What a command prints, run with further environment variables. Raises DdpmError with what a failing one says."""
    done = subprocess.run(command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DdpmError(f"`{' '.join(command)}` failed: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout


def commit_of(name: str) -> str:
    """The commit of a Git revision, or of an experiment by the name that `dvc exp show` prints (the newest of them).

    Raises DdpmError for what is neither.
    """
    with suppress(DdpmError):
        return run("git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    # DVC keeps experiments at refs/exps, by the first 2 and the other 38 digits of the commit they are based on.
    found = run("git", "for-each-ref", "--sort=-committerdate", "--format=%(objectname)", f"refs/exps/*/*/{name}")
    if not found:
        raise DdpmError(f"{name} is neither a Git revision nor the name of an experiment.")
    return found.split()[0]


def leave_surroundings() -> None:
    """Drop the environment variables that lead Git, DVC or a stage out of a clone."""
    for name in _FOREIGN:
        os.environ.pop(name, None)


def mend_locks(folder: Path) -> None:
    """Remove what a DVC that was killed or interrupted in writing its locks has left: it stops every later command.

    folder: of a repository in which none of its commands begins or ends meanwhile.
    """
    for path in (folder / ".dvc/tmp/rwlock", folder / ".dvc/tmp/exps/rwlock"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError:
            path.unlink(missing_ok=True)


def clone(commit: str, folder: Path, cache: Path) -> None:
    """Check out a commit of this repository in a new folder, with that folder as DVC's cache. Raises DdpmError.

    cache: a relative path is from the clone's .dvc. Whatever the user's configuration says of a shared cache does not
    count there.
    """
    run("git", "clone", "--quiet", "--no-checkout", ".", str(folder))
    run("git", "-C", str(folder), "checkout", "--quiet", "--detach", commit)
    (folder / ".dvc/config.local").write_text(f"[cache]\n    dir = {cache}\n", encoding="utf-8")


@contextmanager
def prepared_clone(commit: str, folder: Path, cache: Path) -> Iterator[Path]:
    """A `clone` at a name beside ``folder``, which it takes once the block has made it ready.

    So the folder is whole or not there, whatever ends the process: what a killed call left is deleted by the next.
    Raises DdpmError, also where another process is at it, and what the block raises.
    """
    part = Path(f"{folder}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DdpmError(f"another process makes {folder}: wait for it.") from error
    try:
        if folder.exists():
            raise DdpmError(f"another process has made {folder} meanwhile: run the command again.")
        shutil.rmtree(part, ignore_errors=True)
        clone(commit, part, cache)
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):  # Windows deletes no open file
            Path(lock.lock_file).unlink()
        lock.release()
