"""What a sweep searches, what it refuses, and what its table says; real trials run in tests/stress."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clones import SETTINGS, change
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ddpm.utils.errors import DdpmError
from tools import mend_locks
from tools import sweep as tool
from tools.sweep import (
    Pruned,
    Sweep,
    check_images,
    check_metric,
    check_space,
    distribution,
    override,
    present,
    read_space,
    table,
)


def test_a_space_is_read_from_the_command_line_and_from_files(tmp_path: Path):
    (tmp_path / "space.yaml").write_text("train.lr: [0.003, 0.03, log]\ntrain.optimizer: [adamw, muon]\n")
    found = read_space([str(tmp_path / "space.yaml"), "model.channel_multipliers=[[1, 2], auto]", "seed=1"])
    assert found == {
        "train.lr": [0.003, 0.03, "log"],
        "train.optimizer": ["adamw", "muon"],
        "model.channel_multipliers": [[1, 2], "auto"],
        "seed": 1,
    }


def test_lists_are_ranges_or_choices_and_other_values_are_fixed():
    assert distribution("a", [0.003, 0.03, "log"]) == FloatDistribution(0.003, 0.03, log=True)
    assert distribution("a", [1, 8, "linear"]) == IntDistribution(1, 8)
    assert distribution("a", [0, 0.5, "linear"]) == FloatDistribution(0, 0.5)
    assert distribution("a", [[1, 2], "auto", 3, True]) == CategoricalDistribution(["[1, 2]", "auto", "3", "true"])
    assert distribution("a", 0.01) is distribution("a", "auto") is None


@pytest.mark.parametrize("names", [["cosine", "linear"], ["linear"], ["cosine", "sigmoid", "linear"]])
def test_after_names_linear_is_one_more(names: list[str]):
    assert distribution("a", names) == CategoricalDistribution(names)


def test_a_metric_that_no_trial_can_have_is_refused_before_the_first():
    for metric in ("fd_mnist", "fd_own_mnist", "recall_mnist", "val_loss", "fid_inception", "swd"):
        check_metric(metric, {}, SETTINGS)
    check_metric("fd_mnist", {"data.name": ["mnist", "fashion_mnist"]}, SETTINGS)
    for metric, space in (("fd", {}), ("fd_mnist", {"data.name": "fashion_mnist"})):
        with pytest.raises(DdpmError, match=rf"^--metric {metric}: choose one of fd_\w*mnist, .*val_loss"):
            check_metric(metric, space, SETTINGS)


@pytest.mark.parametrize(
    ("option", "number", "least"), [("--trials", -1, 1), ("--trials", 0, 1), ("--prune-after", -1, 0)]
)
def test_numbers_that_no_search_can_have_are_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, option: str, number: int, least: int
):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["sweep", "seed=[1, 2]", f"{option}={number}"])
    with pytest.raises(SystemExit, match=rf"^error: {option} {number}: it must be at least {least}\.$"):
        tool.main()


def test_every_name_of_a_choice_is_checked():
    check_space({"train.lr_decay": ["cosine", "linear"]}, SETTINGS)
    with pytest.raises(DdpmError, match=r"^train\.optimizer=linear: .*should be one of"):
        check_space({"train.optimizer": ["muon", "linear"]}, SETTINGS)


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("fd_mnist", True),
        ("val_loss", True),
        ("bpd_small", True),
        ("memorized_fraction_pixel", True),
        ("generate_seconds", True),
        ("train_seconds", True),
        ("generate_nfe", True),
        ("parameters", True),
        ("recall_mnist", False),
        ("label_accuracy", False),
    ],
)
def test_a_sweep_seeks_the_smallest_of_distances_and_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, lower: bool
):
    monkeypatch.setenv("DDPM_CKPT_DIR", str(tmp_path))
    with Sweep("seek", {"seed": [1, 2]}, metric, 4) as sweep:
        assert sweep.open().direction.name == ("MINIMIZE" if lower else "MAXIMIZE")


@pytest.mark.parametrize(
    "value", [[1, "log"], [0.0, 1.0, "log"], [2, 1, "linear"], ["a", "b", "log"], [1, 2, 3, "log"]]
)
def test_a_range_that_is_none_is_refused(value: list[Any]):
    with pytest.raises(DdpmError, match=r"^train\.lr=.*: a range is \[low, high, log\] or \[low, high, linear\]"):
        distribution("train.lr", value)


@pytest.mark.parametrize("text", ["train.lr", "nowhere.yaml", "train.lr=[0.1,", "train.lr=2024-13-01"])
def test_what_is_no_setting_is_refused(text: str):
    with pytest.raises(DdpmError, match="neither KEY=VALUE nor a YAML file"):
        read_space([text])


def test_values_that_no_run_can_have_are_refused_before_any_trial():
    check_space({"train.lr": [0.003, 0.03, "log"], "train.optimizer": ["adamw", "muon"]}, SETTINGS)
    with pytest.raises(DdpmError, match=r"unknown key train\.rate"):
        check_space({"train.rate": [1, 2]}, SETTINGS)
    with pytest.raises(DdpmError, match=r"^train\.optimizer=adam: .*should be one of"):
        check_space({"train.optimizer": ["muon", "adam"]}, SETTINGS)
    with pytest.raises(DdpmError, match=r"^train\.lr=-1: "):
        check_space({"train.lr": [-1, 0.03, "linear"]}, SETTINGS)


def test_values_are_checked_beside_the_fixed_ones():
    space = {"train.label_dropout": [0.0, 0.1]}
    with pytest.raises(DdpmError, match="needs a network trained with the null label"):
        check_space(space, SETTINGS)
    check_space(space | {"generate.guidance": 1.0}, SETTINGS)


def test_the_present_settings_are_a_point_of_a_space_that_holds_them(tmp_path: Path):
    shutil.copy(SETTINGS, tmp_path / "params.yaml")
    space = {
        "train.lr": FloatDistribution(0.001, 0.1, log=True),
        "train.optimizer": CategoricalDistribution(["adamw", "muon"]),
        "generate.guidance_interval": CategoricalDistribution([override([1.5, 5.0])]),
    }
    assert present(space, tmp_path / "params.yaml") == {
        "train.lr": 0.01,
        "train.optimizer": "muon",
        "generate.guidance_interval": "[1.5, 5.0]",
    }
    assert present({"train.lr": FloatDistribution(0.02, 0.1)}, SETTINGS) is None
    assert present({"train.optimizer": CategoricalDistribution(["adamw"])}, SETTINGS) is None


def test_a_sweep_goes_on_when_it_is_called_again_after_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDPM_CKPT_DIR", str(tmp_path))
    found: list[dict[str, float] | None] = [{"val_loss": 1.0}, None, None, None, {"val_loss": 2.0}, None, None]
    monkeypatch.setattr(Sweep, "measure", lambda *_: found.pop(0))
    for left in (4, 0):
        with Sweep("again", {"seed": [1, 2]}, "val_loss", 4) as sweep:
            study = sweep.open()
            with pytest.raises(DdpmError, match=r"^2 trials in a row failed, the last as .*: fix that, and call again"):
                sweep.search(study, 9)
        assert len(found) == left
    found.append({"val_loss": 3.0})
    with Sweep("again", {"seed": [1, 2]}, "val_loss", 4) as sweep:
        sweep.search(study := sweep.open(), 8)
    assert [trial.value for trial in study.trials] == [1.0, None, None, None, 2.0, None, None, 3.0]


@pytest.mark.parametrize("ends", [True, False])
def test_a_trial_that_ended_before_it_could_be_stopped_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
):
    monkeypatch.setenv("DDPM_CKPT_DIR", str(tmp_path))
    monkeypatch.setattr("tools.sweep.POLL_SECONDS", 0.0)
    monkeypatch.setattr("tools.sweep._runs", lambda _: True)
    found: dict[str, float] = {}

    @contextmanager
    def process(*_: object) -> Iterator[None]:
        try:
            yield
        finally:
            found.update({"val_loss": 1.0} if ends else {})

    monkeypatch.setattr(Sweep, "process", process)
    monkeypatch.setattr(Sweep, "headline", lambda *_: found)
    monkeypatch.setattr(Sweep, "report", lambda *_: None)
    hopeless: Any = SimpleNamespace(number=0, should_prune=lambda: True)
    with (
        Sweep("seek", {"seed": [1, 2]}, "val_loss", 4) as sweep,
        nullcontext() if ends else pytest.raises(Pruned),
    ):
        assert sweep.measure(hopeless) == {"val_loss": 1.0}


def test_a_table_that_a_later_stage_has_removed_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDPM_CKPT_DIR", str(tmp_path))
    (there := tmp_path / "distance.csv").write_text("step,early_distance\n5,2.5\n")
    with Sweep("race", {"seed": [1, 2]}, "val_loss", 4) as sweep:
        trial = sweep.open().ask(sweep.distributions)
        sweep.report(trial, [tmp_path / "gone.csv", there])
        assert trial.study.trials[0].intermediate_values == {5: 2.5}


@pytest.mark.parametrize("place", ["rwlock", "exps/rwlock"])
def test_locks_of_dvc_that_were_cut_off_are_removed_and_whole_ones_stay(tmp_path: Path, place: str):
    mend_locks(tmp_path)
    path = tmp_path / ".dvc/tmp" / place
    path.parent.mkdir(parents=True)
    for text, stays in (('{"a": {"write": {"pid": 1}}}', True), ("{}", True), ("", False), ('{"a": {', False)):
        path.write_text(text)
        mend_locks(tmp_path)
        assert path.exists() == stays


def test_an_empty_list_is_a_fixed_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDPM_CKPT_DIR", str(tmp_path))
    space = {"export.formats": [], "seed": [1, 2]}
    check_space(space, SETTINGS)
    with pytest.raises(DdpmError, match=r"^generate\.classes=\[\]: .*at least 1 item"):
        check_space({"generate.classes": []}, SETTINGS)
    with Sweep("empty", space, "val_loss", 4) as sweep:
        assert list(sweep.distributions) == ["seed"]
        assert sweep.fixed == {"export.formats": "[]"}


def test_any_seed_of_the_settings_makes_proposals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDPM_CKPT_DIR", str(tmp_path))
    monkeypatch.setattr(Sweep, "measure", lambda *_: {"val_loss": 1.0})
    with Sweep("large", {"train.lr": [0.003, 0.03, "log"]}, "val_loss", 4) as sweep:
        sweep.seed = 2**63 - 1
        sweep.search(study := sweep.open(), 2)
    assert len(study.trials) == 2


def test_images_that_no_trial_would_find_are_refused(tmp_path: Path):
    shutil.copy(SETTINGS, params := tmp_path / "params.yaml")
    change(tmp_path, {"data.name": "folder", "data.path": str(tmp_path)})
    check_images({}, params)
    check_images({"data.path": "docs/images"}, params)  # as Git has it
    for path in ("photos", "../photos"):
        with pytest.raises(DdpmError, match=rf"^data\.path={path} is not in Git, .*: name it by an absolute path\.$"):
            check_images({"data.path": [str(tmp_path), path]}, params)
        change(tmp_path, {"data.path": path})
        with pytest.raises(DdpmError, match=rf"^data\.path={path} is not in Git"):
            check_images({"data.name": ["mnist", "folder"]}, params)
        check_images({"data.name": "mnist"}, params)


def trial(
    number: int, value: float | None, half: float | None = None, state: TrialState = TrialState.COMPLETE
) -> FrozenTrial:
    ends = {} if half is None or value is None else {"low": value - half, "high": value + half}
    steps = {} if state == TrialState.COMPLETE else {250: 3.0, 500: 2.5}
    made = create_trial(
        state=state,
        value=value,
        params={"train.lr": 0.01},
        distributions={"train.lr": FloatDistribution(0.001, 0.1)},
        user_attrs=ends,
        intermediate_values=steps,
    )
    made.number = number
    return made


def test_a_trial_is_worse_only_where_the_interval_of_the_difference_says_so():
    # Of two intervals ± 0.1 the difference has ± 0.141.
    trials = [trial(0, 1.0, 0.1), trial(1, 1.15, 0.1), trial(2, 1.13, 0.1), trial(3, None, state=TrialState.PRUNED)]
    trials.append(trial(4, None, state=TrialState.FAIL))
    found = table(trials, "fd_mnist", lower=True)
    assert list(found.index) == [0, 2, 1, 3, 4]
    assert list(found["verdict"]) == ["best", "equal within chance", "worse", "stopped early at step 500", "fail"]


def test_of_a_fraction_the_largest_is_the_best():
    found = table([trial(0, 0.8, 0.01), trial(1, 0.9, 0.01)], "recall_mnist", lower=False)
    assert list(found.index) == [1, 0]
    assert list(found["verdict"]) == ["best", "worse"]


def test_without_intervals_nothing_is_said_to_be_worse():
    assert list(table([trial(0, 1.0), trial(1, 2.0)], "val_loss", lower=True)["verdict"]) == ["best", "no interval"]
