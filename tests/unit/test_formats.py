import re
import tarfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ddpm
from ddpm.__main__ import parse
from ddpm.config import Config
from ddpm.data.image_set import ImageSpec, denormalize
from ddpm.diffusion.process import TARGETS
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.diffusion.schedule import build_schedule, respace, trailing_times
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.export import browser_runtime
from ddpm.export.browser_runtime import FILES, fetch_runtime
from ddpm.export.denoise import TOLERANCE, Denoise, difference, export, restore_denoise
from ddpm.export.formats import EXPORT_FORMATS, Format
from ddpm.export.page import model_facts, step_weights
from ddpm.export.write import write_export
from ddpm.models.build import build_network
from ddpm.models.checkpoint import Checkpoint
from ddpm.models.conditioning import Conditioning
from ddpm.utils.errors import DamagedFile, DdpmError

DIGITS = ImageSpec(28, 1, 10)
NETWORKS = {
    "the default's": {},
    "no labels, a learned variance": {"model.classes": 0, "model.learned_variance": True},
    "attention, transposed convolutions, the predecessor's parts": {
        "model.attention": True,
        "model.upsampling": "transposed",
        "model.time_conditioning": "shift",
        "model.patch_size": 1,
        "model.channel_multipliers": [1, 1, 2],
    },
    "the mean as the target": {"diffusion.target": "mean"},
    "odd sides": {"model.patch_size": 2, "model.channel_multipliers": [1, 1, 2, 2]},
}


@pytest.fixture
def checkpoint(tiny: Callable[..., Config]) -> Callable[..., Checkpoint]:
    """One of a network all of whose weights are in use."""

    def make(changes: dict[str, Any] | None = None, spec: ImageSpec = DIGITS) -> Checkpoint:
        config = tiny({"model.initialization": "xavier"}, changes or {})
        torch.manual_seed(0)
        weights = {group: build_network(config.model, spec).state_dict() for group in ("ema", "guide")}
        conditioning = Conditioning.by_class([0.1] * spec.classes if config.model.classes else [])
        return Checkpoint(config.model, config.diffusion, spec, conditioning, {}, weights)

    return make


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("name", list(EXPORT_FORMATS))
def test_a_file_computes_what_pytorch_does_for_any_number_of_images(
    checkpoint: Callable[..., Checkpoint], tmp_path: Path, changes: dict[str, Any], name: str
):
    denoise = restore_denoise(checkpoint(changes), "it")
    exported = export(tmp_path / "denoise", denoise, name, batch_sizes=(1,))
    evaluate = EXPORT_FORMATS[name].read(exported.path)
    for count in (1, 3, 40):
        assert difference(evaluate, denoise, count) <= TOLERANCE
    assert exported.difference <= TOLERANCE
    assert exported.bytes == exported.path.stat().st_size
    assert exported.milliseconds[1] > 0


@pytest.mark.parametrize("target", list(TARGETS))
def test_an_error_of_the_prediction_counts_alike_whatever_it_is_of(checkpoint: Callable[..., Checkpoint], target: str):
    made = checkpoint({"diffusion.target": target})
    denoise = restore_denoise(made, "it")

    class Wrong(nn.Module):
        error = 0.0

        def forward(self, *inputs: Tensor) -> Tensor:
            return denoise.predict(*inputs) + self.error

    network = Wrong()
    for network.error in (TOLERANCE / 3, 3 * TOLERANCE):
        with torch.inference_mode():
            found = difference(Denoise(network, made), denoise, 200)
        assert 0.8 * network.error < found < 1.2 * network.error


def test_more_steps_than_the_network_has_times_are_refused_as_in_sampling(
    checkpoint: Callable[..., Checkpoint], tiny: Callable[..., Config]
):
    made, settings = (
        checkpoint({"diffusion.timesteps": 20, "generate.steps": 20}),
        tiny({"generate.steps": 21}).generate,
    )
    with pytest.raises(DdpmError, match=r"generate\.steps=21 exceeds the 20 timesteps of the checkpoint"):
        model_facts(made, settings, 0)
    assert list(model_facts(made, settings.model_copy(update={"steps": 20}), 0)["steps"])[-1] == 20


def test_colour_images_of_another_size_are_exported_too(checkpoint: Callable[..., Checkpoint], tmp_path: Path):
    denoise = restore_denoise(checkpoint(spec=ImageSpec(16, 3, 2)), "it")
    evaluate = EXPORT_FORMATS["onnx"].read(export(tmp_path / "denoise", denoise, "onnx", batch_sizes=()).path)
    assert difference(evaluate, denoise, 5) <= TOLERANCE


@pytest.mark.parametrize("name", list(EXPORT_FORMATS))
def test_the_same_weights_give_the_same_bytes_wherever_they_are_written(
    checkpoint: Callable[..., Checkpoint], tmp_path: Path, name: str
):
    contents = set()
    for folder in ("one", "other"):
        torch.manual_seed(len(folder))
        place = tmp_path / folder / "denoise"
        contents.add(export(place, restore_denoise(checkpoint(), "it"), name, batch_sizes=()).path.read_bytes())
    (content,) = contents
    assert str(Path(__file__).parents[2]).encode() not in content


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the shipped model in ONNX, and what was printed as it was written."""
    folder, model, said = tmp_path_factory.mktemp("shipped"), ddpm.load(device="cpu"), StringIO()
    with redirect_stdout(said):
        write_export(folder, model.checkpoint, "mnist", ["onnx"], "off", model.generator.config, 0)
    return folder, said.getvalue()


def test_images_sampled_by_onnx_runtime_are_pytorch_s_within_one_grey_level(shipped: tuple[Path, str]):
    generator = ddpm.load(device="cpu").generator
    files = {"predict": "denoise.onnx", "guide": "guide.onnx"}
    evaluations = {role: EXPORT_FORMATS["onnx"].read(shipped[0] / file) for role, file in files.items()}
    denoiser = replace(generator.denoiser, target=TARGETS["x_0"], **evaluations)
    expected, found = (
        denormalize(one.sample(range(1, 13))).astype(int) for one in (generator, replace(generator, denoiser=denoiser))
    )
    assert expected.std() > 50
    assert np.abs(found - expected).max() <= 1


def test_a_file_that_computes_something_else_is_refused_and_not_left_behind(
    checkpoint: Callable[..., Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    denoise = restore_denoise(checkpoint(), "it")
    wrong = Format(".bin", lambda path, module, inputs: path.touch(), lambda path: lambda *x: denoise(*x) + 2e-4)
    monkeypatch.setitem(EXPORT_FORMATS._entries, "wrong", wrong)
    with pytest.raises(DdpmError, match=r"denoise\.bin: the wrong file is 2\.\de-04 away from PyTorch"):
        export(tmp_path / "denoise", denoise, "wrong")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_weights_of_the_steps_are_those_of_the_samplers(configure: Callable[..., Config], sampler: str):
    config = configure()
    schedule = build_schedule(config.diffusion)
    weights = step_weights(schedule, TARGETS[config.diffusion.target], config.generate, 12)[sampler]
    random = torch.Generator().manual_seed(0)
    x_T, *noises = torch.randn(13, 1, 1, 4, 4, generator=random, dtype=torch.float64)
    left = iter(noises)

    def denoise(x_t: Tensor, t: int) -> Tensor:
        return torch.tanh(x_t * (1 + t / 1000))

    steps = respace(schedule, trailing_times(schedule, 12))
    expected = SAMPLERS.build(sampler, config.generate)(denoise, x_T, steps, lambda: next(left))
    x, left = x_T, iter(noises)
    for step in reversed(range(12)):
        x = weights["x_0"][step] * denoise(x, int(steps.times[step])) + weights["x_t"][step] * x
        if weights["noise"][step]:
            x = x + weights["noise"][step] * next(left)
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)


def test_the_example_of_the_documents_samples_sevens_without_pytorch(
    shipped: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
):
    page = (Path(__file__).parents[2] / "docs/export.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "torch" not in example
    folder, said = shipped
    assert said == "writing denoise.onnx …\nwriting guide.onnx …\n"
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(example, names)
    found = MnistExtractor(torch.device("cpu")).features(names["images"][:, None], "example").probabilities
    assert found is not None
    assert (found.argmax(1) == 7).mean() >= 0.9


def test_the_command_writes_a_new_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(*more: str) -> None:
        arguments = parse(["export", "--out", str(tmp_path / "out"), "--page", "off", *more])
        arguments.run(arguments)

    run("--formats", "torch")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"denoise.pt2", "guide.pt2", "model.json"}
    assert re.search(r"denoise\.pt2 +2\.\d\d MiB +0\.0e\+00 +[\d.]+ ms +[\d.]+ ms", capsys.readouterr().out)
    with pytest.raises(DdpmError, match="out is there already: name a new folder"):
        run()


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is kept from earlier, and npm is what a test puts into this folder, which is the PATH."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(programs))
    return programs


def npm(folder: Path, script: str) -> None:
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)


def test_where_the_runtime_of_the_page_cannot_be_had_one_sentence_says_so(
    checkpoint: Callable[..., Checkpoint], configure: Callable[..., Config], tmp_path: Path, no_network: Path
):
    (tmp_path / "out").mkdir()
    given = (tmp_path / "out", checkpoint(), "it", [])
    settings = configure({"generate.steps": 20}).generate
    assert write_export(*given, "auto", settings, 0) == (
        "no page: the page needs the npm package onnxruntime-web@1.30.0, which is not on this machine yet (the command "
        "npm is not installed): install npm, connect once to the network, or set export.page to off."
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.json"]
    npm(no_network, "echo no such host >&2; exit 1")
    with pytest.raises(DdpmError, match=r"failed: no such host\): install npm, connect once to the network") as caught:
        write_export(*given, "required", settings, 0)
    assert "\n" not in str(caught.value)
    assert write_export(*given, "off", settings, 0) == ""


def test_a_runtime_that_cannot_be_kept_leaves_the_page_out(
    checkpoint: Callable[..., Checkpoint],
    configure: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "cache").write_text("a file where a folder is wanted")
    monkeypatch.setattr(browser_runtime, "cached_runtime", lambda: tmp_path / "cache/folder")
    monkeypatch.setattr(browser_runtime, "npm_files", lambda _, digests: dict.fromkeys(digests, b""))
    given = (tmp_path / "export", checkpoint({}), "it", [], "auto", configure({"generate.steps": 20}).generate, 0)
    (tmp_path / "export").mkdir()
    assert "no page: the npm package" in (said := write_export(*given))
    assert "XDG_CACHE_HOME" in said


def test_a_package_of_another_content_is_refused(tmp_path: Path, no_network: Path):
    archive = tmp_path / "other.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in FILES:
            tar.add(__file__, f"package/dist/{name}")
    npm(no_network, f"/bin/cp {archive} .")
    with pytest.raises(
        DamagedFile, match=r"ort\.wasm\.min\.mjs of the npm package .* has SHA-256 .*, not 219e6a1fc8a9"
    ):
        fetch_runtime()
    assert not browser_runtime.cached_runtime().exists()


def test_a_network_that_needs_its_last_prediction_is_not_exported_and_that_is_said(
    checkpoint: Callable[..., Checkpoint], configure: Callable[..., Config], tmp_path: Path
):
    given = (tmp_path, checkpoint({"model.self_conditioning": True}), "it", ["onnx"], "auto")
    assert "no files and no page" in write_export(*given, configure({"generate.steps": 20}).generate, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


def test_the_evaluation_is_the_x_0_of_the_prediction(checkpoint: Callable[..., Checkpoint]):
    denoise = restore_denoise(checkpoint({"diffusion.target": "eps"}), "it")
    assert isinstance(denoise, Denoise)
    x_t, t, label = denoise.example(4)
    alpha_bar = denoise.alpha_bar[t].double()[:, None, None, None]
    x_0 = denoise(x_t, t, label).double()
    back = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * denoise.predict(x_t, t, label).double()
    torch.testing.assert_close(back, x_t.double(), rtol=1e-4, atol=1e-4)
