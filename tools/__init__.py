"""Commands beside the pipeline."""

import subprocess
from contextlib import suppress

from ddpm.utils.errors import DdpmError


def git(*command: str) -> str:
    """What a command of Git prints, in the working folder. Raises DdpmError with what it says when it fails."""
    done = subprocess.run(("git", *command), capture_output=True, text=True, check=False)
    if done.returncode:
        raise DdpmError(f"`git {' '.join(command)}`: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


def commit_of(name: str) -> str:
    """The commit of a Git revision, or of an experiment by the name that `dvc exp show` prints (the newest of them).

    Raises DdpmError for what is neither.
    """
    with suppress(DdpmError):
        return git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    # DVC keeps experiments at refs/exps, by the first 2 and the other 38 digits of the commit they are based on.
    found = git("for-each-ref", "--sort=-committerdate", "--format=%(objectname)", f"refs/exps/*/*/{name}")
    if not found:
        raise DdpmError(f"{name} is neither a Git revision nor the name of an experiment.")
    return found.split()[0]
