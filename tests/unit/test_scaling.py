"""The files of docs/scaling are what their engines accept, as far as that can be said without these."""

import re
import subprocess
from pathlib import Path

import pytest
from clones import REPOSITORY
from ruamel.yaml import YAML

SCALING = REPOSITORY / "docs/scaling"
SCRIPTS = sorted(path for path in SCALING.iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_has_no_error_of_syntax(path: Path):
    shell = path.read_text().splitlines()[0].removeprefix("#!")
    assert shell in ("/bin/sh", "/bin/bash")
    subprocess.run([shell, "-n", str(path)], check=True)
    assert path.suffix == ".sbatch" or path.stat().st_mode & 0o111, "not executable"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_calls_is_there(path: Path):
    text = path.read_text()
    for name in re.findall(r"docs/scaling/[\w.]+", text):
        assert (REPOSITORY / name).is_file(), name
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert (REPOSITORY / f"{module.replace('.', '/')}.py").is_file(), module


def test_options_of_slurm_stand_before_the_first_command():
    for path in SCALING.glob("*.sbatch"):
        lines = path.read_text().splitlines()
        options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
        commands = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
        assert options
        assert max(options) < min(commands)


def test_the_task_of_skypilot_is_one():
    path = SCALING / "sky.yaml"
    task = YAML(typ="safe", pure=True).load(path)
    assert set(task) == {"name", "resources", "envs", "setup", "run"}
    assert task["envs"]["REPOSITORY"] is None, "its parser then asks for it"
    for script in (task["setup"], task["run"]):
        subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)


def test_skypilots_own_parser_takes_the_task():
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed: pip install skypilot==0.14.1")
    task = YAML(typ="safe", pure=True).load(SCALING / "sky.yaml")
    with pytest.raises(ValueError, match="REPOSITORY"):
        sky.Task.from_yaml_config(task)
    found = sky.Task.from_yaml_config(task, env_overrides=[("REPOSITORY", "/shared/ddpm-mnist")])
    assert {**found.envs} == {"REPOSITORY": "/shared/ddpm-mnist", "NAME": "experiment", "OPTIONS": ""}
    assert found.num_nodes == 1
