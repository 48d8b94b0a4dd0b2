"""docs/toolbox.md: every entry of the registries has its row, every row its setting, its source and its test."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from clones import SETTINGS
from dvc.utils.hydra import apply_overrides
from test_convergence import NOISY_ORDERS, ORDERS

from ddpm.config import load_config
from ddpm.diffusion.denoiser import CLIPPINGS
from ddpm.diffusion.objective import TIME_DENSITIES, TIME_SAMPLINGS, WEIGHTINGS
from ddpm.diffusion.process import TARGETS
from ddpm.diffusion.samplers import SAMPLERS, VARIANCES
from ddpm.diffusion.schedule import SCHEDULES, SPACINGS
from ddpm.models.networks import NETWORKS
from ddpm.training.optimizers import LR_DECAYS, OPTIMIZERS
from ddpm.utils.registry import Registry

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "toolbox.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| idea"))
]
REGISTRIES: dict[str, Registry[Any]] = {
    "diffusion.schedule": SCHEDULES,
    "diffusion.target": TARGETS,
    "train.weighting": WEIGHTINGS,
    "train.time_density": TIME_DENSITIES,
    "train.time_sampling": TIME_SAMPLINGS,
    "train.optimizer": OPTIMIZERS,
    "train.lr_decay": LR_DECAYS,
    "model.network": NETWORKS,
    "generate.sampler": SAMPLERS,
    "generate.spacing": SPACINGS,
    "generate.variance": VARIANCES,
    "generate.clip": CLIPPINGS,
}


@pytest.mark.parametrize("key", REGISTRIES)
def test_every_entry_has_a_row(key: str):
    named = {value for row in ROWS for value in re.findall(rf"{re.escape(key)}=(\w+)", row[1])}
    assert set(REGISTRIES[key]) <= named


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1].strip("`"))
def test_dvc_sets_what_a_row_names_and_the_settings_accept_it(row: list[str], tmp_path: Path):
    (overrides,) = re.findall(r"^`([^`]+)`$", row[1])
    shutil.copy(SETTINGS, tmp_path / "params.yaml")
    apply_overrides(tmp_path / "params.yaml", overrides.split())
    config = load_config(tmp_path / "params.yaml")
    for override in overrides.split():
        key, value = override.split("=")
        section, name = key.split(".")
        found = getattr(getattr(config, section), name)
        assert str(list(found) if isinstance(found, tuple) else found).replace(" ", "").lower() == value


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1].strip("`"))
def test_a_row_has_its_source_and_a_test_that_is_there(row: list[str]):
    assert re.search(r"\b(19|20)\d\d\b", row[-2])
    ((file, name),) = re.findall(r"^`(\w+\.py)::(\w+)`$", row[-1])
    assert f"def {name}(" in (ROOT / "tests" / "unit" / file).read_text(encoding="utf-8")


def test_the_orders_of_the_samplers_are_those_that_are_measured():
    rows = [row for row in ROWS if len(row) == 5]
    assert {*SAMPLERS} == {re.findall(r"sampler=(\w+)", row[1])[0] for row in rows}
    for row in rows:
        (name,) = re.findall(r"sampler=(\w+)", row[1])
        measured = NOISY_ORDERS if name == "ddpm" or "eta=1.0" in row[1] else ORDERS
        assert int(row[2]) == measured[name][1], row[0]
