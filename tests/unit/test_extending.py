"""docs/extending.md: its paths are there, and each of its examples works through the library."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import create_model
from torch import Tensor

from ddpm import api
from ddpm.config import Config
from ddpm.data.image_set import ImageSet, ImageSpec, read_image_set
from ddpm.data.load import GivenLabels
from ddpm.data.sources import SOURCES
from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.objective import TIME_DENSITIES, WEIGHTINGS, build_objective
from ddpm.diffusion.process import TARGETS
from ddpm.diffusion.samplers import SAMPLERS, ddim
from ddpm.diffusion.schedule import SCHEDULES, build_schedule
from ddpm.evaluation import measure
from ddpm.evaluation.evaluator import Evaluator
from ddpm.evaluation.features import EXTRACTORS, open_extractors
from ddpm.evaluation.reference import Reference, make_reference
from ddpm.models import checkpoint
from ddpm.models.build import build_network
from ddpm.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ddpm.models.conditioning import Conditioning
from ddpm.models.networks import NETWORKS
from ddpm.sampling.generator import Generator, make_generator
from ddpm.training.loop import train
from ddpm.training.optimizers import OPTIMIZERS, Optimizer
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.errors import DdpmError
from ddpm.utils.images import read_pngs
from ddpm.utils.registry import Registry
from ddpm.utils.runtime import Runtime
from stages.fetch_mnist import fetch_mnist
from stages.paths import RAW, SPLIT
from stages.split import split

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
# Each kind, its registry and the entry that its example adds.
KINDS: dict[str, tuple[str, Registry[Any], str]] = {
    "Schedule": ("SCHEDULES", SCHEDULES, "even_erasure"),
    "Target": ("TARGETS", TARGETS, "score"),
    "Weighting": ("WEIGHTINGS", WEIGHTINGS, "truncated_snr"),
    "Time density": ("TIME_DENSITIES", TIME_DENSITIES, "noisy"),
    "Sampler": ("SAMPLERS", SAMPLERS, "euler"),
    "Network": ("NETWORKS", NETWORKS, "plain"),
    "Optimizer": ("OPTIMIZERS", OPTIMIZERS, "sgd"),
    "Data source": ("SOURCES", SOURCES, "bars"),
    "Feature extractor": ("EXTRACTORS", EXTRACTORS, "pooled"),
}
SPEC = ImageSpec(16, 3, 2)


@pytest.fixture(autouse=True)
def _entries_are_removed() -> Iterator[None]:
    """Leave every registry as it was."""
    before = [(registry, {name: registry[name] for name in registry}) for _, registry, _ in KINDS.values()]
    yield
    for registry, entries in before:
        registry._entries = entries


def run(kind: str) -> dict[str, Any]:
    """Execute the example of a section; its names."""
    (code,) = re.findall(r"^```python\n(.*?)^```", SECTIONS[kind], re.M | re.S)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, f"docs/extending.md, {kind}", "exec"), names)
    return names


def added_line(kind: str) -> tuple[str, str]:
    """The line of a section's diff that is in the code already, and that line with the one that follows it."""
    ((before, added),) = re.findall(r"^```diff\n (.*\n)\+(.*\n)```", SECTIONS[kind], re.M)
    return before, before + added


@pytest.fixture
def generator(cpu: Runtime, tmp_path: Path) -> Callable[[Config], Generator]:
    """Of small colour images of two classes by an untrained network, restored from its checkpoint file."""

    def make(config: Config) -> Generator:
        torch.manual_seed(0)
        network, path = build_network(config.model, SPEC), tmp_path / "model.safetensors"
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.02)
        weights = {name: weight.detach() for name, weight in network.named_parameters()}
        groups = {"ema": weights, "guide": {name: weight.clone() for name, weight in weights.items()}}
        labels = Conditioning.by_class([0.5, 0.5])
        save_checkpoint(path, Checkpoint(config.model, config.diffusion, SPEC, labels, {}, groups))
        return make_generator(load_checkpoint(path), str(path), config.generate, config.seed, cpu)

    return make


@pytest.fixture
def sample(generator: Callable[[Config], Generator]) -> Callable[[Config], Tensor]:
    """Four images by that network."""

    def images(config: Config) -> Tensor:
        found = generator(config).sample(range(1, 5))
        assert found.shape == (4, *SPEC.shape)
        assert found.isfinite().all()
        assert len(found.flatten(1).unique(dim=0)) == 4
        return found

    return images


def test_every_path_of_the_page_is_there():
    table = PAGE[: PAGE.index("\n\nMost choices")]
    in_table = re.findall(r"`(.+?)`", "\n".join(line.split("|")[2] for line in table.splitlines() if "|" in line))
    everywhere = re.findall(r"`([\w.-]+/[\w./-]*)`", PAGE)
    assert len(in_table) > 20
    assert [path for path in {*in_table, *everywhere} if not (ROOT / path).exists()] == []


def test_every_kind_has_a_section_that_names_its_registry():
    assert list(SECTIONS) == [*KINDS, "Metric", "Sub-command", "Figure"]
    for kind, (name, registry, _) in KINDS.items():
        (path,) = re.findall(rf"^\n`{name}` in `(.+?)`\. ", SECTIONS[kind])
        assert re.search(rf"^{name}: Registry\[.*\] = Registry\(\"{registry.kind}\"", (ROOT / path).read_text(), re.M)


@pytest.mark.parametrize(
    ("section", "module", "class_name"), [("model", checkpoint, "ModelConfig"), ("generate", api, "GenerateConfig")]
)
def test_the_shipped_models_are_read_with_a_new_setting_where_the_page_has_it_noted(
    monkeypatch: pytest.MonkeyPatch, section: str, module: ModuleType, class_name: str
):
    noted, path = re.search(rf"`{section}`(?: or `diffusion`)?[\w ]*into `(\w+)`\s+in\s+`([\w/.]+)`", PAGE).groups()
    assert ROOT / path == Path(str(module.__file__))
    values = getattr(module, noted)
    monkeypatch.setattr(module, class_name, create_model("New", __base__=getattr(module, class_name), gate=(bool, ...)))
    with pytest.raises(DdpmError, match=r"made by another version of this project: missing key gate"):
        api.load("mnist", device="cpu")
    monkeypatch.setitem(values.get(section, values), "gate", False)
    for name in ("mnist", "mnist_unconditional"):
        api.load(name, device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_adds_one_entry_and_settings_accept_its_name_then(tiny: Callable[..., Config], kind: str):
    _, registry, name = KINDS[kind]
    (key,) = re.findall(r"Chosen\s+by\s+`(\w+\.\w+)`", SECTIONS[kind])
    value = [name] if kind == "Feature extractor" else name
    known = list(registry)
    with pytest.raises(DdpmError, match=rf"{key}.*{name}.*one of {', '.join(known)}"):
        tiny({key: value})
    run(kind)
    assert list(registry) == [*known, name]
    section, setting = key.split(".")
    assert getattr(getattr(tiny({key: value}), section), setting) in (name, (name,))
    with pytest.raises(DdpmError, match=rf"other.*one of {', '.join(known)}, {name}"):
        tiny({key: ["other"] if kind == "Feature extractor" else "other"})


def test_the_schedule(tiny: Callable[..., Config], sample: Callable[[Config], Tensor]):
    run("Schedule")
    config = tiny({"diffusion.schedule": "even_erasure"})
    alpha_bar, steps = build_schedule(config.diffusion).alpha_bar, config.diffusion.timesteps
    torch.testing.assert_close(alpha_bar, 1 - torch.arange(1, steps + 1, dtype=torch.float64) / (steps + 1))
    sample(config)


def test_the_target(tiny: Callable[..., Config], sample: Callable[[Config], Tensor]):
    run("Target")
    config = tiny({"diffusion.target": "score", "train.weighting": "min_snr", "train.min_snr_gamma": 1e9})
    schedule, target = build_schedule(config.diffusion), TARGETS["score"]
    x_0 = torch.rand(4, *SPEC.shape) * 2 - 1

    def score(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        alpha_bar = schedule.alpha_bar[t].float()[:, None, None, None]
        return (alpha_bar.sqrt() * x_0 - x_t) / (1 - alpha_bar)

    denoiser = Denoiser(score, target, schedule, clip=False)
    torch.testing.assert_close(ddim()(denoiser, torch.randn(x_0.shape), schedule, Tensor), x_0, rtol=0, atol=1e-3)
    # Weights by the unclamped SNR make errors of every target count like the same error of eps.
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    weights = build_objective(config.diffusion, config.train).weights
    before = schedule.alpha_bar_prev
    torch.testing.assert_close(weights, (snr * target.x_0_error(schedule.alpha_bar, before)).float())
    torch.testing.assert_close(weights, (1 - schedule.alpha_bar).float())
    sample(config)


def test_the_weighting(tiny: Callable[..., Config]):
    run("Weighting")
    snr = {}
    for target in ("eps", "x_0"):
        config = tiny({"train.weighting": "truncated_snr", "diffusion.target": target})
        alpha_bar = build_schedule(config.diffusion).alpha_bar
        snr = (alpha_bar / (1 - alpha_bar)).float()
        expected = torch.maximum(snr, torch.ones(())) / (snr if target == "eps" else 1.0)
        torch.testing.assert_close(build_objective(config.diffusion, config.train).weights, expected)


def test_the_time_density(tiny: Callable[..., Config]):
    run("Time density")
    means = []
    for density in ("uniform", "noisy"):
        config = tiny({"train.time_density": density})
        objective = build_objective(config.diffusion, config.train)
        assert objective.density.sum().item() == pytest.approx(1)
        means.append(objective.sample_times(1000, torch.Generator().manual_seed(0)).double().mean().item())
    assert means[1] > means[0] + 10


def test_the_sampler(
    tiny: Callable[..., Config], generator: Callable[[Config], Generator], sample: Callable[[Config], Tensor]
):
    run("Sampler")
    config = tiny(
        {"generate.sampler": "euler", "generate.steps": 7, "generate.guidance": 1.0, "generate.autoguidance": 1.0}
    )
    # Euler's method in these variables is DDIM without noise: Song et al. 2021, eq. 14.
    by_ddim = sample(
        tiny({"generate.sampler": "ddim", "generate.steps": 7, "generate.guidance": 1.0, "generate.autoguidance": 1.0})
    )
    torch.testing.assert_close(sample(config), by_ddim, rtol=1e-4, atol=1e-4)
    assert generator(config).nfe == 7


def test_the_network(tiny: Callable[..., Config], sample: Callable[[Config], Tensor]):
    run("Network")
    config = tiny({"model.network": "plain"})
    sample(config)
    network = build_network(config.model, SPEC)
    objective, optimizer = build_objective(config.diffusion, config.train), Optimizer("adamw", network, config.train)
    images = torch.full((8, *SPEC.shape), 200, dtype=torch.uint8)
    t, eps, labels = torch.arange(8) * 12, torch.randn(images.shape), torch.arange(8) % 2
    losses = []
    for _ in range(30):
        loss = objective.loss(objective.squared_errors(network, images, t, eps, labels), t)
        loss.backward()
        optimizer.step(1.0)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_optimizer(tiny: Callable[..., Config]):
    run("Optimizer")
    settings = tiny({"train.optimizer": "sgd", "train.lr": 0.1, "train.weight_decay": 0.0}).train
    network = torch.nn.Linear(2, 1, bias=False)
    start = network.weight.detach().clone()
    optimizer = Optimizer(settings.optimizer, network, settings)
    for _ in range(2):
        network.weight.grad = torch.ones_like(network.weight)
        optimizer.step(0.5)
    torch.testing.assert_close(network.weight.detach(), start - 0.05 * (1 + 1.9))
    (momentum,) = optimizer.state_dict().values()
    torch.testing.assert_close(momentum, torch.full((1, 2), 1.9))


def test_the_data_source_from_its_files_to_a_trained_network(
    tiny: Callable[..., Config], cpu: Runtime, workspace: Path
):
    run("Data source")
    config = tiny({"data.name": "bars", "generate.steps": 5})
    RAW.mkdir(parents=True)
    (RAW / "of_another_data_set").touch()
    fetch_mnist(config)
    assert {path.name for path in RAW.iterdir()} == {"train.npz", "test.npz"}
    split(config)
    training, validation, test = (read_image_set(SPLIT / f"{part}.npz") for part in ("train", "validation", "test"))
    assert [len(part) for part in (training, validation, test)] == [540, 60, 100]
    assert training.spec == ImageSpec(16, 3, 2, "bars", ("horizontal", "vertical"))
    assert training.class_frequencies() == [0.5, 0.5]
    rows = (test.images[test.labels == 0].max(1) == 255).all(2)
    assert (rows.sum(1) == 1).all()
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    (workspace / "model").mkdir()
    with RunFolder(workspace / "model", workspace / "kept") as folder:
        train(recipe, training, validation, cpu, folder, 1e9)
        folder.finish({})
    best = load_checkpoint(workspace / "model" / "best.safetensors")
    images = make_generator(best, "best", config.generate, config.seed, cpu).sample([1, 2])
    assert images.shape == (2, 3, 16, 16)


@pytest.fixture
def real(rng: np.random.Generator) -> tuple[ImageSet, ImageSet]:
    """Training and test images of noise."""
    sets = (rng.integers(256, size=(count, 1, 8, 8), dtype=np.uint8) for count in (400, 100))
    train_set, test_set = (ImageSet(x, np.arange(len(x)) % 2, np.arange(len(x)), 2) for x in sets)
    return train_set, test_set


def test_the_feature_extractor(tiny: Callable[..., Config], cpu: Runtime, real: tuple[ImageSet, ImageSet]):
    run("Feature extractor")
    settings = tiny({"fid.extractors": ["pooled"]}).fid
    networks, _ = open_extractors(settings, real[0], cpu.device, Path("absent.safetensors"))
    evaluator = Evaluator([(networks[0], make_reference(networks[0], *real, 7))], {}, 7)
    darker, same = (
        evaluator.measure(images, GivenLabels(), 0, "test").numbers
        for images in (real[1].images // 2, real[0].images[::4])
    )
    assert darker["fd_pooled"] > 10 * same["fd_pooled"]
    assert darker["fd_pooled_real"] == same["fd_pooled_real"]
    assert darker["recall_pooled"] < same["recall_pooled"]


def test_the_metric(cpu: Runtime, real: tuple[ImageSet, ImageSet], tiny: Callable[..., Config]):
    mean_distance = run("Metric")["mean_distance"]
    assert mean_distance(np.zeros((3, 2)), np.full((5, 2), [3.0, 4.0])) == 5.0
    before, after = added_line("Metric")
    source = Path(str(measure.__file__)).read_text()
    assert source.count(before) == 1
    changed = ModuleType("changed")
    changed.__dict__["mean_distance"] = mean_distance
    exec(compile(source.replace(before, after), "measure.py", "exec"), changed.__dict__)

    run("Feature extractor")
    settings = tiny({"fid.extractors": ["pooled"]}).fid
    (network,), _ = open_extractors(settings, real[0], cpu.device, Path("absent.safetensors"))
    reference: Reference = make_reference(network, *real, 7)
    features = network.features(real[1].images // 2, "test").values

    def stream(*_: object) -> np.random.Generator:
        return np.random.default_rng(0)

    beside = measure.RealImages.for_images(len(features), reference, "pooled", stream)
    found = changed.measure_features("pooled", "fd_pooled", features, beside, 0, stream, False, GivenLabels())
    assert found["mean_distance_pooled"] == pytest.approx(1.0, abs=0.1)  # 16 features, each darker by a quarter
    assert found["mean_distance_pooled_real"] < 0.1


def test_the_figure(tmp_path: Path):
    images = np.zeros((4, 1, 2, 2), np.uint8)
    images[[1, 3]] = np.array([100, 201], np.uint8)[:, None, None, None]
    image_set = ImageSet(images, np.array([0, 1, 0, 1]), np.arange(4), 2)
    (tmp_path / "figures").mkdir()
    run("Figure")["class_means"](tmp_path / "figures" / "class_means.png", image_set, 3)
    (picture,) = read_pngs(tmp_path / "figures", 1)
    assert picture.shape == (1, 6, 18)
    assert set(np.unique(picture[0, :, 12:])) == {150}
    assert not picture[0, :, :6].any()
    before, _ = added_line("Figure")
    assert (ROOT / "stages" / "visualize.py").read_text().count(before) == 1
