"""The Fréchet distance of Inception features beside `python -m pytorch_fid`, from every layer."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from inception_weights import OFFICIAL_NAME, random_weights

from ddpm.data.image_set import ImageSet
from ddpm.evaluation.features.inception import InceptionExtractor
from ddpm.evaluation.frechet import Gaussian, frechet_distance
from ddpm.utils.files import sha256
from ddpm.utils.images import write_rgb_pngs

CPU = torch.device("cpu")
IMAGES = 12


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("dimensions", [64, 192, 768, 2048])
def test_the_distance_is_the_one_that_the_pytorch_fid_command_prints(
    weights: Path, test_digits: ImageSet, tmp_path: Path, dimensions: int
):
    count = dimensions + 6 if dimensions < 100 else IMAGES
    sets = [test_digits.images[:count], test_digits.images[count : 2 * count] // 2]
    for name, images in zip("ab", sets, strict=True):
        (tmp_path / name).mkdir()
        write_rgb_pngs(tmp_path / name, images, 1, count)
    shown = tmp_path / "home" / "hub" / "checkpoints" / OFFICIAL_NAME
    shown.parent.mkdir(parents=True)
    shown.symlink_to(weights)
    command = [sys.executable, "-m", "pytorch_fid", "--device", "cpu", "--num-workers", "0", "--dims", str(dimensions)]
    environment = os.environ | {"TORCH_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [*command, tmp_path / "a", tmp_path / "b"], env=environment, check=True, capture_output=True, text=True
    )
    expected = float(done.stdout.split()[-1])
    network = InceptionExtractor(weights, dimensions, CPU)
    assert network.weights_sha256 == sha256(weights)
    found = [network.features(images, "test").values.astype(np.float64) for images in sets]
    assert found[0].shape == (count, dimensions)
    gaussians = [Gaussian(part.mean(0), np.cov(part, rowvar=False), count) for part in found]
    assert frechet_distance(*gaussians) == pytest.approx(expected, rel=1e-3)
    halves = np.concatenate([network.features(part, "test").values for part in np.split(sets[0], 2)])
    np.testing.assert_allclose(halves, found[0], rtol=1e-3, atol=1e-4 * found[0].max())
