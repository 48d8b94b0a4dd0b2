"""What the tests of several rooms share: the repository, real digits, settings."""

import copy
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clones import SETTINGS, TINY
from filelock import FileLock
from ruamel.yaml import YAML
from xdist.scheduler import LoadScopeScheduling

from ddpm.config import Config, parse_config
from ddpm.data.image_set import ImageSet
from ddpm.data.sources import SOURCES
from ddpm.data.sources.mnist import FILES, MNIST
from ddpm.evaluation.features import Features
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.utils.files import sha256
from ddpm.utils.images import resize
from ddpm.utils.runtime import Runtime

ROOT = Path(__file__).parents[1]

# Tests run side by side, see pyproject.toml, and start processes of their own: with a thread for each core in every one
# of them, they would be many times slower.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Files whose tests share what takes long to make.
TOGETHER = {
    "test_offline": "page of the model",
    "test_page_of_the_model": "page of the model",
    "test_evaluation_of_files": "real digits",
    "test_real_digits": "real digits",
    "test_classifier": "test digits",
    "test_measure": "test digits",
    "test_train_classifier": "test digits",
}


class FilesTogether(LoadScopeScheduling):
    """Gives the tests of a file, and of those in `TOGETHER`, to one process, in their order."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0]).stem
        return TOGETHER.get(file, file)


@pytest.hookimpl(optionalhook=True)  # `-p no:xdist` is good for debugging
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesTogether:  # noqa: ANN401
    return FilesTogether(config, log)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def raw() -> Path:
    """A folder with the four original files: the repository's, else one kept between runs."""
    folder = ROOT / "data" / "raw"
    if all((folder / name).is_file() and sha256(folder / name) == digest for name, digest in FILES.items()):
        return folder
    cache = Path(tempfile.gettempdir()) / f"mnist-for-tests-{os.getuid()}"
    with FileLock(f"{cache}.lock"):  # other processes of the same tests want it too
        MNIST.fetch("auto", cache)
    return cache


@pytest.fixture(scope="session")
def digits(raw: Path) -> ImageSet:
    """The 60,000 training images."""
    return MNIST.load(raw, "train")


@pytest.fixture(scope="session")
def test_digits(raw: Path) -> ImageSet:
    """The 10,000 test images."""
    return MNIST.load(raw, "test")


@pytest.fixture(scope="session")
def coloured(test_digits: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Training and test images of another data set: zeros, ones and twos of 16 × 16 pixels, each in a colour."""
    chosen = np.flatnonzero(test_digits.labels < 3)
    tints = np.random.default_rng(1).uniform(0.4, 1, (len(chosen), 3, 1, 1))
    images = (resize(test_digits.images[chosen], 16) * tints).astype(np.uint8)
    names = ("zero", "one", "two")
    every = ImageSet(images, test_digits.labels[chosen], np.arange(len(chosen)), 3, "coloured", names)
    train, test = (every.take(part) for part in np.split(np.arange(len(chosen)), [2000]))
    return train, test


@pytest.fixture
def coloured_source(coloured: tuple[ImageSet, ImageSet]) -> Iterator[str]:
    """The name of that data set, which the settings accept meanwhile."""

    class Coloured:
        def fetch(self, place: str, _: Path) -> str:
            return place

        def load(self, _: Path, part: str) -> ImageSet:
            return coloured[part == "test"]

    list(SOURCES)
    SOURCES.register("coloured")(Coloured())
    yield "coloured"
    del SOURCES._entries["coloured"]


@pytest.fixture(scope="session")
def parameters() -> Callable[..., dict[str, Any]]:
    """The tests' own copy of params.yaml as nested dictionaries, changed by mappings of dotted keys."""
    defaults = YAML(typ="safe", pure=True).load(SETTINGS)

    def change(*changes: dict[str, Any]) -> dict[str, Any]:
        values = copy.deepcopy(defaults)
        for key, value in {key: value for part in changes for key, value in part.items()}.items():
            *sections, last = key.split(".")
            place = values
            for section in sections:
                place = place[section]
            place[last] = value
        return values

    return change


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers on this machine are asked directly; urllib would keep the proxies of its first use in a process."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tests' own params.yaml, in which this process is."""
    shutil.copy(SETTINGS, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def configure(parameters: Callable[..., dict[str, Any]]) -> Callable[..., Config]:
    """The typed settings of params.yaml, changed by mappings of dotted keys."""
    return lambda *changes: parse_config(parameters(*changes), "params.yaml")


@pytest.fixture(scope="session")
def tiny(configure: Callable[..., Config]) -> Callable[..., Config]:
    """Settings of a run of about a second, changed by mappings of dotted keys."""
    return lambda *changes: configure(TINY, *changes)


@pytest.fixture(scope="session")
def cpu() -> Runtime:
    """Plain float32 on the processor."""
    return Runtime(torch.device("cpu"), torch.float32, False)


@pytest.fixture(scope="session")
def by_classifier(test_digits: ImageSet) -> Features:
    """Features [10000, 128] and probabilities [10000, 10] of the test images, by the shipped classifier."""
    return MnistExtractor(torch.device("cpu")).features(test_digits.images, "test")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator of the same numbers in every test."""
    return np.random.default_rng(7)
