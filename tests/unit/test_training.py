import ast
import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ddpm.config import Config
from ddpm.data.image_set import ImageSet, normalize
from ddpm.diffusion.objective import Objective, build_objective
from ddpm.diffusion.process import q_sample, v_from
from ddpm.diffusion.schedule import build_schedule
from ddpm.evaluation.early import EarlyDistance
from ddpm.models.build import build_network
from ddpm.models.checkpoint import load_checkpoint, restore_network, save_checkpoint
from ddpm.models.conditioning import Conditioning
from ddpm.training.batch import Batches
from ddpm.training.loop import train
from ddpm.training.loss_aware import LossAware
from ddpm.training.monitor import Monitor
from ddpm.training.optimizers import lr_factor
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe, TrainState
from ddpm.training.validation import FixedGrid
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import write_json
from ddpm.utils.images import read_pngs
from ddpm.utils.resume import FINISHED
from ddpm.utils.runtime import Runtime

OUTPUTS = ("last.safetensors", "best.safetensors", "log.csv", "validation.csv")
DROPOUT = {"model.dropout": 0.2}
# Of so few times each has its ten losses before the run ends.
LOSS_AWARE = {
    "train.time_density": "loss_aware",
    "train.weighting": "vlb",
    "diffusion.timesteps": 24,
    "generate.steps": 10,
}
TOOLBOX = {
    "model.network": "dit",
    "model.self_conditioning": True,
    "model.learned_variance": True,
    "train.offset_noise": 0.1,
    "diffusion.schedule": "flow",
    "diffusion.target": "velocity",
    "train.preview_every": 10,
    "train.posthoc_snapshots": 3,
}
MEASURED = {"train.distance_every": 6}
NEVER_LOGGED = {"train.log_every": 5000, "train.validate_every": 5000}

Run = Callable[..., dict[str, Any]]


class Killed(BaseException):
    """The end of the process, as far as the training can tell."""


class DoomedFolder(RunFolder):
    """A run folder in which a log row of a certain step ends the run."""

    step = 0

    def write_csv(self, name: str, rows: Any) -> None:  # noqa: ANN401
        super().write_csv(name, rows)
        if name == "log.csv" and rows[-1]["step"] == self.step:
            raise Killed


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of a training step (counted from 1), once."""
    advance, left = TrainState.advance, [step]

    def interrupted(state: TrainState, *values: Any) -> None:  # noqa: ANN401
        advance(state, *values)
        if left == [state.step]:
            left.clear()
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainState, "advance", interrupted)


@pytest.fixture(scope="module")
def run(digits: ImageSet, tiny: Callable[..., Config], cpu: Runtime) -> Run:
    """Train on 512 digits, 20 steps by default, in FOLDER/out with FOLDER/kept; return the results."""
    training, validation = digits.take(np.arange(512)), digits.take(np.arange(1000, 1064))

    def start(
        folder: Path, changes: dict[str, Any] | None = None, kind: type[RunFolder] = RunFolder, every: float = 1e9
    ) -> dict[str, Any]:
        config = tiny(changes or {})
        recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
        with kind(folder / "out", folder / "kept") as place:
            return train(
                recipe, training, validation, cpu, place, every, distance=EarlyDistance(training, config.seed)
            )[0]

    return start


@pytest.fixture(scope="module")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """The folder of a run with these changes that nothing disturbed, trained at the first call."""
    folders: dict[str, Path] = {}

    def folder_of(changes: dict[str, Any]) -> Path:
        if str(changes) not in folders:
            folders[str(changes)] = tmp_path_factory.mktemp("undisturbed")
            run(folders[str(changes)], changes)
        return folders[str(changes)]

    return folder_of


Undisturbed = Callable[[dict[str, Any]], Path]


def rows(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "out" / "last.safetensors").tensors["weights"]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_same_outputs(a: Path, b: Path) -> None:
    snapshots = [path.relative_to(a / "out") for path in (a / "out" / "posthoc").glob("*")]
    for name in (*OUTPUTS, *snapshots):
        assert (a / "out" / name).read_bytes() == (b / "out" / name).read_bytes(), name


@pytest.mark.parametrize("changes", [{}, DROPOUT | {"train.optimizer": "adamw"}], ids=["muon", "adamw, dropout"])
def test_two_runs_are_the_same_to_the_last_bit(
    run: Run, undisturbed: Undisturbed, tmp_path: Path, changes: dict[str, Any]
):
    run(tmp_path, changes)
    assert_same_outputs(undisturbed(changes), tmp_path)


def test_another_seed_is_another_run(run: Run, undisturbed: Undisturbed, tmp_path: Path):
    run(tmp_path, {"seed": 1})
    assert not equal(weights(undisturbed({})), weights(tmp_path))


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (1, DROPOUT),
        (4, {}),
        (5, DROPOUT),
        (7, NEVER_LOGGED),
        (16, {"train.optimizer": "adamw"}),
        (19, DROPOUT),
        (17, LOSS_AWARE),
        (7, TOOLBOX),
    ],
)
def test_a_run_stopped_at_any_step_resumes_to_the_same_bits(
    run: Run,
    undisturbed: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    changes: dict[str, Any],
):
    expected = undisturbed(changes)
    signal_at(monkeypatch, step)
    with pytest.raises(SystemExit, match=f"^stopped at step {step} of 20; the next `dvc repro` resumes there"):
        run(tmp_path, changes)
    assert not (tmp_path / "out" / "last.safetensors").exists()
    run(tmp_path, changes)
    assert_same_outputs(expected, tmp_path)


def test_ctrl_c_is_answered_at_once_and_a_resumed_run_says_from_where(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    said = []
    signal_at(monkeypatch, 7, signal.SIGINT)
    after_step = Monitor.after_step

    def listening(monitor: Monitor, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        said.append("stopping after this step; once more stops at once" in capfd.readouterr().err)
        after_step(monitor, *arguments, **named)

    monkeypatch.setattr(Monitor, "after_step", listening)
    with pytest.raises(SystemExit, match="stopped at step 7 of 20"):
        run(tmp_path, NEVER_LOGGED)
    assert said == [False] * 6 + [True]
    run(tmp_path, NEVER_LOGGED)
    assert said[7:] == [False] * 13


def test_a_signal_at_the_last_step_stops_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    signal_at(monkeypatch, 20)
    assert run(tmp_path)["steps"] == 20


def test_a_resumed_run_says_from_where(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    signal_at(monkeypatch, 3)
    with pytest.raises(SystemExit):
        run(tmp_path)
    run(tmp_path)
    assert f"resuming from step 3 of 20, saved in {tmp_path / 'kept'}" in capfd.readouterr().out


def test_a_damaged_state_ends_the_run_with_what_to_delete(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    signal_at(monkeypatch, 3)
    with pytest.raises(SystemExit):
        run(tmp_path)
    state = tmp_path / "kept" / "state.safetensors"
    content = state.read_bytes()
    for harmed in (content[:-1] + bytes([content[-1] ^ 1]), content[:100], b""):
        state.write_bytes(harmed)
        with pytest.raises(DdpmError, match=r"state\.safetensors.*: delete the folder \S+kept to start that run again"):
            run(tmp_path)


def test_a_run_killed_between_saves_resumes_to_the_same_bits(run: Run, undisturbed: Undisturbed, tmp_path: Path):
    for step, every in ((12, 1e-9), (20, 1e9)):
        with pytest.raises(Killed):
            run(tmp_path, kind=type("Folder", (DoomedFolder,), {"step": step}), every=every)
        assert load_checkpoint(tmp_path / "kept" / "state.safetensors").metadata["step"] == 11
    run(tmp_path)
    assert_same_outputs(undisturbed({}), tmp_path)


@pytest.mark.parametrize("again", [[0.6, 0.7, 0.7, 0.7], [0.6, 0.45, 0.7, 0.7]], ids=["worse", "better"])
def test_the_best_checkpoint_is_never_of_steps_that_a_kill_undid(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: list[float]
):
    losses = iter([0.9, 0.8, 0.5, 0.4, 0.3, *again])
    summarize = FixedGrid.summarize
    monkeypatch.setattr(FixedGrid, "summarize", lambda *given: summarize(*given) | {"val_loss": next(losses)})
    changes = {"train.validate_every": 3, "train.log_every": 1}
    best = tmp_path / "out" / "best.safetensors"
    for step, every in ((12, 1e-9), (16, 1e9)):
        with pytest.raises(Killed):
            run(tmp_path, changes, type("Folder", (DoomedFolder,), {"step": step}), every)
        assert load_checkpoint(tmp_path / "kept" / "state.safetensors").metadata["step"] == 11
    assert load_checkpoint(best).metadata == {"step": 15, "seed": 3407, "val_loss": 0.3}
    assert set(load_checkpoint(best).tensors) <= {"ema", "guide"}  # not what only a resumed run needs
    with RunFolder(tmp_path / "out", tmp_path / "kept"):
        assert load_checkpoint(best).metadata["step"] == 9
    results = run(tmp_path, changes)
    expected = (15, 0.45) if min(again) < 0.5 else (9, 0.5)
    assert (results["best_step"], results["best_val_loss"]) == expected
    assert (load_checkpoint(best).metadata["step"], load_checkpoint(best).metadata["val_loss"]) == expected


def test_between_a_best_checkpoint_and_the_next_save_the_one_before_is_kept(run: Run, tmp_path: Path):
    class Doomed(RunFolder):
        def write(self, name: str, *given: Any, **named: Any) -> None:  # noqa: ANN401
            super().write(name, *given, **named)
            if name == "best.safetensors" and load_checkpoint(self.output / name).metadata["step"] == 9:
                raise Killed

    with pytest.raises(Killed):
        run(tmp_path, {"train.validate_every": 3}, Doomed, 1e-9)
    with RunFolder(tmp_path / "out", tmp_path / "kept") as folder:
        assert load_checkpoint(folder.state).metadata["best_step"] == 6
        found = load_checkpoint(tmp_path / "out" / "best.safetensors")
        assert found.metadata["step"] == 6
        # Of several processes the one that writes has a folder of its own, which it does not enter.
        undone = replace(found, metadata=found.metadata | {"step": 9})
        own = RunFolder(tmp_path / "out", tmp_path / "kept")
        own.write("best.safetensors", partial(save_checkpoint, checkpoint=undone))
        assert load_checkpoint(tmp_path / "out" / "best.safetensors").metadata["step"] == 9
    with RunFolder(tmp_path / "out", tmp_path / "kept"):
        assert load_checkpoint(tmp_path / "out" / "best.safetensors").metadata["step"] == 6


@pytest.mark.parametrize("then", ["saved", "finished"])
def test_the_best_checkpoint_of_a_saved_or_finished_run_stays(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
):
    losses = iter([0.9, 0.5, 0.4, 0.3])
    summarize = FixedGrid.summarize
    monkeypatch.setattr(FixedGrid, "summarize", lambda *given: summarize(*given) | {"val_loss": next(losses)})
    changes = {"train.validate_every": 5, "train.log_every": 1}
    with pytest.raises(Killed):
        run(tmp_path, changes, type("Folder", (DoomedFolder,), {"step": 12}), 1e-9)
    if then == "saved":
        with pytest.raises(Killed):
            run(tmp_path, changes, type("Folder", (DoomedFolder,), {"step": 18}), 1e-9)
    else:
        run(tmp_path, changes)
        write_json(tmp_path / "kept" / FINISHED, {"stage": "train"})
    with RunFolder(tmp_path / "again", tmp_path / "kept"):
        found = load_checkpoint(tmp_path / "again" / "best.safetensors").metadata
    assert found["step"] == (15 if then == "saved" else 20)


def test_what_a_killed_run_has_made_is_shown_again_where_the_outputs_were_deleted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    signal_at(monkeypatch, 8)
    with pytest.raises(SystemExit):
        run(tmp_path)
    shown = {name: (tmp_path / "out" / name).read_bytes() for name in OUTPUTS if name != "last.safetensors"}
    for name in shown:
        (tmp_path / "out" / name).unlink()
    with RunFolder(tmp_path / "out", tmp_path / "kept"):
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == shown


def test_handlers_of_signals_are_given_back(run: Run, tmp_path: Path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("train.preview_every", {}),
        ("train.preview_every", DROPOUT),
        ("train.validate_every", DROPOUT),
        ("train.log_every", {}),
        ("train.distance_every", {}),
        ("train.distance_every", DROPOUT),
    ],
)
def test_watching_a_run_does_not_change_it(
    run: Run, undisturbed: Undisturbed, tmp_path: Path, key: str, changes: dict[str, Any]
):
    run(tmp_path, changes | {key: 3})
    assert equal(weights(undisturbed(changes)), weights(tmp_path))
    if key != "train.validate_every":
        assert rows(tmp_path / "out" / "validation.csv") == rows(undisturbed(changes) / "out" / "validation.csv")


def test_times_follow_the_losses_once_each_has_ten(undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch):
    densities: list[torch.Tensor] = []
    current = LossAware.current

    def watched(times: LossAware) -> Objective:
        densities.append(times.density())
        return current(times)

    monkeypatch.setattr(LossAware, "current", watched)
    undisturbed(LOSS_AWARE | {"train.log_every": 7})
    assert torch.equal(densities[0], torch.full((24,), 1 / 24, dtype=torch.float64))
    assert densities[-1].max() > 2 * densities[-1].min()


def test_offset_noise_adds_one_value_to_every_channel(tiny: Callable[..., Config], digits: ImageSet, cpu: Runtime):
    found = []
    for strength in (0.0, 0.5):
        config = tiny({"train.offset_noise": strength})
        recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
        some = torch.from_numpy(digits.images[:64])
        batch = Batches(recipe, some, None)(0, build_objective(config.diffusion, config.train))
        found.append(batch.noise(range(2000)))
    added = (found[1] - found[0]).flatten(1)
    assert added.std(1).max() < 1e-6
    assert added[:, 0].std().item() == pytest.approx(0.5, rel=0.05)
    assert added[:, 0].mean().item() == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.network": "dit", "model.base_channels": 32},
        {"diffusion.schedule": "flow", "diffusion.target": "velocity"},
        {"diffusion.target": "mean"},
        {"model.self_conditioning": True},
        {"model.learned_variance": True, "train.time_density": "uniform"},
        {"train.weighting": "vlb", "train.time_density": "loss_aware"},
        {"diffusion.zero_terminal_snr": True, "diffusion.shift": 2.0},
    ],
    ids=lambda changes: ", ".join(map(str, changes.values())),
)
def test_the_loss_falls_with_each_idea(run: Run, tmp_path: Path, changes: dict[str, Any]):
    run(tmp_path, changes | {"train.epochs": 6.0, "train.lr": 0.01, "train.validate_every": 16})
    losses = [row["val_loss"] for row in rows(tmp_path / "out" / "validation.csv")]
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_labels_of_alike_clusters_begin_alike(
    digits: ImageSet, tiny: Callable[..., Config], cpu: Runtime, network: str
):
    config = tiny({"model.clusters": 6, "model.network": network, "model.base_channels": 32, "model.patch_size": 4})
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    state = TrainState(recipe, digits.take(np.arange(1500)), cpu)
    rows, centroids = state.network.label_embedding.weight.detach(), state.conditioning.centroids
    assert centroids is not None
    for of_class, points in zip(rows[:-1].split(6), centroids, strict=True):
        distances = torch.stack([torch.pdist(of_class), torch.pdist(points)])
        assert distances.corrcoef()[0, 1] > 0.5


def test_the_first_weights_are_computed_in_one_thread(
    digits: ImageSet, tiny: Callable[..., Config], cpu: Runtime, monkeypatch: pytest.MonkeyPatch
):
    # More threads multiply matrices in another order, on some processors and for some sizes only.
    spread, threads = Conditioning.spread, list[int]()

    def watched(conditioning: Conditioning, embedding: torch.Tensor) -> None:
        threads.append(torch.get_num_threads())
        spread(conditioning, embedding)

    monkeypatch.setattr(Conditioning, "spread", watched)
    config, before = tiny({"model.clusters": 2}), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        TrainState(Recipe(config.model, config.diffusion, config.train, config.seed), digits.take(np.arange(512)), cpu)
        assert (threads, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(before)


def test_the_loss_falls(run: Run, tmp_path: Path):
    run(tmp_path, {"train.epochs": 12.0, "train.lr": 0.01, "train.validate_every": 16})
    losses = [row["val_loss"] for row in rows(tmp_path / "out" / "validation.csv")]
    assert losses[-1] < 0.9 * losses[0]
    log = [row["loss"] for row in rows(tmp_path / "out" / "log.csv")]
    assert np.mean(log[-4:]) < 0.75 * log[0]


def test_the_first_loss_of_a_network_that_predicts_zero_is_the_variance_of_eps(run: Run, tmp_path: Path):
    run(
        tmp_path, {"diffusion.target": "eps", "train.weighting": "simple", "train.log_every": 1, "train.epochs": 0.0625}
    )
    assert [row["loss"] for row in rows(tmp_path / "out" / "log.csv")] == [pytest.approx(1, abs=0.03)]


@pytest.mark.parametrize("changes", [{}, DROPOUT], ids=["default", "dropout"])
def test_validation_is_the_loss_of_the_averaged_network_as_it_samples(
    undisturbed: Undisturbed, digits: ImageSet, tiny: Callable[..., Config], changes: dict[str, Any]
):
    weighed = {"train.weighting": "min_snr", "train.log_sigma_mean": 0.5, "train.log_sigma_std": 1.5}
    folder = undisturbed(changes | weighed) / "out"
    found = rows(folder / "validation.csv")[-1]
    checkpoint = load_checkpoint(folder / "last.safetensors")
    network = restore_network(checkpoint, "last")
    alpha_bar = build_schedule(checkpoint.diffusion).alpha_bar.float()[:, None, None, None]
    grid = FixedGrid(
        torch.from_numpy(digits.images[1000:1064]), torch.from_numpy(digits.labels[1000:1064]), 100, 48, 3407
    )
    x_0 = normalize(grid.images)
    prediction = network(q_sample(x_0, alpha_bar[grid.t], grid.eps), grid.t, grid.labels)
    errors = ((prediction - v_from(x_0, alpha_bar[grid.t], grid.eps)) ** 2).mean((1, 2, 3)).double()
    weights = build_objective(checkpoint.diffusion, tiny(changes | weighed).train).grid_weights[grid.t].double()
    assert found["val_mse"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert found["val_loss"] == pytest.approx((weights * errors).mean().item(), rel=1e-5)


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_training_with_dropout_and_validation_are_one_compiled_network(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
):
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(Runtime, "compile", lambda _, function: torch.compile(function, backend=counter, dynamic=False))
    torch._dynamo.reset()
    run(tmp_path, DROPOUT | {"model.network": network, "train.epochs": 0.375})
    assert len(rows(tmp_path / "out" / "validation.csv")) == 2
    assert counter.frame_count == 1


def test_the_log_has_a_row_every_so_many_steps_and_one_at_the_end(
    run: Run, tmp_path: Path, tiny: Callable[..., Config]
):
    run(tmp_path, {"train.log_every": 3})
    log = rows(tmp_path / "out" / "log.csv")
    config = tiny().train
    assert [row["step"] for row in log] == [3, 6, 9, 12, 15, 18, 20]
    assert [row["epoch"] for row in log] == [row["step"] / 16 for row in log]
    assert [row["lr"] for row in log] == [
        pytest.approx(config.lr * lr_factor(int(row["step"]) - 1, 20, 2, config.lr_decay)) for row in log
    ]
    assert [row["step"] for row in rows(tmp_path / "out" / "validation.csv")] == [5, 10, 15, 20]


def test_logged_losses_are_means_over_the_steps_between(run: Run, undisturbed: Undisturbed, tmp_path: Path):
    run(tmp_path, {"train.log_every": 1})
    each = [row["loss"] for row in rows(tmp_path / "out" / "log.csv")]
    found = [row["loss"] for row in rows(undisturbed({}) / "out" / "log.csv")]
    np.testing.assert_allclose(found, np.reshape(each, (5, 4)).mean(1), rtol=1e-5)


def test_best_is_the_step_of_the_lowest_validation_loss(run: Run, tmp_path: Path):
    results = run(tmp_path, {"train.lr": 0.02})
    validation = rows(tmp_path / "out" / "validation.csv")
    lowest = min(validation, key=lambda row: row["val_loss"])
    best = load_checkpoint(tmp_path / "out" / "best.safetensors")
    assert set(best.tensors) == {"ema", "guide"}
    assert (results["best_step"], results["best_val_loss"]) == (lowest["step"], lowest["val_loss"])
    assert (best.metadata["step"], best.metadata["val_loss"]) == (lowest["step"], lowest["val_loss"])
    assert results["val_loss"] == validation[-1]["val_loss"]


def test_results_describe_the_run(run: Run, tmp_path: Path, tiny: Callable[..., Config], digits: ImageSet):
    results = run(tmp_path)
    parameters = sum(weight.numel() for weight in build_network(tiny().model, digits.spec).parameters())
    assert (results["steps"], results["images_seen"], results["parameters"]) == (20, 640, parameters)


def test_previews_are_grids_of_64_images(run: Run, tmp_path: Path):
    run(tmp_path, {"train.preview_every": 10})
    folder = tmp_path / "out" / "previews"
    assert sorted(path.name for path in folder.iterdir()) == ["10.png", "20.png"]
    assert read_pngs(folder, 1).shape == (2, 1, *(2 * (8 * 30 - 2),) * 2)


def test_early_distances_have_a_row_every_so_many_steps_and_one_at_the_end(undisturbed: Undisturbed):
    found = rows(undisturbed(MEASURED) / "out" / "previews/distance.csv")
    assert [row["step"] for row in found] == [6, 12, 18, 20]
    assert all(row["early_distance"] > 0 for row in found)
    assert not (undisturbed({}) / "out" / "previews/distance.csv").exists()


@pytest.mark.parametrize("step", [5, 14])
def test_early_distances_of_a_resumed_run_are_those_of_one_never_stopped(
    run: Run, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    expected = undisturbed(MEASURED)
    signal_at(monkeypatch, step)
    with pytest.raises(SystemExit):
        run(tmp_path, MEASURED)
    run(tmp_path, MEASURED)
    assert (tmp_path / "out/previews/distance.csv").read_bytes() == (
        expected / "out/previews/distance.csv"
    ).read_bytes()
    assert_same_outputs(expected, tmp_path)


def test_samples_of_the_early_distance_have_labels_as_frequent_as_in_training(
    run: Run, tmp_path: Path, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
):
    given: list[torch.Tensor] = []
    sample = Monitor.sample

    def watched(monitor: Monitor, numbers: Any, labels: torch.Tensor, seed: int) -> np.ndarray:  # noqa: ANN401
        given.append(labels)
        return sample(monitor, numbers, labels, seed)

    monkeypatch.setattr(Monitor, "sample", watched)
    run(tmp_path, MEASURED | {"train.distance_every": 20})
    found = torch.cat(given).bincount(minlength=10).numpy()
    expected = np.bincount(digits.labels[:512], minlength=10) / 512
    assert np.abs(found - 256 * expected).max() <= 1


def test_checkpoints_are_kept_every_so_many_epochs(run: Run, tmp_path: Path):
    run(tmp_path, {"train.epochs": 2.0, "train.keep_every_epochs": 1})
    assert sorted(path.name for path in (tmp_path / "out").glob("epoch_*")) == [
        "epoch_0001.safetensors",
        "epoch_0002.safetensors",
    ]
    kept = load_checkpoint(tmp_path / "out" / "epoch_0002.safetensors")
    assert equal(kept.tensors["ema"], load_checkpoint(tmp_path / "out" / "last.safetensors").tensors["ema"])


def test_the_guide_is_the_average_after_its_fraction_of_the_steps(run: Run, tmp_path: Path):
    run(tmp_path, {"train.epochs": 2.0, "train.keep_every_epochs": 1, "train.guide_fraction": 0.5})
    first, second, last = (
        load_checkpoint(tmp_path / "out" / f"{name}.safetensors").tensors
        for name in ("epoch_0001", "epoch_0002", "last")
    )
    assert equal(last["guide"], first["ema"])
    assert equal(second["guide"], first["ema"])
    assert not equal(last["guide"], last["ema"])


def test_the_best_is_of_those_with_the_guide(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses = iter(range(1, 100))  # worse from the beginning, as of few images and many epochs
    monkeypatch.setattr(FixedGrid, "summarize", lambda *_: {"val_loss": float(next(losses)), "val_mse": 1.0})
    results = run(tmp_path, {"train.epochs": 2.0, "train.validate_every": 1, "train.guide_fraction": 0.5})
    validation = rows(tmp_path / "out" / "validation.csv")
    best = load_checkpoint(tmp_path / "out" / "best.safetensors")
    assert best.tensors["guide"]
    assert results["best_step"] == best.metadata["step"] == validation[-1]["step"] / 2 > validation[0]["step"]


def test_without_a_fraction_there_is_no_guide(run: Run, tmp_path: Path):
    run(tmp_path, {"train.epochs": 0.5, "train.guide_fraction": 0.0, "generate.autoguidance": 1.0})
    assert not load_checkpoint(tmp_path / "out" / "last.safetensors").tensors.get("guide")


def test_the_steps_of_the_epochs_that_are_advised_are_counted(tiny: Callable[..., Config]):
    config = tiny({"train.epochs": 0.01, "train.warmup_steps": 300, "train.batch_size": 128})
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    (said,) = recipe.remarks(1_000_000, 1)
    assert said.endswith("train.epochs=1 are 7812.")


@pytest.mark.parametrize(("warmup", "said"), [(8, True), (7, False)])
def test_a_run_of_no_more_steps_than_its_warm_up_says_how_many_epochs_it_needs(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], warmup: int, said: bool
):
    # 512 images are 16 steps of 32.
    run(tmp_path, {"train.epochs": 0.5, "train.batch_size": 32, "train.warmup_steps": warmup})
    sentence = (
        "train.epochs=0.5 are 8 steps, of which 8 are train.warmup_steps: the network will hardly learn these 512 "
        "images. train.epochs=125 are 2000."
    )
    assert (sentence in capsys.readouterr().out) == said


@pytest.mark.parametrize("epochs", [1.25, 0.0625], ids=["20 steps", "1 step"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_loss_that_is_no_number_ends_the_run_with_its_cause(run: Run, tmp_path: Path, epochs: float, optimizer: str):
    changes = {"train.lr": 1e30, "train.grad_clip": 1e30, "train.warmup_steps": 0}
    with pytest.raises(DdpmError, match=r"not a finite number .*train\.lr \(now 1e\+30\) or train\.grad_clip\.$"):
        run(tmp_path, changes | {"train.epochs": epochs, "train.optimizer": optimizer})


def test_a_loss_that_is_no_number_is_found_before_it_is_saved(run: Run, tmp_path: Path):
    changes = NEVER_LOGGED | {"train.lr": 1e30, "train.grad_clip": 1e30, "train.warmup_steps": 0}
    with pytest.raises(DdpmError, match="not a finite number at step 1:") as caught:
        run(tmp_path, changes, every=1e-9)
    assert not (tmp_path / "kept" / "state.safetensors").exists()
    assert "kept" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "epochs", "steps"), [(512, 1.25, 20), (543, 1.0, 16), (32, 3.0, 3), (512, 0.001, 1)]
)
def test_steps_of_a_run(tiny: Callable[..., Config], images: int, epochs: float, steps: int):
    config = tiny({"train.epochs": epochs})
    assert Recipe(config.model, config.diffusion, config.train, 0).steps(images) == steps


def test_fewer_images_than_a_batch_are_refused(tiny: Callable[..., Config]):
    config = tiny()
    with pytest.raises(DdpmError, match=r"train\.batch_size=32 exceeds the 31 training images"):
        Recipe(config.model, config.diffusion, config.train, 0).steps(31)


def test_a_second_process_on_the_same_run_is_refused(tmp_path: Path, root: Path):
    hold = (
        "import sys, time; from pathlib import Path; from ddpm.training.run_folder import RunFolder\n"
        "with RunFolder(Path('out'), Path('kept')): print('held', flush=True); sys.stdin.read()"
    )
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DdpmError, match="another process is at this very run"):
            RunFolder(tmp_path / "out", tmp_path / "kept").__enter__()
        holder.communicate()
    with RunFolder(tmp_path / "out", tmp_path / "kept") as folder:
        assert folder.finished is None


def test_the_weights_of_a_run_do_not_depend_on_its_validation_images(
    digits: ImageSet, tiny: Callable[..., Config], cpu: Runtime, tmp_path: Path
):
    config = tiny()
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    training = digits.take(np.arange(64))
    for name, first in (("a", 1000), ("b", 2000)):
        with RunFolder(tmp_path / name / "out", tmp_path / name / "kept") as place:
            train(recipe, training, digits.take(np.arange(first, first + 50)), cpu, place, 1e9)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_of_fewer_validation_images_than_wanted_all_are_used(run: Run, tmp_path: Path):
    for name, count in (("all", 64), ("more", 65)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, {"train.validation_images": count})
    assert equal(weights(tmp_path / "all"), weights(tmp_path / "more"))
    tables = [(tmp_path / name / "out" / "validation.csv").read_text() for name in ("all", "more")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(("channels", "classes"), [(3, 4), (1, 0)], ids=["colour", "no labels"])
def test_images_of_another_spec_train_too(
    tiny: Callable[..., Config], cpu: Runtime, tmp_path: Path, rng: np.random.Generator, channels: int, classes: int
):
    config = tiny({"train.epochs": 1.0, "train.preview_every": 2})
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    pixels = rng.integers(256, size=(64, channels, 12, 12), dtype=np.uint8)
    images = ImageSet(pixels, np.arange(64) % max(1, classes), np.arange(64), classes)
    with RunFolder(tmp_path / "out", tmp_path / "kept") as place:
        train(recipe, images, images, cpu, place, 1e9)
    checkpoint = load_checkpoint(tmp_path / "out" / "last.safetensors")
    assert checkpoint.spec == images.spec
    assert checkpoint.conditioning.classes == classes
    assert checkpoint.conditioning.frequencies.tolist() == [[1 / 4]] * 4 if classes else [[1.0]]
    assert read_pngs(tmp_path / "out" / "previews", 1).shape[:2] == (1, channels)


def test_the_loop_is_less_than_sixty_lines(root: Path):
    body = ast.parse((root / "ddpm/training/loop.py").read_text()).body
    (loop,) = (node for node in body if isinstance(node, ast.FunctionDef))
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno < 59


def test_the_checkpoint_holds_how_often_each_label_occurs(
    run: Run, undisturbed: Undisturbed, digits: ImageSet, tmp_path: Path
):
    labels = load_checkpoint(undisturbed({}) / "out" / "best.safetensors").conditioning
    np.testing.assert_allclose(labels.frequencies[:, 0], np.bincount(digits.labels[:512]) / 512, rtol=1e-12)
    run(tmp_path, {"model.classes": 0, "train.epochs": 0.0625})
    assert load_checkpoint(tmp_path / "out" / "best.safetensors").conditioning.count == 0


@pytest.mark.parametrize(("dropout", "learned"), [(0.0, False), (0.5, True)])
def test_the_embedding_of_the_null_label_learns_from_dropped_labels_alone(
    run: Run, tmp_path: Path, dropout: float, learned: bool
):
    changes = {"train.label_dropout": dropout, "train.weight_decay": 0.0, "generate.guidance": 1.0}
    run(tmp_path / "one step", changes | {"train.epochs": 0.0625})
    run(tmp_path / "all steps", changes)
    few, many = (weights(tmp_path / name)["label_embedding.weight"] for name in ("one step", "all steps"))
    assert not torch.equal(few[:-1], many[:-1])
    assert torch.equal(few[-1], many[-1]) != learned
    assert load_checkpoint(tmp_path / "all steps/out/best.safetensors").null_label == learned


def test_a_row_of_the_log_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    waits: list[int] = []
    flush = os.fsync
    monkeypatch.setattr("os.fsync", lambda file: waits.append(file) or flush(file))
    with RunFolder(tmp_path / "out", tmp_path / "kept") as folder:
        waits.clear()
        folder.write_csv("log.csv", [{"step": 1, "loss": 0.5}])
        assert not waits
        folder.write("last", lambda path: write_json(path, {}))
        assert waits
    assert (tmp_path / "out/log.csv").read_text().splitlines() == ["step,loss", "1,0.5"]
