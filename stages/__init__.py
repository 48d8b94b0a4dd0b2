"""The stages of dvc.yaml: each reads ``params.yaml``, makes one call into ``ddpm`` and writes its outputs.

All run in the folder that holds dvc.yaml. Here stand the paths that several of them share, how a stage ends, and where
what a killed one has made is found again.
"""

import errno
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from ddpm.config import Config, load_config
from ddpm.errors import DamagedFile, DdpmError, MissingFile
from ddpm.files import sha256
from ddpm.rescue import forget_finished

ROOT = Path(__file__).parents[1]
PARAMS = Path("params.yaml")
RAW = Path("data/raw")
SPLIT = Path("data/split")
MODEL = Path("data/model")
GENERATED = Path("data/generated")
LABELS = Path("data/labels.csv")
TRAJECTORY = Path("data/trajectory.npz")
DRAWS = Path("data/draws.npz")
REFERENCE = Path("data/reference")
NEAREST = Path("data/nearest.csv")
COST = Path("data/cost")
FIGURES = Path("data/figures")
METRICS = Path("metrics")


def run(stage: Callable[[Config], None]) -> None:
    """Run one stage; what the user can mend ends it with one sentence and exit status 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped."))
    try:
        if "DVC_STAGE" in os.environ:
            _end_with_dvc()
            _forget_recorded(os.environ["DVC_STAGE"].rpartition(":")[2])
        stage(load_config(PARAMS))
    except (MissingFile, DamagedFile) as error:
        sys.exit(f"error: {error}: bring it back with `dvc pull`, `dvc repro` or `git checkout`.")
    except DdpmError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {_explain(error)}")
    except (MemoryError, RuntimeError) as error:
        # torch's own are RuntimeErrors, which their text alone tells from others: of a GPU, and of a CPU.
        if not isinstance(error, MemoryError) and not any(
            words in str(error) for words in ("out of memory", "can't allocate memory")
        ):
            raise
        sys.exit(
            "error: the memory does not suffice: lower model.base_channels, train.batch_size or "
            "runtime.generate_batch_size."
        )
    except KeyboardInterrupt:
        sys.exit("error: interrupted.")


def rescue_folder(stage: str, config: Config, *computed_by: object) -> Path:
    """Where a killed run of ``stage`` is found again: below `rescues`, named by all that decides its outcome.

    That is what dvc.yaml lists, parameters, code and data, and how it is computed (``computed_by``: device, precision).
    """
    listed = _listed()[stage]
    digest = hashlib.sha256()
    for key in listed["params"]:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        digest.update(f"{key}={value!r}".encode())
    for dependency in listed["deps"]:
        # The code is that which runs, the data that of the working folder; under DVC both are in one.
        path = Path(dependency) if dependency.startswith("data/") else ROOT / dependency
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        digest.update(f"{dependency}:{sha256(*files)}".encode())
    digest.update(repr(computed_by).encode())
    return rescues() / f"{stage}-{digest.hexdigest()[:16]}"


def rescues() -> Path:
    """The folder of all rescue folders: $DDPM_CKPT_DIR, else .ckpt, which Git and DVC ignore."""
    return Path(os.environ.get("DDPM_CKPT_DIR") or ".ckpt")


def finished_facts(stage: str, **facts: Any) -> dict[str, Any]:  # noqa: ANN401
    """What a stage notes of its finished run (`Rescue.finish`), so that `run` knows when DVC has recorded it."""
    return {"stage": stage, "workspace": str(Path.cwd()), **facts}


def _forget_recorded(stage: str) -> None:
    """Delete the finished runs of this workspace whose outputs ``stage`` reads: DVC begins it when they are recorded.

    Until then a run is kept: were DVC killed, or the disk full, before it is recorded, it would have to be done again.
    """
    here = str(Path.cwd())
    forget_finished(rescues(), lambda facts: facts.get("workspace") == here and _reads(stage, str(facts.get("stage"))))


def _reads(stage: str, other: str) -> bool:
    """Whether a stage reads outputs of another, by dvc.yaml. A stage that is not there reads and makes nothing."""
    listed = _listed()
    paths = map(Path, listed.get(stage, {}).get("deps", ()))
    read = {str(place) for path in paths for place in (path, *path.parents)}
    return not read.isdisjoint(map(str, listed.get(other, {}).get("outs", ())))


def _listed() -> dict[str, Any]:
    """The stages of dvc.yaml by name."""
    return dict(YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"])


def _end_with_dvc() -> None:
    """Stop this process when DVC is gone: killed alone, it leaves its stage running, whose results nobody records."""
    dvc = _dvc()

    def watch() -> None:
        while _dvc() == dvc:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _dvc() -> int | None:
    """The number of the process that runs this stage, None if it is gone.

    DVC calls a shell, `SHELL -c "python -m stages…"`. Some are replaced by what they call, others, like dash, stay.
    """
    try:
        parent = psutil.Process(os.getppid())
        stays = any("-m stages." in argument for argument in parent.cmdline())
        return parent.ppid() if stays else parent.pid
    except psutil.Error:
        return None


def _explain(error: OSError) -> str:
    place = error.filename or "a file"
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place} could not be written, the disk is full ({reason}): free some space and run `dvc repro` again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{place} cannot be used ({reason}): give the user {os.getuid()} the right to read and write it."
    return f"{place}: {reason}."
