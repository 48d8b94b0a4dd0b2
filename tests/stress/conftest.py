"""What several stress tests share."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import page_runtime
from clones import Offline, small_run, surroundings

from ddpm.evaluation.reference import Reference
from ddpm.utils.files import load_arrays


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory, raw: Path) -> Path:
    """A folder of what the pipeline's stage `reference` leaves of the real digits."""
    made = small_run(tmp_path_factory.getbasetemp(), raw).folder / "data/reference"
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("features") / "reference"))


@pytest.fixture(scope="session")
def full(features: Path) -> Reference:
    """The real digits by their own classifier."""
    return Reference.load(features / "mnist.npz")


@pytest.fixture(scope="session")
def test_nearest(features: Path) -> np.ndarray:
    """The distance of each test image to the nearest training image, by pixels: float64 [10000]."""
    return load_arrays(features / "pixels.npz")["test_nearest"]


@pytest.fixture(scope="session")
def page(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Offline]]:
    """The address of the shipped model's page, which `python -m ddpm page` serves, and what the command was refused."""
    page_runtime()
    offline = Offline(tmp_path_factory.mktemp("hook"))
    command = [sys.executable, "-m", "ddpm", "page", "--port", "0", "--no-browser"]
    environment = surroundings(**offline.variables)
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = (re.match(r"http://127\.0\.0\.1:\d+/", line) for line in process.stdout)
        try:
            yield next(filter(None, found))[0], offline
        finally:
            process.terminate()
