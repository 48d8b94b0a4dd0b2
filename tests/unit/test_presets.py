import itertools
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

import presets.__main__ as presets
from ddpm.config import Config, load_config
from ddpm.data.image_set import ImageSpec
from ddpm.models.build import build_network, conditioning_classes, flops_per_image
from ddpm.models.checkpoint import Checkpoint
from ddpm.models.conditioning import Conditioning
from ddpm.sampling.generator import make_generator
from ddpm.training.state import Recipe
from ddpm.utils.errors import DdpmError
from ddpm.utils.runtime import Runtime


@pytest.fixture
def params(workspace: Path) -> Path:
    """The params.yaml of the working folder."""
    return workspace / "params.yaml"


def flat(section: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings by dotted key."""
    found: dict[str, object] = {}
    for key, value in section.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def read(path: Path) -> dict[str, object]:
    return flat(YAML(typ="safe", pure=True).load(path))


@pytest.fixture(params=presets.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_presets_that_the_readme_names_are_there():
    assert {"baseline", "gpu", "smoke"} <= set(presets.names())


def test_a_preset_changes_what_it_holds_and_nothing_else(params: Path, name: str):
    before = read(params)
    presets.apply(name, params)
    load_config(params)
    assert read(params) == before | read(presets.FOLDER / f"{name}.yaml")
    assert read(params) != before


def test_a_preset_keeps_comments_and_order(params: Path, name: str):
    before = params.read_text()
    presets.apply(name, params)
    after = params.read_text()
    assert [line.split("#")[1] for line in before.splitlines() if "#" in line] == [
        line.split("#")[1] for line in after.splitlines() if "#" in line
    ]
    assert [line.split(":")[0] for line in before.splitlines()] == [line.split(":")[0] for line in after.splitlines()]


def test_a_preset_applied_twice_is_applied_once(params: Path, name: str):
    presets.apply(name, params)
    once = params.read_bytes()
    presets.apply(name, params)
    assert params.read_bytes() == once


def test_a_preset_applied_leaves_no_other_file(params: Path, name: str):
    presets.apply(name, params)
    assert list(params.parent.iterdir()) == [params]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("train:\n  learning_rate: 0.1\n", "unknown key train.learning_rate"),
        ("trian:\n  lr: 0.1\n", "unknown key trian"),
        ("train:\n  lr: -1\n", "train.lr = -1"),
        ("train: fast\n", "train = 'fast'"),
        ("train:\n  lr: [1, 2\n", "line 2, column 7"),
        ("train:\n  lr: 0.1\n  lr: 0.2\n", "line 3, column 3"),
        ("data: 2026-99-99\n", "is not valid YAML"),
        ("", "holds no keys"),
    ],
)
def test_a_wrong_preset_is_refused_and_nothing_written(
    params: Path, monkeypatch: pytest.MonkeyPatch, content: str, words: str
):
    folder = params.with_name("presets")
    folder.mkdir()
    (folder / "wrong.yaml").write_text(content)
    monkeypatch.setattr(presets, "FOLDER", folder)
    before = params.read_bytes()
    with pytest.raises(DdpmError, match=r"wrong\.yaml") as caught:
        presets.apply("wrong", params)
    assert words in str(caught.value)
    assert params.read_bytes() == before


def test_an_unknown_preset_is_refused_with_those_there_are(params: Path):
    with pytest.raises(
        DdpmError,
        match="there is no preset huge; there are baseline, cifar10, fashion_mnist, gpu, icons, long, long_unc",
    ):
        presets.apply("huge", params)


def test_the_command_writes_params_yaml_of_the_working_folder(
    params: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["presets", "smoke"])
    presets.main()
    assert read(params)["train.epochs"] == 0.1
    assert "preset smoke" in capsys.readouterr().out


def test_the_command_ends_with_one_sentence_where_there_is_no_params_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["presets", "smoke"])
    with pytest.raises(SystemExit, match=r"^error: params\.yaml is missing"):
        presets.main()


DIGITS, PHOTOGRAPHS = ImageSpec(size=28, channels=1, classes=10), ImageSpec(size=32, channels=3, classes=10)


@pytest.mark.parametrize(
    ("name", "images", "count"),
    [("baseline", DIGITS, 54_000), ("gpu", DIGITS, 54_000), ("cifar10", PHOTOGRAPHS, 45_000)],
)
def test_the_head_comment_states_the_cost(
    configure: Callable[..., Config], cpu: Runtime, name: str, images: ImageSpec, count: int
):
    path = presets.FOLDER / f"{name}.yaml"
    config = configure(read(path))
    network, flops = build_network(config.model, images), flops_per_image(config.model, images)
    shape = (max(1, conditioning_classes(config.model, images)), config.model.clusters)
    conditioning = Conditioning(conditioning_classes(config.model, images), torch.full(shape, 1 / math.prod(shape)))
    weights = {part: network.state_dict() for part in ("ema", "guide")}
    checkpoint = Checkpoint(config.model, config.diffusion, images, conditioning, {}, weights)
    nfe = make_generator(checkpoint, name, config.generate, config.seed, cpu).nfe
    steps = Recipe(config.model, config.diffusion, config.train, config.seed).steps(count)
    head = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    stated = " ".join(line.strip("# ") for line in head)
    parameters, evaluation, training, sampling = re.findall(
        r"([\d,.]+) (?:parameters|GFLOP per|PFLOP to\b train|PFLOP to sample)", stated
    )
    assert int(parameters.replace(",", "")) == sum(weight.numel() for weight in network.parameters())
    assert float(evaluation) == pytest.approx(flops / 1e9, rel=0.01)
    assert float(training) == pytest.approx(3 * flops * steps * config.train.batch_size / 1e15, rel=0.03)
    assert float(sampling) == pytest.approx(flops * nfe * config.generate.num_images / 1e15, rel=0.05)
    assert name == "baseline" or "it has not been run on a GPU" in stated
    if name == "cifar10":
        (minutes,) = re.findall(r"that takes (\d+) minutes", stated)
        work = float(training) + float(sampling) * (1 + config.generate.replicates)
        assert float(minutes) == pytest.approx(work / 0.1 / 60, rel=0.1)


def test_a_network_of_the_cifar10_preset_learns_from_a_batch(configure: Callable[..., Config]):
    model = configure(read(presets.FOLDER / "cifar10.yaml")).model
    network = build_network(model, PHOTOGRAPHS)
    prediction = network(torch.randn(2, 3, 32, 32), torch.tensor([0, 999]), torch.tensor([0, 9]))
    assert prediction.shape == (2, 3, 32, 32)
    (prediction - 1.0).square().mean().backward()
    assert network.conv_out.weight.grad.abs().sum() > 0


def test_the_baseline_has_the_parameters_of_the_predecessors_network(configure: Callable[..., Config]):
    model = configure(read(presets.FOLDER / "baseline.yaml")).model
    images = ImageSpec(size=28, channels=1, classes=10)
    assert sum(weight.numel() for weight in build_network(model, images).parameters()) == 31_935_617
    assert 5.5e9 < flops_per_image(model, images) < 6.5e9
