"""Images of a user's own through all stages: several sizes and channels, with class names and without labels."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from clones import SMALL, change
from PIL import Image
from sklearn.datasets import load_digits

from ddpm.data.image_set import ImageSpec, read_image_set
from ddpm.models.checkpoint import load_checkpoint
from ddpm.utils.images import read_pngs
from stages.runner import run

AUTO = {"model.patch_size": "auto", "model.channel_multipliers": "auto", "model.clusters": "auto"}
SETTINGS = (
    SMALL
    | AUTO
    | {
        "train.epochs": 1,
        "data.name": "folder",
        "data.test_fraction": 1 / 3,
        "fid.extractors": "auto",
        "fid.classifier_epochs": 4,
        "runtime.compile": "off",
    }
)
NAMES = ("disc", "ring", "square")


def shape(name: str, size: int, colour: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A disc, a ring or a square somewhere on black: uint8 [size, size, c]."""
    y, x = np.mgrid[:size, :size] / size
    across, down, radius = *rng.uniform(0.35, 0.65, 2), rng.uniform(0.2, 0.3)
    distance = np.hypot(x - across, y - down)
    inside = {
        "disc": distance < radius,
        "ring": np.abs(distance - radius) < 0.07,
        "square": np.maximum(abs(x - across), abs(y - down)) < radius,
    }[name]
    return (inside[:, :, None] * np.array(colour)).astype(np.uint8)


@pytest.fixture
def make(tmp_path: Path, rng: np.random.Generator) -> Callable[..., Path]:
    """A folder of 540 images of three shapes, in a folder for each or in one."""

    def images(size: int, channels: int, labelled: bool) -> Path:
        folder = tmp_path / "own"
        for number in range(540):
            name = NAMES[number % 3]
            place = folder / name if labelled else folder
            place.mkdir(parents=True, exist_ok=True)
            pixels = shape(name, size, tuple(rng.integers(80, 256, channels)), rng)
            Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(place / f"{number:03}.png")
        return folder

    return images


def small_digits(folder: Path) -> Path:
    """Of scikit-learn's digits, 8 × 8 pixels, sixty a class, in a folder for each."""
    images, labels = load_digits(return_X_y=True)
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
        for number, pixels in enumerate(images[labels == digit][:60]):
            grey = (pixels.reshape(8, 8) * 255 / 16).astype(np.uint8)
            Image.fromarray(grey).save(folder / str(digit) / f"{number:02}.png")
    return folder


def run_stages(folder: Path, settings: dict[str, Any], stages: list[str]) -> None:
    change(folder, settings)
    for stage in stages:
        module = import_module(f"stages.{stage}")
        run(module.train_stage if stage == "train" else getattr(module, stage))


@pytest.mark.parametrize(
    ("size", "channels", "labelled", "resolutions"),
    [(32, 3, True, (2, (1, 2))), (64, 3, False, (4, (1, 2))), (8, 1, True, (1, (1, 2)))],
    ids=["32 × 32 in colour", "64 × 64 in colour without labels", "8 × 8 digits"],
)
def test_images_of_any_size_go_through_all_stages(
    make: Callable[..., Path],
    workspace: Path,
    size: int,
    channels: int,
    labelled: bool,
    resolutions: tuple[int, tuple[int, ...]],
):
    own = small_digits(workspace / "digits") if size == 8 else make(size, channels, labelled)
    names = tuple("0123456789") if size == 8 else NAMES if labelled else ()
    settings = SETTINGS | {"data.path": str(own), "data.image_size": size}
    before_evaluation = ["fetch_mnist", "split", "train", "generate", "likelihood"]
    evaluation = ["classifier", "reference", "fid", "visualize", "export", "summary", "report"]
    run_stages(workspace, settings, [*before_evaluation, *evaluation])
    spec = ImageSpec(size, channels, len(names), "folder", names)
    parts = [read_image_set(Path(f"data/split/{part}.npz")) for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == ([360, 40, 200] if size == 8 else [324, 36, 180])
    assert [part.spec for part in parts] == [spec] * 3
    checkpoint = load_checkpoint(Path("data/model/best.safetensors"))
    assert checkpoint.spec == spec
    assert (checkpoint.model.patch_size, checkpoint.model.channel_multipliers) == resolutions
    assert checkpoint.conditioning.classes == spec.classes
    generated = read_pngs(Path("data/generated"), 1)
    assert generated.shape[0] == 160
    assert generated.shape[2:] == (size, size)
    labels = pd.read_csv("data/labels.csv")
    assert list(labels) == ["image", *["label"][:labelled], *["cluster"][: checkpoint.conditioning.clusters - 1]]
    assert labels["image"].tolist() == list(range(1, 161))
    for name in ("closest_pairs", "real_and_generated", "samples", "reverse_process", "loss"):
        with Image.open(f"data/figures/{name}.png") as figure:
            assert figure.mode == ("L" if channels == 1 and name != "loss" else figure.mode)
            assert figure.mode.startswith("RGB") or channels == 1
    assert json.loads(Path("data/evaluation/likelihood.json").read_text())["likelihood_images"] == 50
    metrics, headline = (json.loads(Path(f"metrics/{name}.json").read_text()) for name in ("fid", "headline"))
    distance = "fd_folder" if labelled else "swd"
    assert metrics[distance] == headline[distance] > metrics[f"{distance}_real"] > 0 < metrics[f"{distance}_floor"]
    assert ("label_accuracy" in metrics) == labelled
    assert ("swd" in metrics) != labelled
    assert set(pd.read_csv("metrics/classes.csv", dtype={"label": str})["label"]) == set(names)
    exported = json.loads(Path("data/export/model.json").read_text())["image"]
    assert (exported["size"], exported["channels"], tuple(exported["class_names"])) == (size, channels, names)
    assert Path("data/export/denoise.onnx").stat().st_size


def test_classes_are_chosen_by_name(make: Callable[..., Path], workspace: Path):
    own = make(8, 1, True)
    settings = SETTINGS | {"data.path": str(own), "data.image_size": 8, "generate.replicates": 0}
    run_stages(workspace, settings, ["fetch_mnist", "split", "train"])
    found = []
    for classes in (["square", "ring"], [2, 1], ["square", 1]):
        run_stages(workspace, {"generate.classes": classes}, ["generate"])
        found.append((Path("data/labels.csv").read_text(), read_pngs(Path("data/generated"), 1)))
        assert {line.split(",")[1] for line in found[-1][0].splitlines()[1:]} == {"1", "2"}
    assert found[0][0] == found[1][0] == found[2][0]
    assert np.array_equal(found[0][1], found[1][1])
    for wrong in (["triangle"], [3], ["disc", "triangle"]):
        with pytest.raises(SystemExit) as caught:
            run_stages(workspace, {"generate.classes": wrong}, ["generate"])
        text = f"generate.classes=[{', '.join(map(str, wrong))}]: the network knows the class labels 0 to 2"
        assert str(caught.value.code) == f"error: {text}, called disc, ring, square."


def test_a_size_that_does_not_fit_ends_the_training_with_those_that_do(make: Callable[..., Path], workspace: Path):
    own = make(20, 1, False)
    with pytest.raises(SystemExit) as caught:
        run_stages(
            workspace, SETTINGS | {"data.path": str(own), "data.image_size": 30}, ["fetch_mnist", "split", "train"]
        )
    assert str(caught.value.code).endswith("bring them to 28 or 32 pixels.")
