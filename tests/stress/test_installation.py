"""What the library needs, as pyproject.toml names it: whether there are versions that go together."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from clones import ended


def test_there_are_versions_that_go_together(tmp_path: Path, root: Path):
    (uv,) = re.findall(r"uv==[\d.]+", (root / "Makefile").read_text())
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "uv")], check=True)
    programs = tmp_path / "uv/bin"
    done = ended(tmp_path, str(programs / "python"), "-m", "pip", "install", "--quiet", uv)
    if done.returncode and "connection" in done.stderr.lower():
        pytest.skip("no network: " + done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    # Like pip it trusts whom the system trusts.
    compiling = (str(programs / "uv"), "pip", "compile", "--no-config", "--system-certs")
    done = ended(tmp_path, *compiling, str(root / "pyproject.toml"))
    assert done.returncode == 0, done.stderr
    found = set(re.findall(r"^([\w.-]+)==", done.stdout, re.MULTILINE))
    assert {"torch", "numpy", "pydantic", "safetensors", "pillow"} <= found
