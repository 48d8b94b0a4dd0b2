"""`python -m ddpm.evaluation` as it is typed: images from anywhere, the table, the JSON, the mistakes."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddpm.data.split import ImageSet
from ddpm.evaluation.frechet import fit_gaussian, frechet_distance
from ddpm.evaluation.reference import MnistReference
from ddpm.utils.images import write_rgb_pngs

COUNT = 300


@pytest.fixture(scope="module")
def features(full: MnistReference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of the real digits, where the command would have left them."""
    path = tmp_path_factory.mktemp("features") / "mnist.npz"
    full.save(path)
    return path


def evaluate(root: Path, raw: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddpm.evaluation", *map(str, options), "--reference", str(raw)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("kind", ["folder", "npz", "idx"])
def test_images_in_any_form_give_the_same_numbers(
    root: Path, raw: Path, features: Path, test_digits: ImageSet, full: MnistReference, tmp_path: Path, kind: str
):
    images = test_digits.images[:COUNT]
    path = tmp_path / {"folder": "images", "npz": "images.npz", "idx": "images-idx3-ubyte"}[kind]
    if kind == "folder":
        path.mkdir()
        write_rgb_pngs(path, images, 1, COUNT)
    elif kind == "npz":
        # As another project would save them: floating point, channels first, in [-1, 1].
        np.savez(path, images=(images[:, None] / 127.5 - 1).astype(np.float32))
    else:
        path.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.tobytes())
    (tmp_path / "labels.csv").write_text("digit\n" + "\n".join(map(str, test_digits.labels[:COUNT])))
    written = tmp_path / "numbers.json"
    options = ("--features", features, "--labels", tmp_path / "labels.csv", "--bootstrap", 20, "--json", written)
    done = evaluate(root, raw, path, *options)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(written.read_text())
    assert numbers["images"] == COUNT
    assert numbers["label_agreement"] == float(
        (full.test_probabilities[:COUNT].argmax(1) == test_digits.labels[:COUNT]).mean()
    )
    assert numbers["nearest_pixel"] == pytest.approx(full.test_nearest_pixel[:COUNT].mean(), rel=1e-9)
    assert numbers["fd_mnist_low"] < numbers["fd_mnist"] < numbers["fd_mnist_high"]
    expected = frechet_distance(fit_gaussian(full.train), fit_gaussian(full.test[:COUNT]))
    assert numbers["fd_mnist"] == pytest.approx(expected, rel=1e-4)
    assert len(numbers["protocol"]["mnist"]["weights_sha256"]) == 64
    assert numbers["protocol"]["inception"] == "skipped: no weights were named"
    (row,) = (line.split() for line in done.stdout.splitlines() if line.startswith("fd_mnist "))
    assert row[1] == f"{numbers['fd_mnist']:.4g}"


def test_mistakes_are_one_sentence(root: Path, raw: Path, features: Path, tmp_path: Path):
    np.savez(tmp_path / "few.npz", images=np.zeros((5, 28, 28), np.uint8))
    np.savez(tmp_path / "nan.npz", images=np.full((5, 28, 28), np.nan, np.float32))
    for name, words in (("nowhere", "is missing"), ("few.npz", "blank"), ("nan.npz", "NaN")):
        done = evaluate(root, raw, tmp_path / name, "--features", features)
        assert done.returncode == 1
        assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()
        assert words in done.stderr
