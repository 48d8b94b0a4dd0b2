"""The stages of dvc.yaml: each reads ``params.yaml``, makes one call into ``ddpm`` and writes its outputs.

All run in the folder that holds dvc.yaml. Here stand the paths that several of them share, and how a stage ends.
"""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ddpm.config import Config, load_config
from ddpm.errors import DamagedFile, DdpmError, MissingFile

PARAMS = Path("params.yaml")
RAW = Path("data/raw")
SPLIT = Path("data/split")
MODEL = Path("data/model")
GENERATED = Path("data/generated")
LABELS = Path("data/labels.csv")
TRAJECTORY = Path("data/trajectory.npz")
REFERENCE = Path("data/reference")
NEAREST = Path("data/nearest.csv")
COST = Path("data/cost")
FIGURES = Path("data/figures")
METRICS = Path("metrics")


def run(stage: Callable[[Config], None]) -> None:
    """Run one stage; what the user can mend ends it with one sentence and exit status 1."""
    try:
        stage(load_config(PARAMS))
    except (MissingFile, DamagedFile) as error:
        sys.exit(f"error: {error}: bring it back with `dvc pull`, `dvc repro` or `git checkout`.")
    except DdpmError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {_explain(error)}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted.")


def _explain(error: OSError) -> str:
    place = error.filename or "a file"
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place} could not be written, the disk is full ({reason}): free some space and run `dvc repro` again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{place} cannot be used ({reason}): give the user {os.getuid()} the right to read and write it."
    return f"{place}: {reason}."
