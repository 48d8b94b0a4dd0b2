"""`python -m ddpm` as it is typed: sample, edit, info; evaluate: test_evaluate_command.py."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from clones import ended
from PIL import Image

import ddpm
from ddpm.__main__ import COMMANDS, main, parse
from ddpm.config import Config
from ddpm.data.image_set import ImageSpec
from ddpm.models.build import build_network
from ddpm.models.checkpoint import Checkpoint, save_checkpoint
from ddpm.models.conditioning import Conditioning
from ddpm.utils.errors import DdpmError
from ddpm.utils.images import read_pngs

Command = Callable[..., str]
FAST = ("--steps", "3", "--autoguidance", "1", "--device", "cpu")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in a folder of its own; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["ddpm", *words])
        main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    """A picture of a bar, 28 × 28 pixels."""
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 12:16] = 255
    Image.fromarray(image).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def test_sampling_through_the_real_command_from_another_folder(root: Path, tmp_path: Path):
    done = ended(tmp_path, sys.executable, "-m", "ddpm", "sample", *FAST, "--count", "6", PYTHONPATH=str(root))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "6 images in digits.png\n"
    with Image.open(tmp_path / "digits.png") as picture:
        assert picture.size == (3 * 30 - 2, 2 * 30 - 2)


def test_images_go_into_a_picture_an_array_or_a_folder(command: Command, tmp_path: Path):
    for out in ("a.png", "a.npz", "folder"):
        assert command("sample", *FAST, "--count", "4", "--classes", "3", "8", "--out", out) == f"4 images in {out}\n"
    array = np.load("a.npz")["images"]
    assert np.array_equal(read_pngs(Path("folder"), 1), array)
    with Image.open("a.png") as picture:
        assert np.array_equal(np.asarray(picture)[:28, :28], array[0, 0])
    command("sample", *FAST, "--count", "2", "--columns", "1", "--scale", "3", "--out", "b.png")
    with Image.open("b.png") as picture:
        assert picture.size == (3 * 28, 3 * 58)


def test_the_three_edits(command: Command, digit: Path):
    original = np.asarray(Image.open(digit))
    command("edit", "inpaint", "digit.png", "--erase", "bottom", "--resamplings", "1", *FAST, "--out", "a.npz")
    painted = np.load("a.npz")["images"]
    assert np.array_equal(painted[0, 0, :14], original[:14])
    Image.fromarray(np.asarray(np.arange(784).reshape(28, 28) < 28, np.uint8) * 255).save("mask.png")
    command("edit", "inpaint", "digit.png", "--mask", "mask.png", "--resamplings", "1", *FAST, "--out", "m.npz")
    assert np.array_equal(np.load("m.npz")["images"][0, 0, 1:], original[1:])
    command("edit", "vary", "digit.png", "--strength", "0", "--count", "2", "--label", "1", *FAST, "--out", "b.npz")
    assert np.array_equal(np.load("b.npz")["images"], np.stack([original[None]] * 2))
    command("edit", "interpolate", "digit.png", "digit.png", "--count", "3", *FAST, "--out", "c.npz")
    command("edit", "interpolate", "digit.png", "digit.png", "--labels", "1", "7", "--strength", "0.5", *FAST)
    assert len(np.load("c.npz")["images"]) == 3
    assert Path("edited.png").is_file()


def test_in_painting_finds_the_class_unless_it_is_told_one(command: Command, digit: Path):
    image, lower = np.asarray(Image.open(digit)), np.arange(28)[:, None].repeat(28, 1) >= 14
    model = ddpm.load(device="cpu")
    given = {"resamplings": 1, "steps": 3, "count": 2}
    inpaint = ("edit", "inpaint", "digit.png", "--erase", "bottom", "--resamplings", "1", "--count", "2", *FAST)
    for options, label in (((), "auto"), (("--label", "4"), 4)):
        command(*inpaint, *options, "--out", "found.npz")
        assert np.array_equal(np.load("found.npz")["images"], model.inpaint(image, lower, labels=label, **given))
    assert not np.array_equal(np.load("found.npz")["images"], model.inpaint(image, lower, labels=None, **given))


def test_an_image_of_another_size_is_resized_and_that_is_said(command: Command, digit: Path):
    Image.open(digit).resize((56, 56)).convert("RGB").save("large.jpg")
    said = command("edit", "vary", "large.jpg", "--strength", "0", "--count", "1", "--out", "a.npz")
    assert said.startswith("large.jpg is 56 × 56 pixels: resized to 28 × 28\n")
    assert np.load("a.npz")["images"].shape == (1, 1, 28, 28)


def test_info_says_what_a_checkpoint_holds(command: Command):
    assert "guidance_interval       [1.0, 5.0]" in command("info", "mnist")
    found = json.loads(command("info", "mnist_unconditional", "--json"))
    assert found["conditioning"] == {"classes": 0, "clusters": 110}
    assert found["network"]["parameters"] == 606_564
    assert found["sampling"]["guidance"] == 1.4


def test_the_present_folder_is_not_overwritten_though_it_is_empty(command: Command, tmp_path: Path):
    assert not list(tmp_path.iterdir())
    for words in (["sample"], ["export"]):
        with pytest.raises(SystemExit, match=r"^error: \. is there already: name a new folder"):
            command(*words, "--out", ".")


def test_a_network_that_needs_its_last_prediction_has_no_page(
    command: Command, tiny: Callable[..., Config], tmp_path: Path
):
    config = tiny({"model.self_conditioning": True})
    spec = ImageSpec(size=28, channels=1, classes=10, name="mnist", class_names=tuple("0123456789"))
    weights = {"ema": build_network(config.model, spec).state_dict()}
    kept = Checkpoint(config.model, config.diffusion, spec, Conditioning.by_class([0.1] * 10), {"step": 1}, weights)
    save_checkpoint(tmp_path / "own.safetensors", kept)
    with pytest.raises(SystemExit, match=r"^error: no page: .* model\.self_conditioning needs the one before\.$"):
        command("page", "--model", "own.safetensors", "--no-browser")


def test_a_shipped_model_goes_before_a_folder_of_its_name(command: Command, monkeypatch: pytest.MonkeyPatch):
    def opened(_: object) -> None:
        raise DdpmError("opened.")

    Path("mnist").mkdir()
    monkeypatch.setattr("ddpm.commands.page.open_model", opened)
    with pytest.raises(SystemExit, match=r"^error: opened\.$"):
        command("page", "--no-browser")


def test_a_place_that_cannot_be_written_to_is_refused_at_once(command: Command, monkeypatch: pytest.MonkeyPatch):
    Path("closed").mkdir()
    monkeypatch.setattr("os.access", lambda path, _: path != Path("closed").absolute())
    for out in ("closed/a.png", "closed/b/c.npz", "closed/folder"):
        with pytest.raises(SystemExit, match=rf"^error: --out {out}: this user may not write to .*closed"):
            command("sample", *FAST, "--count", "1", "--out", out)
        assert not list(Path("closed").iterdir())


def test_a_reader_that_has_enough_is_no_mistake(root: Path):
    done = ended(root, "bash", "-c", f"{sys.executable} -m ddpm info mnist | head -1")
    assert (done.stdout, done.stderr) == ("file\n", "")


def test_every_command_explains_itself_by_examples(capsys: pytest.CaptureFixture[str]):
    for words in (["--help"], *([name, "--help"] for name in COMMANDS), ["edit", "inpaint", "--help"]):
        with pytest.raises(SystemExit) as ending:
            parse(words)
        assert ending.value.code == 0
        assert "python -m ddpm" in capsys.readouterr().out.partition("\n\n")[2]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["sample", "--classes", "10"], "there is no class 10"),
        (["sample", "--classes", "sneaker"], "there is no class sneaker"),
        (["sample", "--classes", "-1"], "there is no class -1"),
        (["sample", "--count", "0"], "--count 0"),
        (["sample", "--count", "1000000000000"], "a whole number from 1 to 1,000,000"),
        (["sample", "--out", "digits.jpeg"], "NAME.png, NAME.npz or the name of a folder"),
        (["sample", "--scale", "0"], "--scale 0"),
        (["sample", "--scale", "101"], "--scale 101: a whole number from 1 to 100"),
        (["sample", "--scale", "2", "--out", "a.npz"], "--columns and --scale are of one picture"),
        (["sample", "--columns", "2", "--out", "folder"], "--columns and --scale are of one picture"),
        (["sample", "--out", "text.png/x.png"], "text.png is no folder"),
        (["sample", "--model", ""], ". is a folder: name a file"),
        (["sample", "--out", "."], "is there already"),
        (["sample", "--steps", "5000"], "exceeds the 1000 timesteps"),
        (["sample", "--model", "nothing.safetensors"], "nothing.safetensors is missing"),
        (["sample", "--model", "digit.png"], "digit.png is damaged or no checkpoint"),
        (["sample", "--params", "none.yaml"], "none.yaml is missing"),
        (["sample", "--model", "mnist_unconditional", "--classes", "3"], "knows no class labels"),
        (["edit", "vary", "none.png"], "none.png is missing"),
        (["edit", "vary", "text.png"], "text.png is no image that can be read"),
        (["edit", "vary", "half.png"], "half.png is no image that can be read"),
        (["edit", "vary", "."], "Is a directory"),
        (["edit", "vary", "digit.png", "--count", "1000000000000"], "count is 1000000000000"),
        (["edit", "interpolate", "digit.png", "digit.png", "--labels", "1", "x"], "there is no class x"),
        (["edit", "interpolate", "digit.png", "digit.png", "--seed", "1"], "--seed and --sampler need --strength"),
        (["edit", "interpolate", "digit.png", "digit.png", "--sampler", "ddpm"], "need --strength"),
        (["edit", "vary", "digit.png", "--strength", "2"], "strength is 2.0"),
        (["edit", "interpolate", "digit.png", "digit.png", "--strength", "0"], "strength is 0"),
        (["edit", "inpaint", "digit.png", "--erase", "left", "--label", "11"], "there is no class 11"),
        (["export", "--out", "."], "is there already"),
        (["export", "--model", "none.safetensors"], "none.safetensors is missing"),
        (["page", "--model", "."], "index.html is missing"),
        (["page", "--model", "text.png"], "text.png is damaged or no checkpoint"),
        (["info", "text.png"], "text.png is damaged or no checkpoint"),
        (["info", ".."], ".. is a folder: name a file"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(command: Command, digit: Path, words: list[str], reason: str):
    Path("text.png").write_text("no picture")
    Path("half.png").write_bytes(digit.read_bytes()[:60])
    before = sorted(Path().iterdir())
    with pytest.raises(SystemExit) as ending:
        command(*words)
    message = str(ending.value.code)
    assert message.startswith("error: ")
    assert reason in message
    assert len(message.splitlines()) == 1
    assert sorted(Path().iterdir()) == before


def test_memory_that_does_not_suffice_is_called_so(command: Command, monkeypatch: pytest.MonkeyPatch):
    def lack(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ddpm.commands.options.load", lack)
    with pytest.raises(SystemExit, match=r"^error: out of memory: give it fewer images at a time, or another --device"):
        command("sample")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND; see python -m ddpm --help"),
        (["sample", "--count", "x"], "argument --count: invalid int value: 'x'; see python -m ddpm sample --help"),
        (["edit", "inpaint"], "the following arguments are required: image; see python -m ddpm edit inpaint --help"),
    ],
)
def test_what_was_typed_wrong_is_said_in_one_sentence(capsys: pytest.CaptureFixture[str], words: list[str], said: str):
    with pytest.raises(SystemExit) as ending:
        parse(words)
    assert ending.value.code == 2
    assert capsys.readouterr().err == f"error: {said}\n"
