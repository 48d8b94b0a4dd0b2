import os
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from benchmarks import against, choices, cuda, grid, processes, ranks, variance
from benchmarks.blind import by_readers, numbers, numbers_of, shuffled, torn
from benchmarks.cell import SAMPLERS as CELL_SAMPLERS
from benchmarks.choices import EVERY, SAMPLINGS, TRAININGS
from benchmarks.common import QUIET, REAL, SPEC, earlier, fit, real_and_named, save, settings
from benchmarks.contention import busy
from benchmarks.even_labels import evenly, weighted_gaussian
from benchmarks.frontier import RECIPES
from benchmarks.grid import AXES, BUDGET, cells, complete, effects, plot, rows_of, start
from benchmarks.judge import load_judge
from benchmarks.page import RESULTS, cell, table
from benchmarks.ranks import Constants, slowest
from benchmarks.samplers import COMMON, SAMPLERS
from benchmarks.scaling import exponent, point
from benchmarks.seeds import spread
from benchmarks.sensitivity import CORRUPTIONS
from benchmarks.throughput import prepared, step
from ddpm.config import Config
from ddpm.data.image_set import ImageSet, write_image_set
from ddpm.diffusion.objective import build_objective
from ddpm.evaluation.features import Features
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.evaluation.frechet import fit_gaussian, frechet_distance
from ddpm.models.checkpoint import save_checkpoint
from ddpm.training.ema import Ema
from ddpm.training.optimizers import Optimizer
from ddpm.training.state import TrainState
from ddpm.utils.devices import fitting_batch
from ddpm.utils.errors import DdpmError, MissingFile
from ddpm.utils.files import read_json, write_json
from ddpm.utils.runtime import Runtime, wanted_device
from stages.paths import RAW


@pytest.fixture(autouse=True)
def _settings_of_the_tests(workspace: Path) -> None:
    """The benchmarks read params.yaml of the working folder."""


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_the_exponent_of_a_power_law_is_its_power(power: float):
    x = [1.0, 3.0, 10.0]
    assert exponent(x, [7 * value**power for value in x]) == pytest.approx(power, abs=1e-12)


def test_the_slowest_of_several_draws_is_their_expected_maximum(rng: np.random.Generator):
    found = rng.normal(10.0, 1.0, size=20_000)
    assert slowest(found, 1) == pytest.approx(found.mean(), rel=1e-12)
    assert slowest(np.array([3.0, 1.0]), 3) == pytest.approx(7 / 8 * 3 + 1 / 8, rel=1e-12)
    assert slowest(found, 8) == pytest.approx(rng.normal(10.0, 1.0, size=(20_000, 8)).max(1).mean(), abs=0.05)


def test_a_modelled_step_is_the_sum_of_its_parts():
    constants = Constants([1.0, 1.0, 1.0, 3.0], update=0.5, latency=0.1, bandwidth=1000.0)
    alone, two, four = (constants.step(ranks, 4, 200) for ranks in (1, 2, 4))
    assert alone == {"compute_s": 6.0, "waiting_s": 0.0, "exchange_s": 0.0, "update_s": 0.5, "model_s": 6.5}
    # Two shards a rank: parts of 2 and 4 seconds; the slower of two ranks has 4 in three cases of four.
    assert two == pytest.approx(
        {"compute_s": 3.0, "waiting_s": 0.5, "exchange_s": 0.1 + 2 * 0.2, "update_s": 0.5, "model_s": 4.5}
    )
    assert four["exchange_s"] == pytest.approx(3 * (0.1 + 0.2))
    assert four["compute_s"] + four["waiting_s"] == pytest.approx(3 - 2 * (3 / 4) ** 4)


@pytest.mark.parametrize(("worker", "looks"), [(True, 5), (False, 1)])
def test_what_runs_by_dvcs_account_alone_is_queued_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, worker: bool, looks: int
):
    cell, said = ("cosine", "v", "simple"), []

    def experiments(_: Path) -> Iterator[tuple[Any, ...]]:
        said.append("look")
        ended = said.count("queue") > 1
        for seed in (1, 2):
            yield cell, seed, "success" if ended else "running", {"ddim": {"fd_mnist": 5.0}} if ended else {}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grid, "processes", lambda _, command: ["it"] * (worker and command == "queue-worker"))
    monkeypatch.setattr(grid, "experiments", experiments)
    for name, word in (("prepare", "prepare"), ("clear_queue", "clear"), ("enqueue", "queue"), ("start", "start")):
        monkeypatch.setattr(grid, name, lambda *_, word=word: said.append(word))
    monkeypatch.setattr(grid, "commit_of", lambda _: "0" * 40)
    one = ["--schedules", "cosine", "--targets", "v", "--weightings", "simple", "--seeds", "1", "2", "--poll", "0"]
    monkeypatch.setattr("sys.argv", ["grid", *one, "--json", "found.json"])
    grid.main()
    assert said.count("look") == looks + 1
    assert [word for word in said if word in ("clear", "queue")] == ["clear", "queue", "clear", "queue"]
    assert [row["fd_mnist"] for row in read_json(Path("found.json"))["rows"]] == [5.0, 5.0]


def test_processes_are_compared_with_one_of_as_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def together(config: Config, work: str, compiled: str, count: int, threads: int, size: int) -> float:
        asked.append((work, compiled, count, threads, size * (count if work == "train" else 1)))
        disturbed = 12 < len(asked) <= 24  # the second of three rounds
        return 10.0 * count * (threads**0.5) * (0.1 if disturbed else 1.0)

    monkeypatch.setattr("benchmarks.processes.together", together)
    monkeypatch.setattr("benchmarks.processes.worker_count", lambda _: 4)
    monkeypatch.setattr("sys.argv", ["processes", "--json", str(tmp_path / "found.json")])
    processes.main()
    assert len(asked) == 3 * 12
    assert {size for work, *_, size in asked if work == "train"} == {settings().train.batch_size}
    batch = fitting_batch(settings().generate.num_images, torch.device("cpu"))
    assert {size for work, *_, size in asked if work == "sample"} == {batch}
    rows = read_json(tmp_path / "found.json")["rows"]
    assert [row["against_threads"] for row in rows if row["threads"] == 4] == [1.0] * 4
    # One of one thread: 10 against the 20 of four threads; four processes: 40.
    assert {(row["processes"], row["against_threads"]) for row in rows} == {(1, 0.5), (1, 1.0), (4, 2.0)}


def test_more_channels_take_more_seconds_and_images_no_more_memory():
    few, many = (point("sample", "base_channels", n, {"generate.num_images": 60, "generate.steps": 3}) for n in (8, 96))
    assert 0 < few[0] < many[0]
    assert 0 <= few[2] <= few[1] <= many[1]


def test_a_training_step_is_measured():
    seconds, peak, taken = point("train", "batch_size", 4, {"model.base_channels": 8})
    assert 0 < seconds < 10
    assert 100 < peak < 10_000
    assert 0 <= taken < peak


def test_throughput_is_of_the_loss_that_training_uses(cpu: Runtime):
    config = settings({"model.base_channels": 8})
    loss, network = prepared(config, cpu)
    images, t = torch.zeros(16, *SPEC.shape, dtype=torch.uint8), torch.arange(0, 800, 50)
    eps = torch.randn(16, *SPEC.shape, generator=torch.Generator().manual_seed(0))
    objective = build_objective(config.diffusion, config.train)
    expected = objective.loss(objective.squared_errors(cpu.predictor(network), images, t, eps, None), t)
    assert loss(images, t, eps).item() == pytest.approx(expected.item())
    weights = [weight.clone() for weight in network.parameters()]
    average = Ema(network, 0.9)
    step(loss, (images, t, eps), Optimizer(config.train.optimizer, network, config.train), average)
    # At a learning rate of 0: an untrained network stays as fast as it was, whatever the data.
    assert all(torch.equal(before, after) for before, after in zip(weights, network.parameters(), strict=True))
    assert average.updates == 1


@pytest.mark.parametrize("name", [*TRAININGS, *SAMPLINGS])
def test_every_choice_fits_the_parameters(name: str):
    assert settings(EVERY, (TRAININGS | SAMPLINGS)[name]).generate.replicate == EVERY["generate.replicate"]


def test_the_spread_is_over_seeds_and_over_sets_of_one_seed():
    values = {1: [1.0, 2.0, 3.0], 2: [5.0, 6.0, 7.0]}
    rows = [
        {"seed": seed, "replicate": i, "fd_mnist": value, "train_seconds": 7.0}
        for seed, found in values.items()
        for i, value in enumerate(found)
    ]
    distance, seconds = spread(rows)
    assert distance == {
        "metric": "fd_mnist",
        "mean": pytest.approx(4.0),
        "std_over_seeds": pytest.approx(8**0.5),
        "std_over_replicates": pytest.approx(1.0),
    }
    assert seconds["mean"] == 7.0
    assert seconds["std_over_seeds"] == 0.0
    assert spread(rows[:1])[0] == {
        "metric": "fd_mnist", "mean": 1.0, "std_over_seeds": "–", "std_over_replicates": "–"
    }  # fmt: skip


def test_a_training_that_is_there_is_not_repeated(
    workspace: Path, digits: ImageSet, tiny: Callable[..., Config], cpu: Runtime
):
    for part in ("train", "validation"):
        write_image_set(workspace / f"data/split/{part}.npz", digits.take(np.arange(128)))
    config = tiny({"train.epochs": 1.0})
    first, results, cost = fit(config, cpu, workspace / "work")
    again = fit(config, cpu, workspace / "work")
    assert again[1:] == (results, cost)
    assert torch.equal(first.tensors["ema"]["conv_out.bias"], again[0].tensors["ema"]["conv_out.bias"])
    other = tiny({"train.epochs": 1.0, "train.lr": 0.02})
    with pytest.raises(
        DdpmError, match=r"work holds a training by other settings, code or data: delete it, or name another --work\.$"
    ):
        fit(other, cpu, workspace / "work")
    write_image_set(workspace / "data/split/train.npz", digits.take(np.arange(1, 129)))
    with pytest.raises(DdpmError, match="work holds a training by other settings, code or data"):
        fit(config, cpu, workspace / "work")
    (workspace / "work.json").unlink()
    with pytest.raises(DdpmError, match="work holds a training by other settings"):
        fit(config, cpu, workspace / "work")
    (workspace / "data/split/train.npz").unlink()
    with pytest.raises(MissingFile, match=r"^data/split/train\.npz is missing$"):
        fit(config, cpu, workspace / "work")


def test_the_judge_knows_the_digits_and_is_another_network(test_digits: ImageSet, by_classifier: Features):
    with torch.inference_mode():
        parts = torch.from_numpy(test_digits.images).split(100)
        logits = torch.cat([load_judge()(part) for part in parts]).numpy()
    wrong = logits.argmax(1) != test_digits.labels
    assert wrong.mean() <= 0.006
    assert by_classifier.probabilities is not None
    wrong_here = by_classifier.probabilities.argmax(1) != test_digits.labels
    assert 0 < (wrong & wrong_here).sum() < min(wrong.sum(), wrong_here.sum())


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_the_parameters(name: str):
    preset, changes = RECIPES[name]
    config = settings(changes, QUIET, preset=preset)
    assert config.train.preview_every == 0
    if name != "default":
        assert config != settings(QUIET)


def test_samplers_differ_from_one_another():
    assert len({settings(COMMON, changes).generate for changes in SAMPLERS.values()}) == len(SAMPLERS)


def grid_rows(seeds: tuple[int, ...] = (0, 1)) -> list[dict[str, Any]]:
    """A grid in which the distance is a product of a factor for each choice; seed 1 doubles it."""
    rows = []
    for schedule, target, seed in product(("linear", "cosine"), ("eps", "v"), seeds):
        factor = {"linear": 3.0, "cosine": 1.0}[schedule] * {"eps": 1.0, "v": 5.0}[target] * 2.0**seed
        numbers = {"ddpm": {"fd_mnist": 10 * factor}, "ddim": {"fd_mnist": 20 * factor}}
        rows += rows_of((schedule, target, "simple"), seed, numbers)
    return rows


def test_the_effects_of_a_grid_are_the_factors_of_its_choices():
    rows = effects(complete(grid_rows(), (0, 1)))
    found = {row["value"]: row["fd_mnist"] for row in rows}
    assert found["linear"] / found["cosine"] == pytest.approx(3)
    assert found["v"] / found["eps"] == pytest.approx(5)
    assert found["ddim"] / found["ddpm"] == pytest.approx(2)
    # The geometric mean of 30 · 10 · 2 of each, once for each seed, which doubles it.
    assert found["simple"] == pytest.approx(10 * (3 * 5 * 2) ** 0.5 * 1.5)
    assert {row["value"]: row["best"] for row in rows} == {
        "linear": 0, "cosine": 1, "eps": 1, "v": 0, "simple": 1, "ddpm": 1, "ddim": 0
    }  # fmt: skip
    assert all(row["std"] == pytest.approx(row["fd_mnist"] / 1.5 * 0.5**0.5) for row in rows)


def test_a_grid_of_one_seed_has_no_deviation(tmp_path: Path):
    table = complete(grid_rows((0,)), (0,))
    assert {row["std"] for row in effects(table)} == {"–"}
    assert all(row["ddpm"] == f"{float(row['ddpm']):.3g}" for row in cells(table))
    save(effects(table), tmp_path / "grid.json", {"cells": cells(table)})


def test_a_cell_of_a_grid_counts_once_it_has_all_seeds():
    rows = grid_rows() + [row for row in grid_rows((2,)) if row["target"] == "v"]
    assert [(row["schedule"], row["target"]) for row in cells(complete(rows, (0, 1)))] == [
        ("linear", "eps"),
        ("linear", "v"),
        ("cosine", "eps"),
        ("cosine", "v"),
    ]
    lacking = [row for row in rows if (row["schedule"], row["seed"]) != ("linear", 1)]
    assert cells(complete(lacking, (0, 1)))[0] == {
        "schedule": "cosine", "target": "eps", "weighting": "simple", "ddpm": "15 ± 7.1", "ddim": "30 ± 14"
    }  # fmt: skip
    assert cells(complete([], (0, 1))) == effects(complete([], (0, 1))) == []


def test_a_grid_is_drawn_whole_or_in_part(tmp_path: Path):
    for rows in (grid_rows(), [row for row in grid_rows() if (row["schedule"], row["target"]) != ("linear", "v")]):
        plot(complete(rows, (0, 1)), 1.5, tmp_path / "grid.png")
        assert Image.open(tmp_path / "grid.png").width > 1000


@pytest.mark.parametrize("cell", [*product(*AXES.values())])
def test_every_cell_of_the_grid_fits_the_parameters(cell: tuple[str, ...]):
    of_cell = settings(BUDGET, dict(zip(AXES, cell, strict=True)))
    assert len({settings(BUDGET, changes).generate for changes in CELL_SAMPLERS.values()}) == len(CELL_SAMPLERS)
    assert of_cell.generate.steps == 20


def test_rows_of_the_same_run_are_taken_up_and_others_not(tmp_path: Path):
    path = tmp_path / "rows.json"
    assert earlier(path, {"images": 5}) == []
    assert earlier(None, {"images": 5}) == []
    save([{"sampler": "ddpm", "fd_mnist": 1 / 3}], path, {"images": 5})
    assert earlier(path, {"images": 5}) == [{"sampler": "ddpm", "fd_mnist": 1 / 3}]
    assert read_json(path)["machine"]["processors"] == os.cpu_count()
    with pytest.raises(DdpmError, match=r"rows\.json is of another machine or other settings"):
        earlier(path, {"images": 6})
    path.write_text("{}")
    with pytest.raises(DdpmError, match=r"rows\.json is of another"):
        earlier(path, {})


def test_rows_are_taken_up_while_their_names_stand_for_the_same(tmp_path: Path):
    path, rows = tmp_path / "rows.json", [{"sampler": "ddim", "fd_mnist": 0.5}]
    definitions = {"sampler": {"ddim": {"generate.eta": 0.0}, "ddpm": {}}}
    save(rows, path, {"images": 5}, definitions)
    assert read_json(path)["definitions"] == {"sampler": {"ddim": {"generate.eta": 0.0}}}
    of_others = {"sampler": {"ddim": {"generate.eta": 0.0}, "ddpm": {"generate.steps": 9}, "heun": {}}}
    assert earlier(path, {"images": 5}, definitions) == earlier(path, {"images": 5}, of_others) == rows
    for changed in ({"ddim": {"generate.eta": 0.1}}, {}):
        with pytest.raises(DdpmError, match=r"rows\.json is of another machine or other settings"):
            earlier(path, {"images": 5}, {"sampler": changed})
    write_json(path, read_json(path) | {"rows": []})
    assert earlier(path, {"images": 5}, {"sampler": {"ddim": {"generate.eta": 0.1}}}) == []
    save(rows, path, {"images": 5})
    with pytest.raises(DdpmError, match=r"rows\.json is of another machine or other settings"):
        earlier(path, {"images": 5}, definitions)


@pytest.mark.parametrize("name", ["equal_time", "interval", "recipe", "variance"])
def test_the_names_in_committed_rows_stand_for_what_they_did(name: str):
    definitions = variance.DEFINITIONS if name == "variance" else choices.DEFINITIONS
    assert earlier(RESULTS / f"{name}.json", {}, definitions) == read_json(RESULTS / f"{name}.json")["rows"]


@pytest.mark.parametrize("count", [1, 129])
def test_bits_of_too_few_or_too_many_images_are_refused(
    workspace: Path, digits: ImageSet, monkeypatch: pytest.MonkeyPatch, count: int
):
    write_image_set(workspace / "data/split/test.npz", digits.take(np.arange(128)))
    monkeypatch.setattr("sys.argv", ["variance", "--images", str(count)])
    with pytest.raises(DdpmError, match=rf"^--images {count}: choose 2 to 128 of the test images\.$"):
        variance.main()


def test_an_unknown_setting_is_refused():
    with pytest.raises(DdpmError, match="unknown key"):
        settings({"train.learning_rate": np.pi})
    with pytest.raises(DdpmError, match=r"^there is no preset huge; there are baseline, "):
        settings(preset="huge")


def test_cells_are_read_easily():
    assert [cell(value) for value in (0.123456, 1234.5, 12.0, 5, 60_000, "ddpm", 98.76)] == [
        "0.123",
        "1,234",
        "12",
        "5",
        "60,000",
        "ddpm",
        "98.8",
    ]
    assert table([{"a": 1, "b": 0.5}, {"a": 2, "b": 1.0}]) == "| a | b |\n| --- | --- |\n| 1 | 0.5 |\n| 2 | 1 |"


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_distance_grows_with_every_level_of_corruption(name: str):
    rows = [row for row in read_json(RESULTS / "sensitivity.json")["rows"] if row["corruption"] == name]
    distances = [row["fd_mnist"] for row in rows]
    assert [row["level"] for row in rows] == list(CORRUPTIONS[name][1])
    assert all(after > before for before, after in pairwise(distances))
    assert distances[-1] > 20 * distances[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_shows_in_the_distance_here_and_now(
    name: str, test_digits: ImageSet, by_classifier: Features, rng: np.random.Generator
):
    corrupt, levels, _ = CORRUPTIONS[name]
    known, some = fit_gaussian(by_classifier.values[5000:]), test_digits.take(np.arange(1000))
    extractor = MnistExtractor(torch.device("cpu"))
    found = []
    for level in (levels[0], levels[2], levels[4]):
        images = corrupt(some, level, rng)
        assert images.shape == some.images.shape
        found.append(frechet_distance(known, fit_gaussian(extractor.features(images, "test").values)))
    assert found[0] < found[1] < found[2]


def test_a_check_of_cuda_that_fails_is_said_and_the_others_are_done(
    raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(bench: cuda.Bench) -> dict[str, object]:
        """Is true."""
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(cuda, "CHECKS", {"broken": broken, "noise": cuda.CHECKS["noise"]})
    monkeypatch.setattr("sys.argv", ["cuda", "--rehearse", "--mnist", str(raw)])
    assert cuda.main() == 1
    said = capsys.readouterr().out
    assert "RuntimeError: the device is gone" in said
    assert '"holds": true' in said


def test_checks_of_cuda_for_which_there_is_no_time_are_named(
    raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def slow(bench: cuda.Bench) -> dict[str, object]:
        """Is true."""
        time.sleep(1.0)
        return {"holds": True}

    monkeypatch.setattr(cuda, "CHECKS", {"slow": slow, "noise": cuda.CHECKS["noise"], "other": slow})
    told = ["--rehearse", "--mnist", str(raw), "--minutes", "0.015", "--json", "found.json", "--page", "found.md"]
    monkeypatch.setattr("sys.argv", ["cuda", *told])
    assert cuda.main() == 1
    assert capsys.readouterr().err.endswith("error: time was over before noise, other: give more --minutes.\n")
    assert list(read_json(Path("found.json"))["checks"]) == ["slow"]
    assert "Time was over before: noise, other." in Path("found.md").read_text()


def test_the_checks_of_cuda_hold_in_a_rehearsal_and_need_no_more_than_is_named(raw: Path, root: Path):
    script = textwrap.dedent(
        """
        import ast
        import sys
        from pathlib import Path

        for name in ("dvc", "pandas", "torchvision", "matplotlib", "pytorch_fid"):
            sys.modules[name] = None  # importing it fails
        from benchmarks import cuda

        status = cuda.main()
        named = {name.partition(".")[0] for name in cuda.NEEDED}
        for module, file in [(name, getattr(each, "__file__", None)) for name, each in sys.modules.items() if each]:
            if module.partition(".")[0] in ("ddpm", "benchmarks") and file:
                # What is imported only when something is called for is not needed by what was run.
                for node in ast.parse(Path(file).read_text()).body:
                    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                    names += [node.module] if isinstance(node, ast.ImportFrom) else []
                    for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names:
                        assert top in named | {"ddpm", "benchmarks"}, f"{file} imports {top}"
        sys.exit(status)
        """
    )
    told = ["--rehearse", "--mnist", str(raw), "--json", "found.json", "--page", "found.md"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", script, *told], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_json(Path("found.json"))
    assert list(found["checks"]) == list(cuda.CHECKS)
    assert found["device"]["rehearsal"]
    assert found["checks"]["same_bits"]["stopped"].startswith("stopped at step ")
    assert all(name in Path("found.md").read_text() for name in cuda.CHECKS)


def test_a_check_of_cuda_that_hangs_is_broken_off(raw: Path, root: Path):
    script = textwrap.dedent(
        """
        import sys
        import time
        from benchmarks import cuda

        def hanging(bench):
            time.sleep(600.0)

        cuda.CHECKS = {"noise": cuda.CHECKS["noise"], "hanging": hanging, "other": hanging}
        cuda.GRACE = 0.0
        sys.exit(cuda.main())
        """
    )
    told = ["--rehearse", "--mnist", str(raw), "--minutes", "0.5", "--json", "found.json"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", script, *told], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "in hanging" in done.stderr
    found = read_json(Path("found.json"))
    assert found["checks"]["noise"]["holds"]
    assert found["skipped"] == ["hanging", "other"]


@pytest.mark.parametrize("compiles", [True, False])
def test_without_a_compiler_the_checks_of_cuda_train_uncompiled(
    raw: Path, monkeypatch: pytest.MonkeyPatch, compiles: bool
):
    monkeypatch.setattr("ddpm.utils.runtime.cuda_devices", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_arch_list", list)
    monkeypatch.setattr("ddpm.utils.runtime.fast_precision", lambda _: torch.bfloat16)
    monkeypatch.setattr("ddpm.utils.runtime._compile_failure", lambda _: "" if compiles else "no compiler")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA card")
    bench = cuda.Bench(raw, rehearse=False)
    assert bench.device.type == "cuda"
    assert bench.runtime.describe()["compiled"] == compiles


def test_the_model_of_ranks_is_of_the_cpu_where_there_is_a_gpu_too(monkeypatch: pytest.MonkeyPatch):
    asked: list[torch.device] = []

    def measured(config: Config, *_: int) -> Constants:
        asked.append(wanted_device(config.runtime.device))
        return Constants([1.0], update=1.0, latency=1.0, bandwidth=1.0)

    def measured_step(config: Config, _: int) -> float:
        asked.append(wanted_device(config.runtime.device))
        return 1.0

    monkeypatch.setattr("ddpm.utils.runtime.cuda_devices", lambda: 1)
    monkeypatch.setattr("benchmarks.ranks.measured", measured)
    monkeypatch.setattr("benchmarks.ranks.measured_step", measured_step)
    monkeypatch.setattr("sys.argv", ["ranks", "--shards", "1"])
    ranks.main()
    assert asked == 2 * [torch.device("cpu")]


def test_waits_for_the_device_are_counted_in_the_steps_of_training_alone(raw: Path, monkeypatch: pytest.MonkeyPatch):
    bench = cuda.Bench(raw, rehearse=True)
    bench.device = torch.device("cuda")
    modes: list[str] = []

    def wait(where: str) -> None:
        if modes[-1:] == ["warn"]:
            warnings.warn(f"called a synchronizing CUDA operation {where}", stacklevel=1)

    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", modes.append)
    advance, save_all = TrainState.advance, save_checkpoint
    monkeypatch.setattr(TrainState, "advance", lambda *given: (wait("in a step"), advance(*given))[1])
    monkeypatch.setattr(
        "ddpm.training.monitor.save_checkpoint", lambda *given, **named: (wait("at the end"), save_all(*given, **named))
    )
    found = cuda.no_waiting(bench)
    assert modes == ["warn", "default", "default"]
    assert not found["holds"]
    assert found["waits_a_step"] == pytest.approx(1.0, abs=0.02)


def test_the_benchmark_of_cuda_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["cuda"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cuda.main() == 2
    assert "PyTorch finds no CUDA device here" in capsys.readouterr().err
    monkeypatch.setattr(cuda, "NEEDED", ("torch", "no_such_package", "no.such"))
    assert cuda.main() == 2
    assert "missing: no_such_package, no.such." in capsys.readouterr().err


def test_busy_processes_are_busy_inside_and_gone_after_it():
    before = set(psutil.Process().children())
    with busy(2):
        started = set(psutil.Process().children()) - before
        assert len(started) == 2
        deadline = time.monotonic() + 20
        while min(process.cpu_times().user for process in started) < 0.05:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert set(psutil.Process().children()) == before


def test_a_pipeline_that_was_stopped_is_timed_from_nothing_again(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    def clone(_: str, folder: Path, __: Path) -> None:
        for path in (folder / ".git/HEAD", folder / "dvc.lock"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def pipeline(_: tuple[str, ...], *, cwd: Path, **__: object) -> "subprocess.CompletedProcess[str]":
        files = {path.relative_to(cwd).as_posix() for path in cwd.rglob("*") if path.is_file()}
        assert files == {".git/HEAD", f"{RAW.as_posix()}/images"}
        for path in against.FILES:
            write_json(cwd / path, dict.fromkeys(against.KEYS, 1.0))
        return subprocess.CompletedProcess((), ended.pop())

    (workspace / RAW).mkdir(parents=True)
    (workspace / RAW / "images").touch()
    ended, folder = [0, 1], workspace / "work/1234567"
    monkeypatch.setattr("tools.clone", clone)
    monkeypatch.setattr("subprocess.run", pipeline)
    with pytest.raises(DdpmError, match="the pipeline of 1234567890 did not end well"):
        against.repro("1234567890", folder)
    clone("", Path(f"{folder}.part"), Path())  # as of a killed one
    Path(f"{folder}.part/left").touch()
    row = against.repro("1234567890", folder)
    assert row == {"commit": "1234567", "repro_seconds": row["repro_seconds"], **dict.fromkeys(against.KEYS, 1.0)}
    assert ended == []
    assert against.repro("1234567890", folder) == row
    assert list(folder.parent.iterdir()) == [folder]


def test_even_labels_are_as_frequent_as_they_are_wanted_and_each_image_is_drawn_once(rng: np.random.Generator):
    labels, frequencies = rng.integers(0, 7, 5000), np.array([0.1, 0.2, 0.05, 0.15, 0.2, 0.2, 0.1])
    chosen = evenly(labels, frequencies, 1000, rng)
    assert len(set(chosen.tolist())) == 1000
    counts = np.bincount(labels[chosen], minlength=7)
    assert np.abs(counts - 1000 * frequencies).max() < 2
    # Of as many random ones some label differs by far more.
    assert np.abs(np.bincount(labels[:1000], minlength=7) - 1000 * frequencies).max() > 10
    assert np.abs(np.diff(labels[chosen])).mean() > 1  # in random order


def test_a_weighted_gaussian_is_unbiased_for_independent_images(rng: np.random.Generator):
    features = rng.normal(size=(400, 3))
    equal, plain = weighted_gaussian(features, np.full(400, 0.3)), fit_gaussian(features)
    assert np.allclose(equal.mean, plain.mean)
    assert np.allclose(equal.covariance, plain.covariance)
    weights = np.array([1.0, 2.0, 7.0])
    found = [weighted_gaussian(rng.normal(size=(3, 2)), weights).covariance for _ in range(20_000)]
    assert np.allclose(np.mean(found, 0), np.eye(2), atol=0.05)


def drawn(*strokes: tuple[int, int, int, int]) -> np.ndarray:
    """White bars from row to row and from column to column on black: uint8 [1, 28, 28]."""
    image = np.zeros((1, 28, 28), np.uint8)
    for top, bottom, left, right in strokes:
        image[0, top:bottom, left:right] = 255
    return image


def test_a_stroke_is_torn_where_it_has_two_parts_and_not_by_specks_or_corners():
    whole = drawn((4, 24, 13, 15))
    corner = drawn((4, 14, 13, 15), (14, 24, 15, 17))
    gap = drawn((4, 13, 13, 15), (15, 24, 13, 15))
    bridged = gap + drawn((13, 15, 13, 15)) // 2
    faint = gap + drawn((13, 15, 13, 15)) // 5
    speck = drawn((4, 24, 13, 15), (20, 21, 3, 6))
    blot = drawn((4, 24, 13, 15), (20, 22, 3, 5))
    found = torn(np.stack([whole, corner, gap, bridged, faint, speck, blot, np.zeros_like(whole)]))
    assert found.tolist() == [False, False, True, False, True, False, True, False]


def test_real_digits_are_seldom_torn(test_digits: ImageSet):
    assert 0.005 < torn(test_digits.images).mean() < 0.03


def test_shuffled_images_keep_their_sets_and_another_seed_has_another_order():
    sets = {REAL: np.zeros((50, 1, 4, 4), np.uint8), "generated": np.ones((60, 1, 4, 4), np.uint8)}
    images, names = shuffled(sets, 40, 1)
    assert np.array_equal(images[:, 0, 0, 0] == 1, names == "generated")
    assert (names == REAL).sum() == 40 == len(names) / 2
    assert np.array_equal(names, shuffled(sets, 40, 1)[1])
    assert not np.array_equal(names, shuffled(sets, 40, 2)[1])


def test_what_readers_found_is_counted_by_set_and_compared_with_the_real_digits():
    names = np.array([REAL, "a", "b"] * 100, dtype=object)
    found = {"one": np.arange(1, 31), "two": np.arange(2, 300, 3)[:50], "three": np.array([], int)}
    rows = by_readers(names, found)
    assert [(row["reader"], row["images"], row["broken"]) for row in rows] == [
        *(("one", REAL, 10), ("one", "a", 10), ("one", "b", 10)),
        *(("two", REAL, 0), ("two", "a", 50), ("two", "b", 0)),
        *(("three", REAL, 0), ("three", "a", 0), ("three", "b", 0)),
    ]
    assert all(row["count"] == 100 and row["broken_fraction"] == row["broken"] / 100 for row in rows)
    assert rows[1]["p"] == pytest.approx(1)
    assert rows[5]["p"] == pytest.approx(1)
    # That all of 50 broken ones among 200 are of the one half, or all of the other.
    assert rows[4]["p"] == pytest.approx(2 * comb(100, 50) / comb(200, 50), rel=1e-9)


@pytest.mark.parametrize("text", ["0", "1, 2 41", "3 x", "-1", "1.5"])
def test_a_number_of_no_image_is_refused(tmp_path: Path, text: str):
    (tmp_path / "reader.txt").write_text(text)
    with pytest.raises(DdpmError, match=r"reader.txt: .+ is no number of an image, 1 to 40"):
        numbers(tmp_path / "reader.txt", 40)


def test_numbers_of_a_reader_stand_in_any_order_once_or_twice(tmp_path: Path):
    (tmp_path / "reader.txt").write_text("12, 3\n40 3\n")
    assert numbers(tmp_path / "reader.txt", 40).tolist() == [3, 12, 40]
    (tmp_path / "reader.txt").write_text("")
    assert numbers(tmp_path / "reader.txt", 40).tolist() == []


def test_two_files_of_one_reader_are_refused(tmp_path: Path):
    one, two, other = tmp_path / "a/one.txt", tmp_path / "b/one.txt", tmp_path / "b/other.txt"
    for number, path in enumerate((one, two, other), 1):
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(number))
    assert {name: found.tolist() for name, found in numbers_of([one, other], 40).items()} == {"one": [1], "other": [3]}
    with pytest.raises(DdpmError, match=r"a/one\.txt and .*b/one\.txt name the same reader: rename one of them"):
        numbers_of([one, two], 40)


@pytest.mark.parametrize("named", [["default"], ["=data"], ["a="], ["a=b", "a=c"], [f"{REAL}=data"]])
def test_images_without_a_name_of_their_own_are_refused(named: list[str]):
    with pytest.raises(DdpmError, match=rf"^{named[-1]}: name images as NAME=PATH, each by a name of its own\.$"):
        real_and_named(named)


def test_a_grid_whose_workers_cannot_be_started_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(DdpmError, match=r"queue start --jobs 2` failed: .*not inside of a DVC repository"):
        start(tmp_path, 2)
