"""`python -m ddpm evaluate` as it is typed: images in every form, the table, the JSON."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from clones import run_in

from ddpm.data.image_set import ImageSet
from ddpm.evaluation.frechet import fit_gaussian, frechet_distance
from ddpm.evaluation.reference import Reference
from ddpm.utils.images import write_rgb_pngs

COUNT = 300


@pytest.mark.parametrize("kind", ["folder", "npz", "idx"])
def test_images_in_any_form_give_the_same_numbers(
    root: Path,
    raw: Path,
    features: Path,
    test_digits: ImageSet,
    full: Reference,
    test_nearest: np.ndarray,
    tmp_path: Path,
    kind: str,
):
    images, labels = test_digits.images[:COUNT], test_digits.labels[:COUNT]
    path = tmp_path / {"folder": "images", "npz": "images.npz", "idx": "images-idx3-ubyte"}[kind]
    if kind == "folder":
        path.mkdir()
        write_rgb_pngs(path, images, 1, COUNT)
    elif kind == "npz":
        # As another project would save them: floating point in [-1, 1], channels last.
        np.savez(path, images=(images.transpose(0, 2, 3, 1) / 127.5 - 1).astype(np.float32))
    else:
        path.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, COUNT, *images.shape[2:]) + images.tobytes())
    (tmp_path / "labels.csv").write_text("label\n" + "\n".join(map(str, labels)))
    written = tmp_path / "numbers.json"
    command = (sys.executable, "-m", "ddpm", "evaluate", str(path), "--reference", str(raw))
    known = ("--features", str(features), "--labels", str(tmp_path / "labels.csv"), "--extractors", "mnist")
    measured = (features / "pixels.npz").stat().st_mtime_ns
    output = run_in(root, *command, *known, "--bootstrap", "20", "--json", str(written))
    assert (features / "pixels.npz").stat().st_mtime_ns == measured
    numbers = json.loads(written.read_text())
    assert numbers["images"] == COUNT
    accuracy = (full.test_probabilities[:COUNT].argmax(1) == labels).mean()
    assert numbers["label_accuracy"] == pytest.approx(accuracy, rel=1e-5)
    assert numbers["nearest_pixel"] == pytest.approx(test_nearest[:COUNT].mean(), rel=1e-5)
    assert numbers["fd_mnist_low"] < numbers["fd_mnist"] < numbers["fd_mnist_high"]
    expected = frechet_distance(fit_gaussian(full.train), fit_gaussian(full.test[:COUNT]))
    assert numbers["fd_mnist"] == pytest.approx(expected, rel=1e-4)
    assert numbers["protocol"]["mnist"]["weights_sha256"] == full.weights_sha256
    assert "inception" not in numbers["protocol"]
    (row,) = (line.split() for line in output.splitlines() if line.startswith("fd_mnist "))
    assert float(row[1]) == numbers["fd_mnist"]
