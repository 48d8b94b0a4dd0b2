"""The training stage, started by torchrun in several processes: the outputs of one process alone."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from clones import TINY, run_in
from ruamel.yaml import YAML

from ddpm.config import Config
from ddpm.data.image_set import ImageSet, write_image_set
from ddpm.utils.files import sha256


def test_torchrun_trains_to_the_bits_of_one_process(
    root: Path, tmp_path: Path, digits: ImageSet, configure: Callable[..., Config]
):
    config = configure(
        TINY | {"train.epochs": 2.0, "train.shards": 4, "runtime.device": "cpu", "runtime.compile": "off"}
    )
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    found = []
    for name, python in (("alone", (sys.executable,)), ("together", launcher)):
        folder = tmp_path / name
        write_image_set(folder / "data/split/train.npz", digits.take(np.arange(500)))
        write_image_set(folder / "data/split/validation.npz", digits.take(np.arange(2000, 2100)))
        YAML().dump(config.model_dump(mode="json"), folder / "params.yaml")
        said = run_in(folder, *python, "-m", "stages.train", PYTHONPATH=str(root), DDPM_CKPT_DIR="")
        assert said.count("training on") == 1
        shutil.rmtree(folder / ".ckpt")
        model = folder / "data/model"
        found.append({str(path.relative_to(model)): sha256(path) for path in model.rglob("*") if path.is_file()})
    assert found[0] == found[1]
    assert len(found[0]) == 5
