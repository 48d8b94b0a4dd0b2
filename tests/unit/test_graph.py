"""dvc.yaml lists just what decides each stage's results: its deps against what the stage imports."""

import ast
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from clones import SETTINGS, STAGES
from ruamel.yaml import YAML

from ddpm.config import Config
from ddpm.data.sources import SOURCES
from ddpm.evaluation.features import EXTRACTORS
from ddpm.export.page import model_facts
from ddpm.models.checkpoint import load_checkpoint
from ddpm.models.networks import NETWORKS
from ddpm.pretrained import path_of
from stages.resume import dvc_stages

ROOT = Path(__file__).parents[2]
# Files for a browser, among which no `__pycache__` comes to be.
PAGES = ("ddpm/export/page", "ddpm/report/templates")

# Modules that decide no result of any stage: what they import decides none through them either.
EVERYWHERE = {
    "ddpm/config.py": "checks the settings; their values are parameters of the stages",
    "ddpm/data/sources/__init__.py": "a registry; the source that is used is listed",
    "ddpm/utils/devices.py": "how tensors get to a device, never what is in them",
    "ddpm/utils/errors.py": "messages",
    "ddpm/utils/files.py": "how files are written and read, not what is in them",
    "ddpm/utils/processes.py": "how many processes there are, never what they do",
    "ddpm/utils/registry.py": "finds entries by name",
    "ddpm/utils/resume.py": "where a killed run is kept",
    "ddpm/utils/runtime.py": "where and how fast, never what",
    "ddpm/utils/threads.py": "which thread computes what",
    "stages/paths.py": "the paths, which dvc.yaml names as well",
    "stages/resume.py": "where a killed run is kept",
    "stages/runner.py": "how a stage begins and ends",
}

# Those that decide no result of the stages that read what was fetched.
FETCHING = {
    "ddpm/data/decoding.py": "only for fetching",
    "ddpm/data/fetching.py": "only for fetching",
    "ddpm/data/torchvision_source.py": "only for fetching, but for reading an image set",
}

# Those that decide no result of one stage.
HERE = {
    "fetch_mnist": {
        "ddpm/data/idx.py": "the files are verified by their SHA-256",
    },
    "split": FETCHING | {"ddpm/utils/images.py": "only for fetching"},
    "reference": FETCHING | {"ddpm/data/split.py": "only for fetching"},
    "fid": FETCHING | {"ddpm/data/split.py": "only for fetching"},
    "visualize": FETCHING | {"ddpm/data/split.py": "only for fetching"},
    "train": {
        "ddpm/diffusion/denoiser.py": "only for previews and the early distance",
        "ddpm/diffusion/samplers.py": "only for previews and the early distance",
        "ddpm/evaluation/early.py": "only for the early distance, which decides nothing of the network",
        "ddpm/training/run_folder.py": "where the files of the run are kept",
        "ddpm/utils/images.py": "only for previews",
    },
    "generate": {
        "ddpm/diffusion/objective.py": "only the type Predict",
    },
    "classifier": FETCHING
    | {
        "ddpm/data/split.py": "only for fetching",
        "ddpm/evaluation/features/inception.py": "only its name",
    },
    "export": {
        "ddpm/data/fetching.py": "what it fetches is verified by its SHA-256",
    },
    "likelihood": {
        "ddpm/diffusion/guidance.py": "the likelihood is that of the network without guidance",
        "ddpm/diffusion/objective.py": "only the type Predict",
        "ddpm/sampling/labels.py": "only for sampling",
    },
}


@pytest.fixture(scope="module")
def graph(configure: Callable[..., Config]) -> dict[str, Any]:
    """The stages of dvc.yaml with the default settings in place of ${…}."""
    return dvc_stages(configure())


@cache
def imports(path: str) -> frozenset[str]:
    """The files of ddpm and stages that a file imports, at its top or inside of a function."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    named = (module.replace(".", "/") for module in modules if module.split(".")[0] in ("ddpm", "stages"))
    candidates = {file for name in named for file in (f"{name}.py", f"{name}/__init__.py")}
    return frozenset(file for file in candidates if (ROOT / file).is_file() and not only_described(file))


def only_described(file: str) -> bool:
    """Whether a file holds nothing but its docstring."""
    return len(ast.parse((ROOT / file).read_text()).body) <= 1


def chosen(config: Config) -> dict[str, set[str]]:
    """The modules that a registry imports by name, by the file of the registry."""
    return {
        "ddpm/data/sources/__init__.py": {f"ddpm/data/sources/{config.data.name}.py"},
        "ddpm/models/networks/__init__.py": {module_of(NETWORKS[config.model.network])},
        "ddpm/evaluation/features/__init__.py": {module_of(EXTRACTORS[name]) for name in EXTRACTORS},
    }


def module_of(entry: object) -> str:
    """The file that defines a function, a class or the class of an object."""
    module = entry.__module__ if hasattr(entry, "__qualname__") else type(entry).__module__
    return f"{module.replace('.', '/')}.py"


def closure(stage: str, config: Config) -> set[str]:
    """The files that decide a stage's results unless they are among the exceptions; these are in it, but end it."""
    excepted, by_registry = EVERYWHERE | HERE.get(stage, {}), chosen(config)
    seen: set[str] = set()
    left = {f"stages/{stage}.py"}
    while left:
        file = left.pop()
        seen.add(file)
        left |= by_registry.get(file, set()) - seen
        if file not in excepted:
            left |= imports(file) - seen
    return seen


def closure_of_all_data(stage: str, config: Config) -> set[str]:
    """`closure` whichever data set is chosen; the module of its own stands for each."""
    together: set[str] = set()
    for name in SOURCES:
        chosen_data = config.model_copy(update={"data": config.data.model_copy(update={"name": name})})
        together |= closure(stage, chosen_data) - {f"ddpm/data/sources/{name}.py"}
    return together | (closure(stage, config) & {f"ddpm/data/sources/{config.data.name}.py"})


def listed(graph: dict[str, Any], stage: str) -> set[str]:
    """The code among the deps of a stage."""
    return {dep for dep in graph[stage]["deps"] if dep.endswith(".py")}


def test_the_stages_are_those_of_the_tests(graph: dict[str, Any]):
    assert list(graph) == STAGES
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__", "paths", "resume", "runner"} == {
        *graph
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_code_that_decides_its_results_and_no_other(
    graph: dict[str, Any], configure: Callable[..., Config], stage: str
):
    found, deps = closure_of_all_data(stage, configure()), listed(graph, stage)
    excepted = EVERYWHERE | HERE.get(stage, {})
    assert sorted(found - deps - set(excepted)) == [], "imported, but neither listed in dvc.yaml nor excepted here"
    assert sorted(deps - found) == [], "listed in dvc.yaml, but not imported"
    assert sorted(deps & set(excepted)) == [], "listed in dvc.yaml and excepted here"
    assert sorted(set(HERE.get(stage, {})) - found) == [], "excepted here, but not imported"


def test_no_general_exception_is_stale(configure: Callable[..., Config]):
    together = set().union(*(closure(stage, configure()) for stage in STAGES))
    assert sorted(set(EVERYWHERE) - together) == []


def test_another_network_and_another_data_set_are_listed_in_place_of_the_default(configure: Callable[..., Config]):
    config = configure()
    other = config.model_copy(
        update={
            "model": config.model.model_copy(update={"network": "toy"}),
            "data": config.data.model_copy(update={"name": "letters"}),
        }
    )
    graph = dvc_stages(other)
    assert "ddpm/models/networks/toy.py" in listed(graph, "train")
    assert "ddpm/models/networks/unet.py" not in listed(graph, "train")
    assert "ddpm/data/sources/letters.py" in listed(graph, "split")


@pytest.mark.parametrize(
    ("edited", "rerun"),
    [
        ("ddpm/diffusion/samplers.py", {"generate", "likelihood", "export"}),
        ("ddpm/diffusion/guidance.py", {"generate", "export"}),
        ("ddpm/diffusion/likelihood.py", {"likelihood"}),
        ("ddpm/figures/grids.py", {"visualize"}),
        ("ddpm/figures/curves.py", {"visualize"}),
        ("ddpm/report/charts.py", {"report"}),
        ("ddpm/evaluation/kernel.py", {"fid"}),
        ("ddpm/evaluation/frechet.py", {"reference", "fid"}),
        ("ddpm/training/loop.py", {"train"}),
    ],
)
def test_an_edit_reruns_what_it_decides(graph: dict[str, Any], edited: str, rerun: set[str]):
    assert {stage for stage in STAGES if edited in listed(graph, stage)} == rerun


def test_no_code_of_sampling_figures_or_evaluation_is_upstream_of_the_training(graph: dict[str, Any]):
    rooms = ("ddpm/sampling/", "ddpm/figures/", "ddpm/evaluation/")
    for stage in ("fetch_mnist", "split", "train"):
        assert not [dep for dep in listed(graph, stage) if dep.startswith(rooms)]


def test_deps_are_files_that_are_there_and_no_folder_of_code(graph: dict[str, Any]):
    for stage in graph.values():
        for dep in stage["deps"]:
            code = dep.endswith(".py") and (ROOT / dep).is_file()
            page = dep in PAGES and not list((ROOT / dep).rglob("*.py"))
            assert dep.startswith(("data/", "metrics/")) or code or page, dep


def test_the_artifact_is_a_file_of_the_training():
    values = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")
    (artifact,) = values["artifacts"].values()
    assert Path(artifact["path"]).parent.as_posix() in values["stages"]["train"]["outs"]
    assert Path(artifact["path"]).name == "best.safetensors"


def test_deps_of_a_stage_begin_with_its_module_and_are_named_once(graph: dict[str, Any]):
    for name, stage in graph.items():
        code = [dep for dep in stage["deps"] if dep.endswith(".py")]
        assert code[0] == f"stages/{name}.py"
        assert len(set(stage["deps"])) == len(stage["deps"]), name


def test_every_setting_but_those_of_the_runtime_is_a_parameter_of_some_stage(graph: dict[str, Any]):
    values = YAML(typ="safe", pure=True).load(SETTINGS)
    params = [key for stage in graph.values() for key in stage.get("params", ())]
    for key in params:
        section, _, name = key.partition(".")
        assert name in values[section] if name else section in values, key
    whole = {key for key in params if "." not in key}
    assert whole == set(values) - {"runtime"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_at_most_forty_lines(stage: str):
    assert len((ROOT / f"stages/{stage}.py").read_text().splitlines()) <= 40


def test_the_settings_of_every_feature_network_are_parameters_of_the_reference(
    graph: dict[str, Any], configure: Callable[..., Config]
):
    read = {key for name in EXTRACTORS for key in inspect.signature(EXTRACTORS[name]).parameters}
    known = {f"fid.{key}" for key in read if hasattr(configure().fid, key)}
    assert "fid.inception_features" in known
    assert known <= set(graph["reference"]["params"])


def test_the_settings_that_the_page_is_made_of_are_parameters_of_its_stage(
    graph: dict[str, Any], configure: Callable[..., Config]
):
    class Noting:
        """Settings that note which of them are read."""

        read: set[str]

        def __init__(self) -> None:
            self.read = set()

        def __getattr__(self, name: str) -> object:
            self.read.add(f"generate.{name}")
            return getattr(configure().generate, name)

    settings = Noting()
    model_facts(load_checkpoint(path_of("mnist")), settings, 0)
    listed = {name for name in graph["export"]["params"] if name.startswith("generate.")}
    assert listed - settings.read == {"generate.checkpoint"}  # which file is exported
    assert settings.read <= listed
