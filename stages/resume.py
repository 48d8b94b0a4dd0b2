"""Where a killed training or sampling is found again: in a folder named after all that decides its outcome."""

import hashlib
import os
import re
import shutil
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ddpm.config import Config
from ddpm.utils.files import sha256
from ddpm.utils.resume import FINISHED, Busy, KeptRun

ROOT = Path(__file__).parents[1]


def resume_folder(stage: str, config: Config, *computed_by: object) -> Path:
    """Where a killed run of ``stage`` is kept: below `resume_root`, named by parameters, code, data and arithmetic.

    The first three are what dvc.yaml lists; the last is how results are computed (``computed_by``: device, precision).
    """
    digest = hashlib.sha256(f"{what_decides(stage, config)}{computed_by!r}".encode())
    return resume_root() / f"{stage}-{digest.hexdigest()[:16]}"


def what_decides(stage: str, config: Config) -> str:
    """A digest of the parameters, the code and the data that dvc.yaml lists for ``stage``."""
    listed = dvc_stages(config)[stage]
    digest = hashlib.sha256()
    for key in listed["params"]:
        digest.update(f"{key}={attrgetter(key)(config)!r}".encode())
    for dependency in listed["deps"]:
        # The code is that which runs, the data that of the working folder; under DVC both are in one.
        path = Path(dependency) if dependency.startswith("data/") else ROOT / dependency
        digest.update(f"{dependency}:{sha256(path)}".encode())
    return digest.hexdigest()


def resume_root() -> Path:
    """The folder of all kept runs: $DDPM_CKPT_DIR, else .ckpt, which Git and DVC ignore."""
    return Path(os.environ.get("DDPM_CKPT_DIR") or ".ckpt")


def finished_run(stage: str, /, **metadata: Any) -> dict[str, Any]:  # noqa: ANN401
    """What a stage notes of its finished run (`ddpm.utils.resume.KeptRun.finish`), for `forget_recorded`."""
    return {**metadata, "stage": stage, "workspace": str(Path.cwd())}


def forget_recorded(stage: str, config: Config) -> None:
    """Delete the finished runs of this workspace whose outputs ``stage`` reads: DVC begins it when they are recorded.

    Until then a run is kept: were DVC killed, or the disk full, before it is recorded, it would have to be done again.
    """
    listed = dvc_stages(config)
    paths = map(Path, listed.get(stage, {}).get("deps", ()))
    read = {str(place) for path in paths for place in (path, *path.parents)}

    def recorded(run: KeptRun) -> bool:
        note = run.finished or {}
        outs = listed.get(str(note.get("stage")), {}).get("outs", ())
        return note.get("workspace") == str(Path.cwd()) and not read.isdisjoint(map(str, outs))

    for note in resume_root().glob(f"*/{FINISHED}"):
        if recorded(run := KeptRun(note.parent)):
            # Another clone may be at this very run, or have taken it meanwhile: then it is that one's to forget.
            # The note goes first: what a deletion cut short leaves is an unfinished run, which resumes to the same end.
            with suppress(Busy), run:
                if recorded(run):
                    note.unlink()
                    shutil.rmtree(note.parent, ignore_errors=True)


def dvc_stages(config: Config) -> dict[str, Any]:
    """The stages of dvc.yaml by name, its ``${section.key}`` replaced by the settings."""

    def resolved(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict):
            return {key: resolved(part) for key, part in value.items()}
        if isinstance(value, list):
            return [resolved(part) for part in value]
        if not isinstance(value, str):
            return value
        return re.sub(r"\$\{([\w.]+)\}", lambda match: str(attrgetter(match[1])(config)), value)

    # Not before the YAML is read: `data.path` may have characters that mean something there.
    stages: dict[str, Any] = resolved(YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"])
    return stages
