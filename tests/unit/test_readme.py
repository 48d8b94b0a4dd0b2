"""The Python example of the README runs as it stands."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.config import Config
from ddpm.data.image_set import ImageSpec
from ddpm.models.build import build_network
from ddpm.models.checkpoint import Checkpoint, save_checkpoint
from ddpm.models.conditioning import Conditioning


@pytest.fixture
def example(root: Path) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def test_the_example_samples_from_the_checkpoint(example: str, tiny: Callable[..., Config], workspace: Path):
    config, spec = tiny(), ImageSpec(size=28, channels=1, classes=10)
    weights = {name: build_network(config.model, spec).state_dict() for name in ("ema", "guide")}
    checkpoint = Checkpoint(config.model, config.diffusion, spec, Conditioning.by_class([0.1] * 10), {}, weights)
    path = workspace / "data/model/best.safetensors"
    path.parent.mkdir(parents=True)
    save_checkpoint(path, checkpoint)
    names: dict[str, object] = {}
    exec(example, names)
    images = np.asarray(names["images"])
    assert images.shape == (16, 1, 28, 28)
    assert images.dtype == np.uint8
    assert len(np.unique(images)) > 2
    with Image.open(workspace / "threes.png") as picture:
        assert picture.size == (4 * 30 - 2, 4 * 30 - 2)


def test_the_example_is_short(example: str):
    assert len(example.splitlines()) <= 15
