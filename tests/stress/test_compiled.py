"""Compiled training and sampling, as the default's are: the same bits for any number of processes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.config import Config
from ddpm.data.image_set import ImageSet
from ddpm.sampling.batches import sample_replicates
from ddpm.sampling.generator import restore_generator
from ddpm.training.launch import train_together
from ddpm.training.loop import train
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.files import sha256
from ddpm.utils.processes import process_pool
from ddpm.utils.runtime import Runtime, fast_precision

pytestmark = pytest.mark.long

SETTINGS = {
    "model.dropout": 0.1,
    "train.shards": 2,
    "train.preview_every": 10,
    "generate.num_images": 24,
    "generate.trajectories": 4,
}


def test_compiled_training_and_sampling_have_the_same_bits_for_any_number_of_processes(
    digits: ImageSet, tiny: Callable[..., Config], cpu: Runtime, tmp_path: Path
):
    config, runtime = tiny(SETTINGS), replace(cpu, compiled=True, precision=fast_precision(cpu.device))
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    found, images = {}, {}
    for processes, compiled in ((1, True), (2, True), (1, False)):
        folder, own = tmp_path / f"{processes} {compiled}", replace(runtime, compiled=compiled)
        with RunFolder(folder, folder / "kept") as place:
            work = partial(train, recipe, digits.take(np.arange(512)), digits.take(np.arange(1000, 1064)))
            train_together(processes, partial(work, save_every_seconds=1e9), own, place)
        found[processes, compiled] = sha256(folder / "last.safetensors")
        restored = (tmp_path / "1 True/last.safetensors", config.generate, config.seed, own)
        with process_pool(processes, restore_generator, *restored) as pool:
            generator = restore_generator(*restored)
            (images[processes, compiled],) = sample_replicates(generator, 1, 8, folder / "images", pool).values()
    assert found[1, True] == found[2, True]
    assert np.array_equal(images[1, True], images[2, True])
    assert images[1, True].std() > 5
    # What was compiled computes in another order: were it not compiled, these would be equal.
    assert found[1, False] != found[1, True]
    torch.compiler.reset()
