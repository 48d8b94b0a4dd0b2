import os
import shutil
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from inception_weights import OFFICIAL_NAME, random_weights

from ddpm.data.image_set import ImageSet
from ddpm.evaluation.features import UnavailableExtractor
from ddpm.evaluation.features.inception import (
    InceptionExtractor,
    _open,
    find_weights,
    load_inception,
    open_inception,
)
from ddpm.utils.errors import DdpmError
from ddpm.utils.images import resize, to_rgb, write_rgb_pngs
from ddpm.utils.runtime import Runtime, sharing

CPU = torch.device("cpu")
IMAGES = 12
FEATURES = 2048


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("weights"))


def test_too_few_training_images_for_its_features_leave_it_out(weights: Path):
    cuda = torch.device("cuda")
    with pytest.raises(UnavailableExtractor, match="4097 training images are too few for 2048 features"):
        open_inception(cuda, 4097, "auto", str(weights), FEATURES)


def opened(mode: str, path: Path | None, device: torch.device, images: int = 1000) -> InceptionExtractor:
    return open_inception(device, images, mode, str(path) if path else None, 64)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    """An empty folder of torch's hub."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download ends where nobody listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")


@pytest.fixture(scope="module")
def ours(weights: Path, test_digits: ImageSet) -> np.ndarray:
    """Our features of the first test digits."""
    return InceptionExtractor(weights, FEATURES, CPU).features(test_digits.images[:IMAGES], "test").values


@pytest.mark.parametrize("kind", ["digits", "coloured, 40 × 40"])
def test_statistics_are_those_of_the_pytorch_fid_command(
    weights: Path, test_digits: ImageSet, coloured: tuple[ImageSet, ImageSet], tmp_path: Path, kind: str
):
    images = (test_digits.images if kind == "digits" else resize(coloured[1].images[:IMAGES], 40))[:IMAGES]
    ours = InceptionExtractor(weights, FEATURES, CPU).features(images, "test").values
    folder = tmp_path / "images"
    folder.mkdir()
    write_rgb_pngs(folder, images, 1, IMAGES)
    shown = tmp_path / "home" / "hub" / "checkpoints" / OFFICIAL_NAME
    shown.parent.mkdir(parents=True)
    shown.symlink_to(weights)
    command = [sys.executable, "-m", "pytorch_fid", "--device", "cpu", "--num-workers", "0", "--save-stats"]
    environment = os.environ | {"TORCH_HOME": str(tmp_path / "home")}
    subprocess.run([*command, folder, tmp_path / "stats.npz"], env=environment, check=True, capture_output=True)
    with np.load(tmp_path / "stats.npz") as stats:
        mean, covariance = stats["mu"], stats["sigma"]
    assert ours.shape == (IMAGES, FEATURES)
    assert ours.std(0).mean() > 0.01 * ours.mean(), "the images must differ for the comparison to mean something"
    np.testing.assert_allclose(ours.mean(0), mean, rtol=1e-3, atol=1e-4 * mean.max())
    scale = covariance.max()
    np.testing.assert_allclose(np.cov(ours.astype(np.float64), rowvar=False), covariance, rtol=1e-3, atol=1e-4 * scale)


def test_grey_images_are_rgb_images_of_equal_channels(weights: Path, ours: np.ndarray, test_digits: ImageSet):
    rgb = to_rgb(test_digits.images[2:4])
    found = InceptionExtractor(weights, FEATURES, CPU).features(rgb, "test").values
    np.testing.assert_allclose(found, ours[2:4], rtol=1e-3, atol=1e-4 * ours.max())


def test_features_have_the_same_bits_for_any_number_of_processes(weights: Path, test_digits: ImageSet):
    images = test_digits.images[:101]  # three batches
    alone, shared = (InceptionExtractor(weights, 64, CPU, count).features(images, "test").values for count in (1, 2))
    assert alone.shape == (101, 64)
    assert np.array_equal(alone, shared)


def test_a_batch_that_does_not_fit_into_memory_is_halved(
    weights: Path, ours: np.ndarray, test_digits: ImageSet, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    embed = InceptionExtractor._embed

    def small(extractor: InceptionExtractor, images: np.ndarray) -> np.ndarray:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(images))
        return embed(extractor, images)

    monkeypatch.setattr(InceptionExtractor, "_embed", small)
    extractor = InceptionExtractor(weights, FEATURES, CPU)
    found = extractor.embed(test_digits.images[:7])
    assert sizes == [2, 2, 3]
    np.testing.assert_allclose(found, ours[:7], rtol=1e-3, atol=1e-4 * ours.max())
    monkeypatch.setattr(InceptionExtractor, "_embed", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        extractor.embed(test_digits.images[:7])


def test_cuda_devices_share_the_images_one_process_each(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ddpm.utils.runtime.cuda_devices", lambda: 3)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA card")
    found = {name: sharing(torch.device(name), 8) for name in ("cpu", "cuda", "cuda:1", "mps")}
    assert found == {"cpu": 8, "cuda": 3, "cuda:1": 1, "mps": 1}
    assert sharing(torch.device("cuda"), 2) == 2
    # Each opens the network on a device of its own.
    asked: list[int] = []
    monkeypatch.setattr(
        Runtime, "of_rank", lambda runtime, number: asked.append(number) or replace(runtime, device=CPU)
    )
    monkeypatch.setattr("ddpm.evaluation.features.inception.InceptionExtractor", lambda *given: given)
    assert _open(Path("weights"), 64, torch.device("cuda"), 2) == (Path("weights"), 64, CPU)
    assert asked == [2]


def test_loading_leaves_torchs_hub_folder_and_its_content_alone(weights: Path, hub: Path):
    network = load_inception(weights, FEATURES, CPU)
    assert torch.hub.get_dir() == str(hub.parent)
    assert not hub.exists()
    assert not network.training


def test_a_file_that_is_no_inception_network_is_named(tmp_path: Path):
    path = tmp_path / "other-00000000.pth"
    for content in ({"weight": torch.zeros(3)}, torch.zeros(3)):
        torch.save(content, path)
        with pytest.raises(DdpmError, match=r"other-00000000\.pth does not hold pytorch-fid's Inception weights"):
            load_inception(path, FEATURES, CPU)
    path.write_bytes(b"garbage")
    with pytest.raises(DdpmError, match=r"other-00000000\.pth does not hold"):
        load_inception(path, FEATURES, CPU)


def test_a_file_with_the_hash_of_its_name_is_taken(weights: Path):
    assert find_weights(weights) == weights
    assert opened("required", weights, CPU).dimensions == 64


def test_required_with_too_few_training_images_names_what_helps(weights: Path):
    few = "128 training images are too few for 64 features"
    with pytest.raises(DdpmError, match=rf"{few} of Inception: lower fid\.inception_features, or leave inception out"):
        opened("required", weights, CPU, images=128)
    with pytest.raises(UnavailableExtractor, match=rf"^{few}$"):
        opened("auto", weights, torch.device("cuda"), images=128)


@pytest.mark.parametrize("name", ["random-00000000.pth", "random.pth", "random-123.pth"])
def test_a_file_without_the_hash_of_its_name_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(DdpmError, match=f"{name} does not have the SHA-256"):
        find_weights(tmp_path / name)


def test_a_missing_file_is_named_with_the_fix(tmp_path: Path):
    with pytest.raises(DdpmError, match=r"nowhere\.pth are missing.*fid\.inception_weights"):
        find_weights(tmp_path / "nowhere.pth")


def test_the_hub_folder_is_where_weights_are_looked_for(hub: Path):
    hub.mkdir(parents=True)
    (hub / OFFICIAL_NAME).write_bytes(b"something else")
    with pytest.raises(DdpmError, match=f"{OFFICIAL_NAME} does not have the SHA-256"):
        find_weights(None)


@pytest.mark.usefixtures("no_network")
def test_required_without_weights_and_network_is_one_sentence(hub: Path):
    with pytest.raises(DdpmError, match=r"could not be downloaded.*fid\.inception_weights") as caught:
        opened("required", None, CPU)
    assert "\n" not in str(caught.value)
    assert not list(hub.glob("*"))


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), ConnectionResetError("reset"), TimeoutError("timed out")]
)
def test_a_download_that_breaks_off_is_a_reason_to_skip(hub: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", broken)
    with pytest.raises(UnavailableExtractor, match="Inception weights could not be downloaded"):
        opened("auto", None, torch.device("cuda"))
    assert not list(hub.glob("*"))


def test_auto_is_skipped_without_a_gpu_or_weights_and_says_why(weights: Path, tmp_path: Path):
    with pytest.raises(UnavailableExtractor, match=r"no CUDA device \(fid\.inception: required"):
        opened("auto", weights, CPU)
    with pytest.raises(UnavailableExtractor, match=r"nowhere\.pth are missing"):
        opened("auto", tmp_path / "nowhere.pth", torch.device("cuda"))


def test_copies_of_the_weights_under_the_official_name_need_the_official_hash(weights: Path, hub: Path):
    hub.mkdir(parents=True)
    shutil.copy(weights, hub / OFFICIAL_NAME)
    with pytest.raises(DdpmError, match="does not have the SHA-256"):
        find_weights(None)
