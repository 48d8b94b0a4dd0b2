import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import stages
from ddpm.config import Config
from ddpm.data.sources.mnist import FILES
from ddpm.data.split import read_image_set
from ddpm.models.checkpoint import Checkpoint, build_network, save_checkpoint
from ddpm.utils.resume import Rescue

# Every mistake is found within seconds; minutes would mean that the work was done first.
TIMEOUT = 20


class Place:
    """A folder that stages run in, and how they end there."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        shutil.copy(root / "params.yaml", folder)

    def set(self, key: str, text: str) -> None:
        """Write another value behind a key of params.yaml, by its line."""
        path = self.folder / "params.yaml"
        content, count = re.subn(rf"(?m)^(\s*{key}:)\s*\S+", rf"\1 {text}", path.read_text(), count=1)
        assert count == 1
        path.write_text(content)

    def run(self, stage: str) -> subprocess.CompletedProcess[str]:
        """Run a stage as dvc.yaml does."""
        environment = os.environ | {"PYTHONPATH": str(self.root), "TORCH_HOME": str(self.folder / "torch")}
        for name in ("http_proxy", "https_proxy"):
            environment[name] = "http://127.0.0.1:9"
        command = [sys.executable, "-m", f"stages.{stage}"]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT
        )

    def complaint(self, stage: str) -> str:
        """The one line that a stage that must fail ends with, beside its progress bars."""
        ended = self.run(stage)
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr
        lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, ended.stderr
        assert ended.stderr.splitlines()[-1] == lines[0]
        return lines[0]


@pytest.fixture
def place(tmp_path: Path, root: Path) -> Place:
    return Place(tmp_path, root)


@pytest.fixture
def place_with_digits(place: Place, raw: Path) -> Place:
    (place.folder / "data").mkdir()
    (place.folder / "data" / "raw").symlink_to(raw)
    return place


def test_the_split_stage_writes_three_sets(place_with_digits: Place):
    ended = place_with_digits.run("split")
    assert ended.returncode == 0, ended.stderr
    sets = {
        name: read_image_set(place_with_digits.folder / f"data/split/{name}.npz")
        for name in ("train", "validation", "test")
    }
    assert {name: len(part) for name, part in sets.items()} == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert not np.intersect1d(sets["train"].indices, sets["validation"].indices).size


def test_mistakes_in_the_parameters_end_a_stage(place: Place):
    for key, text in (("train_fraction", "1.5"), ("steps", "-25")):
        place.set(key, text)
    path = place.folder / "params.yaml"
    path.write_text(path.read_text() + "\nsurplus: 1\n")
    complaint = place.complaint("split")
    assert complaint.startswith("error: params.yaml: ")
    for words in ("split.train_fraction = 1.5", "generate.steps = -25", "unknown key surplus"):
        assert words in complaint


def test_missing_digits_end_the_split(place: Place):
    complaint = place.complaint("split")
    assert "data/raw/train-images-idx3-ubyte is missing" in complaint
    assert "dvc repro" in complaint


def test_damaged_digits_end_the_split(place: Place, raw: Path):
    folder = place.folder / "data" / "raw"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).symlink_to(raw / name)
    labels = folder / "train-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[4711] ^= 1
    labels.unlink()
    labels.write_bytes(content)
    assert "data/raw/train-labels-idx1-ubyte is not the original file" in place.complaint("split")
    assert not (place.folder / "data" / "split").exists()


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        ("train and test exchanged", "train-images-idx3-ubyte"),
        ("images and labels exchanged", "train-images-idx3-ubyte"),
        ("cut", "t10k-images-idx3-ubyte"),
        ("empty", "t10k-images-idx3-ubyte"),
    ],
)
def test_exchanged_or_cut_digits_end_the_split_and_the_fetch(place: Place, raw: Path, harm: str, named: str):
    folder = place.folder / "data" / "raw"
    folder.mkdir(parents=True)
    twins = {
        "train and test exchanged": ("train", "t10k"),
        "images and labels exchanged": ("images-idx3", "labels-idx1"),
    }
    one, other = twins.get(harm, ("\0", "\0"))
    for name in FILES:
        (folder / name).symlink_to(raw / (name.replace(one, other) if one in name else name.replace(other, one)))
    if harm in ("cut", "empty"):
        (folder / named).unlink()
        content = (raw / named).read_bytes()
        (folder / named).write_bytes(content[: len(content) // 2] if harm == "cut" else b"")
    assert f"data/raw/{named} is not the original file" in place.complaint("split")
    assert not (place.folder / "data" / "split").exists()
    given = place.folder / "given"
    folder.rename(given)
    place.set("source", "given")
    assert f"{named} has SHA-256" in place.complaint("fetch_mnist")
    assert not (folder / named).exists()


def test_a_folder_that_cannot_be_made_ends_the_split(place_with_digits: Place):
    (place_with_digits.folder / "data" / "split").write_text("a file in the way")
    assert "data/split" in place_with_digits.complaint("split")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "data/model/best.safetensors is missing"),
        ("other architecture", "data/model/best.safetensors holds weights of another architecture"),
    ],
)
def test_a_checkpoint_that_does_not_serve_ends_the_generation(
    place: Place, tiny: Callable[..., Config], kind: str, words: str
):
    path = place.folder / "data" / "model" / "best.safetensors"
    path.parent.mkdir(parents=True)
    if kind == "other architecture":
        config = tiny()
        weights = build_network(tiny({"model.base_channels": 16}).model).state_dict()
        save_checkpoint(path, Checkpoint(config.model, config.diffusion, 28, [0.1] * 10, {}, {"ema": weights}))
    assert words in place.complaint("generate")
    assert not (place.folder / "data" / "generated").exists()


class Malice:
    """What a pickle can do to the one who loads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("kind", ["flipped weight", "flipped setting", "cut", "pickle", "empty"])
def test_a_damaged_checkpoint_ends_the_generation_and_executes_nothing(
    place: Place, tiny: Callable[..., Config], kind: str
):
    path = place.folder / "data" / "model" / "best.safetensors"
    path.parent.mkdir(parents=True)
    mark = place.folder / "executed"
    config = tiny()
    weights = build_network(config.model).state_dict()
    save_checkpoint(path, Checkpoint(config.model, config.diffusion, 28, [0.1] * 10, {}, {"ema": weights}))
    content = path.read_bytes()
    torch.save({"ema": Malice(mark)}, place.folder / "pickle")
    harmed = {
        "flipped weight": content[:-1] + bytes([content[-1] ^ 1]),
        "flipped setting": content.replace(b"cosine", b"linear", 1),
        "cut": content[:-1000],
        "pickle": (place.folder / "pickle").read_bytes(),
        "empty": b"",
    }
    path.write_bytes(harmed[kind])
    assert "data/model/best.safetensors is damaged" in place.complaint("generate")
    assert not mark.exists()
    assert not (place.folder / "data" / "generated").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_end_the_generation(place: Place, tiny: Callable[..., Config], value: float):
    path = place.folder / "data" / "model" / "best.safetensors"
    path.parent.mkdir(parents=True)
    config = tiny()
    weights = build_network(config.model).state_dict()
    weights["norm_out.bias"][0] = value
    save_checkpoint(path, Checkpoint(config.model, config.diffusion, 28, [0.1] * 10, {}, {"ema": weights}))
    assert "data/model/best.safetensors holds weights that are not finite numbers" in place.complaint("generate")


def test_more_steps_than_the_checkpoint_was_trained_with_end_the_generation(place: Place, tiny: Callable[..., Config]):
    path = place.folder / "data" / "model" / "best.safetensors"
    path.parent.mkdir(parents=True)
    config = tiny({"diffusion.timesteps": 10, "generate.steps": 5})
    weights = build_network(config.model).state_dict()
    save_checkpoint(path, Checkpoint(config.model, config.diffusion, 28, [0.1] * 10, {}, {"ema": weights}))
    place.set("num_images", "2")
    place.set("trajectories", "2")
    assert "generate.steps" in place.complaint("generate")


def test_a_damaged_result_ends_the_summary(place: Place):
    for name in ("model/results.json", "cost/train.json", "cost/generate.json"):
        path = place.folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"train_loss": 0.1')
    assert "data/model/results.json" in place.complaint("summary")


def test_inception_that_is_required_and_not_there_ends_the_reference_before_it_is_computed(place_with_digits: Place):
    place_with_digits.set("inception", "required")
    place_with_digits.set("inception_weights", "weights-00000000.pth")
    complaint = place_with_digits.complaint("reference")
    assert "weights-00000000.pth" in complaint
    assert "fid.inception" in complaint


def test_a_disk_that_is_full_is_called_so(root: Path, monkeypatch: pytest.MonkeyPatch):
    def fill(_: Config) -> None:
        Path("/dev/full").write_text("x")

    monkeypatch.chdir(root)
    with pytest.raises(SystemExit, match=r"^error: .*the disk is full.*free some space") as caught:
        stages.run(fill)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_without_rights_is_called_so(root: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    def refuse(_: Config) -> None:
        raise OSError(number, os.strerror(number), "data/model")

    monkeypatch.chdir(root)
    with pytest.raises(SystemExit, match=r"^error: data/model cannot be used .*right to read and write"):
        stages.run(refuse)


def test_a_finished_run_is_kept_until_dvc_begins_a_stage_that_reads_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((root / "params.yaml").read_text())
    monkeypatch.setenv("DDPM_CKPT_DIR", "kept")
    runs = {"train": stages.finished_facts("train"), "generate": stages.finished_facts("generate")}
    runs["elsewhere"] = {"stage": "train", "workspace": "/elsewhere"}
    for name, facts in runs.items():
        with Rescue(tmp_path / "kept" / name) as rescue:
            rescue.finish(facts)

    def kept_after(stage: str) -> list[str]:
        monkeypatch.setenv("DVC_STAGE", stage)
        stages.run(lambda _: None)
        return sorted(path.name for path in (tmp_path / "kept").iterdir())

    for stage in ("split", "reference", "train", "a stage of their own"):
        assert kept_after(stage) == ["elsewhere", "generate", "train"]
    assert kept_after("generate") == ["elsewhere", "generate"]
    assert kept_after("dvc.yaml:fid") == ["elsewhere"]


@pytest.mark.parametrize("lack", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_memory_that_does_not_suffice_is_called_so(root: Path, monkeypatch: pytest.MonkeyPatch, lack: Exception):
    def ask(_: Config) -> None:
        raise lack

    def take(_: Config) -> None:
        torch.empty(1 << 50, dtype=torch.uint8)

    monkeypatch.chdir(root)
    for greedy in (ask, take):
        with pytest.raises(SystemExit, match=r"^error: the memory does not suffice: lower model\.base_channels"):
            stages.run(greedy)


def test_an_error_that_only_speaks_of_memory_keeps_its_traceback(root: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: Config) -> None:
        torch.zeros(1).expand(2).add_(1)  # two elements in one place

    monkeypatch.chdir(root)
    with pytest.raises(RuntimeError, match="memory"):
        stages.run(fail)


def test_a_mistake_of_the_program_keeps_its_traceback(root: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: Config) -> None:
        torch.zeros(2).view(3)

    monkeypatch.chdir(root)
    with pytest.raises(RuntimeError):
        stages.run(fail)
