"""The mistakes of `python -m ddpm evaluate`; what it measures: tests/stress/test_evaluation_of_files.py."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from ddpm.__main__ import main
from ddpm.commands import evaluate as command_module
from ddpm.commands.evaluate import known_labels
from ddpm.data.image_set import ImageSet, ImageSpec
from ddpm.data.load import GivenLabels
from ddpm.evaluation.train_classifier import train_classifier
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import sha256
from ddpm.utils.images import write_rgb_pngs
from ddpm.utils.runtime import fast_precision


def nothing(path: Path) -> None:
    """No file."""


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["ddpm", "evaluate", *map(str, arguments)])
    main()


def test_another_data_set_is_measured_by_a_classifier_that_is_trained_once(
    coloured_source: str,
    coloured: tuple[ImageSet, ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    pictures, table, features, written = (tmp_path / name for name in ("images", "labels.csv", "real", "found.json"))
    for folder in (pictures, features):
        folder.mkdir()
    test = coloured[1].take(np.arange(300))
    write_rgb_pngs(pictures, test.images, 1, len(test))
    table.write_text("label\n" + "\n".join(map(str, test.labels)))
    options = ("--features", features, "--classifier-epochs", 2, "--bootstrap", 5, "--json", written)
    command = (pictures, "--reference", tmp_path, "--data", coloured_source, "--labels", table, *options)
    run(monkeypatch, *command)
    numbers, printed = json.loads(written.read_text()), capsys.readouterr().out
    assert numbers["label_accuracy"] > 0.9
    assert numbers["fd_coloured_over_floor"] < 10
    assert numbers["protocol"]["labels"] == "class"
    (row,) = (line.split() for line in printed.splitlines() if line.startswith("fd_coloured "))
    assert float(row[1]) == numbers["fd_coloured"]
    classifier = features / "classifier.safetensors"
    assert numbers["protocol"]["coloured"]["weights_sha256"] == sha256(classifier)

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(command_module, "train_classifier", refuse)
    run(monkeypatch, *command)
    assert json.loads(written.read_text()) == numbers
    np.savez(array := tmp_path / "images.npz", images=test.images, labels=test.labels)
    run(monkeypatch, array, "--reference", tmp_path, "--data", coloured_source, *options)
    assert json.loads(written.read_text()) == numbers
    clusters = np.arange(300) % 5
    rows = "\n".join(f"{label},{cluster}" for label, cluster in zip(test.labels, clusters, strict=True))
    table.write_text(f"label,cluster\n{rows}")
    run(monkeypatch, *command)
    with_clusters = json.loads(written.read_text())
    assert with_clusters["protocol"]["labels"] == "class and cluster"
    assert with_clusters["fd_coloured"] == numbers["fd_coloured"]
    assert with_clusters["fd_coloured_low"] != numbers["fd_coloured_low"]
    np.savez(array, images=test.images, labels=test.labels, clusters=clusters)
    run(monkeypatch, array, "--reference", tmp_path, "--data", coloured_source, *options)
    assert json.loads(written.read_text()) == with_clusters
    run(monkeypatch, *command, "--extractors", "--swd", "on")
    by_patches = json.loads(written.read_text())
    assert by_patches["swd_16"] == by_patches["swd"] < 3 * by_patches["swd_floor"]
    assert not [key for key in by_patches if key.startswith("fd_")]


def test_a_classifier_kept_of_other_images_is_trained_again(
    coloured_source: str, coloured: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Trained(Exception):
        pass

    def train(*_: object) -> None:
        raise Trained

    train_set, test_set = coloured
    np.savez(pictures := tmp_path / "images.npz", images=test_set.images[:200])
    (features := tmp_path / "real").mkdir()
    kept = features / "classifier.safetensors"
    changed = train_set.take(np.arange(len(train_set))[::-1])
    cpu = torch.device("cpu")
    recipe = 1, cpu, fast_precision(cpu)
    train_classifier(kept, changed, test_set, *recipe)
    monkeypatch.setattr(command_module, "train_classifier", train)
    command = (pictures, "--reference", tmp_path, "--data", coloured_source, "--bootstrap", 0, "--features", features)
    command += ("--classifier-epochs", 1)
    with pytest.raises(Trained):
        run(monkeypatch, *command)
    run(monkeypatch, *command, "--classifier", kept)  # who names a file wants that one
    train_classifier(kept, train_set, test_set, *recipe)
    run(monkeypatch, *command)
    with pytest.raises(Trained):
        run(monkeypatch, *command[:-1], 2)


def test_a_classifier_of_images_without_labels_is_refused(
    digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = replace(digits.take(np.arange(300)), classes=0, class_names=())
    monkeypatch.setattr(type(command_module.SOURCES["folder"]), "load", lambda *_: plain)
    np.savez(path := tmp_path / "images.npz", images=plain.images[:100])  # which are too few, too
    with pytest.raises(SystemExit, match=r"^error: --extractors names classifier, but the data set has no labels"):
        run(monkeypatch, path, "--reference", tmp_path, "--data", "folder", "--extractors", "classifier")


def test_labels_that_are_no_classes_of_the_real_images_are_refused_and_mere_clusters_where_these_have_no_classes(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    np.savez(path := tmp_path / "images.npz", images=np.eye(28, dtype=np.uint8)[None].repeat(200, 0))
    (table := tmp_path / "labels.csv").write_text("label\n" + "3\n" * 199 + "10\n")
    reason = r"^error: 10 is given as the label of an image, but mnist has the classes 0 to 9: correct the labels, or "
    with pytest.raises(SystemExit, match=reason):
        run(monkeypatch, path, "--reference", raw, "--labels", table)
    given = GivenLabels(np.array([3, 10, 3]), np.array([0, 0, 1]))
    found = known_labels(given, ImageSpec(28, 1, 0, "folder"))
    assert str(found) == "cluster"
    assert found.conditioning is not None
    assert len(set(found.conditioning)) == 3
    assert known_labels(given, ImageSpec(28, 1, 11, "folder")) is given
    with pytest.raises(DdpmError, match="-1 is given as the label"):
        known_labels(GivenLabels(np.array([3, -1])), ImageSpec(28, 1, 11, "folder"))


def test_it_measures_in_true_float32(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
):
    def look(*_: object) -> None:
        raise DdpmError(f"{torch.get_float32_matmul_precision()}, {torch.backends.cudnn.allow_tf32}")

    np.savez(path := tmp_path / "images.npz", images=rng.integers(256, size=(200, 28, 28), dtype=np.uint8))
    monkeypatch.setattr(command_module, "open_evaluator", look)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    with pytest.raises(SystemExit, match=r"^error: highest, False$"):
        run(monkeypatch, path, "--reference", raw)


def test_no_more_processes_than_memory_holds_are_started(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
):
    def look(*given: object) -> None:
        raise DdpmError(f"processes: {given[-1]}")

    np.savez(path := tmp_path / "images.npz", images=rng.integers(256, size=(200, 28, 28), dtype=np.uint8))
    monkeypatch.setattr(command_module, "open_evaluator", look)
    monkeypatch.setattr("ddpm.utils.runtime.worker_count", lambda _: 6)
    for gibibytes, processes in ((5, 3), (100, 6)):
        monkeypatch.setattr("psutil.virtual_memory", lambda size=gibibytes: Mock(total=size * 2**30))
        with pytest.raises(SystemExit, match=rf"^error: processes: {processes}$"):
            run(monkeypatch, path, "--reference", raw)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (nothing, "is missing"),
        (lambda path: np.savez(path, images=np.zeros((5, 28, 28), np.uint8)), "blank"),
        (lambda path: np.savez(path, images=np.full((5, 28, 28), np.nan, np.float32)), "NaN"),
        (
            lambda path: np.savez(path, images=np.eye(28, dtype=np.uint8)[None], labels=np.zeros(2)),
            "labels that are not",
        ),
        (
            lambda path: np.savez(path, images=np.eye(28)[None]),
            "the number of images, 1, is too few to be measured by the 128 features of mnist",
        ),
    ],
    ids=["missing", "blank", "NaN", "labels", "few"],
)
def test_a_mistake_is_one_sentence(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], reason: str
):
    path = tmp_path / "images.npz"
    write(path)
    with pytest.raises(SystemExit) as ending:
        run(monkeypatch, path, "--reference", raw)
    message = str(ending.value.code)
    assert message.startswith("error: ")
    assert len(message.splitlines()) == 1
    assert reason in message


def test_to_measure_by_nothing_is_refused_at_once(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SystemExit, match=r"names no network, and --swd is off: nothing would be measured\.$"):
        run(monkeypatch, "none.npz", "--reference", "none", "--swd", "off", "--extractors")


def test_a_device_that_is_not_there_is_named(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    np.savez(tmp_path / "images.npz", images=np.zeros((200, 28, 28), np.uint8) + np.eye(28, dtype=np.uint8))
    with pytest.raises(SystemExit, match=r"^error: --device cuda:99: this machine has \d+ CUDA devices; choose auto"):
        run(monkeypatch, tmp_path / "images.npz", "--reference", raw, "--device", "cuda:99")


@pytest.mark.parametrize(("option", "value"), [("classifier-epochs", 0), ("bootstrap", -1), ("seed", -1)])
def test_a_number_that_is_too_small_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, option: str, value: int):
    reason = rf"^error: --{option} {value}: a whole number from {value + 1} on is wanted\.$"
    with pytest.raises(SystemExit, match=reason):
        run(monkeypatch, "none.npz", "--reference", "none", f"--{option}={value}")
