"""Training by several processes: the same bits for any number of them, and an end with one sentence for all."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm.config import Config
from ddpm.data.image_set import ImageSet
from ddpm.evaluation.early import EarlyDistance
from ddpm.models.build import build_network
from ddpm.training.gradients import ShardGradients
from ddpm.training.launch import _join, train_together
from ddpm.training.loop import train
from ddpm.training.ranks import ALONE, LostRank, Ranks, Stopped, launched
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.errors import DdpmError
from ddpm.utils.runtime import Runtime

OUTPUTS = (
    "last.safetensors",
    "best.safetensors",
    "log.csv",
    "validation.csv",
    "previews/distance.csv",
    "previews/20.png",
)
SETTINGS = {
    "train.shards": 4,
    "model.dropout": 0.2,
    "train.preview_every": 10,
    "train.preview_steps": 2,
    "train.distance_every": 10,
    "train.distance_images": 300,
}

Run = Callable[..., dict[str, Any]]


class Spoiled(RunFolder):
    """A run folder that cannot be written to after some steps, as on a full disk."""

    def write_csv(self, name: str, rows: Any) -> None:  # noqa: ANN401
        if self.writes and name == "log.csv" and rows[-1]["step"] == 12:
            raise OSError(28, "No space left on device", name)
        super().write_csv(name, rows)


class Apart(RunFolder):
    """A run folder that only the first rank sees, as where machines do not share one."""

    def __init__(self, *given: Any, writes: bool = True) -> None:  # noqa: ANN401
        super().__init__(*given, writes=writes)
        if not writes:
            self.state = self.folder / "elsewhere"


class Interrupting(RunFolder):
    """A run folder whose first row of the log interrupts the process that started the ranks."""

    def write_csv(self, name: str, rows: Any) -> None:  # noqa: ANN401
        super().write_csv(name, rows)
        if self.writes and name == "log.csv" and len(rows) == 1:
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(2)  # until it is passed on


class Lost(RunFolder):
    """A run folder whose first rank is killed after some steps."""

    killed = True  # the rank that writes, or the others

    def write_csv(self, name: str, rows: Any) -> None:  # noqa: ANN401
        if self.writes == self.killed and name == "log.csv" and rows[-1]["step"] == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        super().write_csv(name, rows)


class LostSecond(Lost):
    """The same with the other rank killed."""

    killed = False


meet = torch.distributed.init_process_group


def meet_for_20_seconds(backend: str, place: str, _: timedelta, **given: Any) -> None:  # noqa: ANN401
    meet(backend, place, timedelta(seconds=20), **given)


class Hung(RunFolder):
    """A run folder whose second rank stands still after some steps, for longer than the first one has patience."""

    def __init__(self, *given: Any, writes: bool = True) -> None:  # noqa: ANN401
        super().__init__(*given, writes=writes)
        torch.distributed.init_process_group = meet_for_20_seconds  # in the process of this rank

    def write_csv(self, name: str, rows: Any) -> None:  # noqa: ANN401
        if not self.writes and name == "log.csv" and rows[-1]["step"] == 12:
            os.kill(os.getpid(), signal.SIGSTOP)
        super().write_csv(name, rows)


@pytest.mark.parametrize("ending", [Stopped("stopped at step 3"), SystemExit("stopped at once"), None])
def test_a_rank_gives_back_its_connection_where_all_do_so(tmp_path: Path, cpu: Runtime, ending: SystemExit | None):
    def work(**_: object) -> str:
        assert torch.distributed.is_initialized()
        if ending:
            raise ending
        return "done"

    expected = pytest.raises(SystemExit, match="stopped") if ending else nullcontext()
    with RunFolder(tmp_path / "run", tmp_path / "kept") as folder, expected:
        assert _join(work, cpu, folder, ALONE, f"file://{tmp_path}/ranks") == "done"
    # One that ends in the middle of a step must wait for no other.
    alone = type(ending) is SystemExit
    assert torch.distributed.is_initialized() == alone
    if alone:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def run(digits: ImageSet, tiny: Callable[..., Config], cpu: Runtime) -> Run:
    """Train 20 steps in FOLDER by so many processes; returns the results."""
    training, validation = digits.take(np.arange(512)), digits.take(np.arange(1000, 1064))

    def start(
        folder: Path,
        processes: int,
        kind: type[RunFolder] = RunFolder,
        every: float = 1e9,
        changes: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        config = tiny(SETTINGS, changes or {})
        recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
        with kind(folder, folder / "kept") as place:
            distance = EarlyDistance(training, config.seed)
            work = partial(train, recipe, training, validation, save_every_seconds=every, distance=distance)
            return train_together(processes, work, cpu, place)[0]

    return start


@pytest.fixture(scope="module")
def alone(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the results of a run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, run(folder, 1)


def assert_same(expected: tuple[Path, dict[str, Any]], folder: Path, results: dict[str, Any]) -> None:
    assert results == expected[1]
    for name in OUTPUTS:
        assert (folder / name).read_bytes() == (expected[0] / name).read_bytes(), name
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_a_run_has_the_same_bits_for_any_number_of_processes(
    run: Run, alone: tuple[Path, dict[str, Any]], tmp_path: Path, processes: int
):
    assert_same(alone, tmp_path, run(tmp_path, processes))


def test_times_by_their_losses_and_self_conditioning_have_the_same_bits_for_any_number_of_processes(
    run: Run, tmp_path: Path
):
    # Of so few times each has its ten losses, of images of both processes, before the run ends.
    ideas = {"train.time_density": "loss_aware", "diffusion.timesteps": 24, "generate.steps": 10}
    ideas |= {"model.self_conditioning": True, "model.learned_variance": True, "train.offset_noise": 0.1}
    ideas |= {"train.posthoc_snapshots": 2}
    alone, together = tmp_path / "alone", tmp_path / "together"
    expected = run(alone, 1, changes=ideas)
    assert_same((alone, expected), together, run(together, 2, changes=ideas))


def test_a_run_stopped_with_two_processes_resumes_with_one_to_the_same_bits(
    run: Run, alone: tuple[Path, dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match=r"^stopped at step \d+ of 20; the next `dvc repro` resumes there"):
        run(tmp_path, 2, Interrupting)
    assert capfd.readouterr().err.count("stopping after this step") == 1
    assert_same(alone, tmp_path, run(tmp_path, 1))
    assert "resuming from step" in capfd.readouterr().out


@pytest.mark.parametrize("lost", [Lost, LostSecond])
def test_a_run_of_which_a_rank_is_killed_says_so_and_resumes_with_four(
    run: Run, alone: tuple[Path, dict[str, Any]], tmp_path: Path, lost: type[RunFolder]
):
    with pytest.raises(
        DdpmError, match=r"^a process that trained was killed, as for want of memory, or hung: lower runtime\."
    ):
        run(tmp_path, 2, lost, every=1e-9)
    assert (tmp_path / "kept/state.safetensors").exists()
    with pytest.raises(
        DdpmError, match=r"states of different steps \(1[0-2], 0\): give them one folder .*DDPM_CKPT_DIR"
    ):
        run(tmp_path, 2, Apart)
    assert_same(alone, tmp_path, run(tmp_path, 4))


def test_a_run_of_which_a_rank_hangs_says_so_and_resumes(
    run: Run, alone: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.distributed.init_process_group", meet)  # undoes what `Hung` does here
    with pytest.raises(LostRank, match=r"^a training process hangs or was lost \(.*\); the next run resumes\.$"):
        run(tmp_path, 2, Hung, every=1e-9)
    assert_same(alone, tmp_path, run(tmp_path, 1))


def test_a_full_disk_ends_all_ranks(run: Run, alone: tuple[Path, dict[str, Any]], tmp_path: Path):
    with pytest.raises(OSError, match="No space left on device"):
        run(tmp_path, 2, Spoiled, every=1e-9)
    assert_same(alone, tmp_path, run(tmp_path, 2))


def test_the_gradient_of_shards_is_that_of_the_whole_batch(tiny: Callable[..., Config], digits: ImageSet):
    torch.manual_seed(0)
    network = build_network(tiny().model, digits.spec)
    torch.nn.init.normal_(network.get_parameter("conv_out.weight"))
    x_t, t, labels = torch.randn(8, 1, 28, 28), torch.arange(8), torch.arange(8)

    def loss(part: slice) -> torch.Tensor:
        return (network(x_t[part], t[part], labels[part]) - 1).square().mean()

    loss(slice(0, 8)).backward()
    expected = [weight.grad.clone() for weight in network.parameters() if weight.grad is not None]
    for shards in (1, 2, 4):
        gradients = ShardGradients(network, shards, ALONE)
        for shard in gradients.mine:
            gradients.backward(shard, loss(slice(shard * 8 // shards, (shard + 1) * 8 // shards)))
        mean, stop = gradients.exchange(stop=True, ask=False)
        assert mean.item() == pytest.approx(loss(slice(0, 8)).item(), rel=1e-5)
        assert not stop
        for weight, gradient in zip(network.parameters(), expected, strict=True):
            assert weight.grad is not None
            assert weight.grad.shape == weight.shape
            torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-5)


def test_a_rank_without_a_shard_can_ask_to_stop(monkeypatch: pytest.MonkeyPatch):
    # Of three ranks with two shards the last one has none.
    monkeypatch.setattr(Ranks, "gather", lambda _, mine: torch.cat([0 * mine, 0 * mine, mine]))
    for stop in (False, True):
        gradients = ShardGradients(torch.nn.Linear(2, 1), 2, Ranks(2, 3))
        assert not gradients.mine
        assert gradients.exchange(stop=stop, ask=True)[1] == stop


def test_processes_that_have_no_shard_are_told(tiny: Callable[..., Config]):
    config = tiny({"train.shards": 2, "train.warmup_steps": 0})
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    assert not list(recipe.remarks(512, 2))
    assert list(recipe.remarks(512, 16)) == ["train.shards=2 leaves 14 of 16 processes idle: start fewer, or raise it."]


@pytest.mark.parametrize(("count", "size"), [(4, 1), (4, 3), (2, 4), (10, 4), (7, 7)])
def test_every_part_is_of_one_rank_and_they_come_in_order(count: int, size: int):
    parts = [Ranks(rank, size).part(count) for rank in range(size)]
    assert [number for part in parts for number in part] == list(range(count))
    assert max(map(len, parts)) == Ranks(0, size).each(count)


def test_a_process_with_what_torchrun_sets_but_without_torchrun_is_told_so():
    code = "import torch; from ddpm.training.ranks import LAUNCHED; LAUNCHED.connect('env://', torch.device('cpu'))"
    variables = {name: value for name, value in os.environ.items() if name != "MASTER_ADDR"} | {"WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"MASTER_ADDR.*: start them by torchrun, or unset WORLD_SIZE\.$", done.stderr.strip())


@pytest.mark.parametrize(
    ("device", "place", "fix"),
    [
        ("cuda:1", "env://", "start them by torchrun, or unset WORLD_SIZE, and give each a device of its own"),
        ("cuda:1", "file://x", "set runtime.processes to 1, and give each a device of its own"),
        ("cpu", "file://x", "set runtime.processes to 1"),
    ],
)
def test_ranks_meet_on_their_devices_at_once_so_that_what_fails_there_is_said(
    monkeypatch: pytest.MonkeyPatch, device: str, place: str, fix: str
):
    def meet(*_: object, device_id: torch.device | None, **__: object) -> None:
        assert device_id == (None if device == "cpu" else torch.device(device))
        raise torch.distributed.DistBackendError("Duplicate GPU\ndetected")

    monkeypatch.setattr("torch.distributed.init_process_group", meet)
    with pytest.raises(DdpmError, match=rf"do not reach each other \(Duplicate GPU detected\): {re.escape(fix)}\.$"):
        Ranks(1, 2, 1).connect(place, torch.device(device))


def test_a_rank_that_hangs_is_given_up_with_one_sentence(tmp_path: Path):
    ranks, place = Ranks(0, 2), f"file://{tmp_path}/ranks"
    sleeper = (
        "import time, torch; from ddpm.training.ranks import Ranks; print(flush=True);"
        f"Ranks(1, 2).connect({place!r}, torch.device('cpu')); time.sleep(600)"
    )
    hung = subprocess.Popen([sys.executable, "-c", sleeper], stdout=subprocess.PIPE)
    try:
        assert hung.stdout
        assert hung.stdout.readline(), "it has not come so far"
        ranks.connect(place, torch.device("cpu"), timedelta(seconds=20))
        with pytest.raises(LostRank, match=r"^a training process hangs or was lost \(.*\); the next run resumes\.$"):
            ranks.gather(torch.zeros(1))
    finally:
        hung.kill()
        hung.wait()
        torch.distributed.destroy_process_group()


def test_ranks_started_by_torchrun_compute_on_their_own_device_and_say_how_many_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpu: Runtime
):
    asked: list[Any] = []
    monkeypatch.setattr("ddpm.training.launch.LAUNCHED", Ranks(5, 8, 1))
    monkeypatch.setattr(Ranks, "connect", lambda ranks, place, device: asked.append((ranks.size, place, device.type)))
    monkeypatch.setattr(Ranks, "check_alike", lambda ranks, alike, device: asked.extend((alike[0], alike[-1])))
    monkeypatch.setattr(Runtime, "of_rank", lambda runtime, rank: asked.append(rank) or runtime)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "nccl")
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: asked.append("left"))
    folder = RunFolder(tmp_path, tmp_path / "kept", writes=False)
    assert train_together(1, lambda runtime, folder, ranks: ranks, cpu, folder) == Ranks(5, 8, 1)
    assert asked == [1, (8, "env://", "cpu"), "cpu", torch.backends.cpu.get_cpu_capability(), "left"]


@pytest.mark.parametrize(
    ("processors", "said"), [(8, "processes: 1 of 8 possible here, at most train.shards"), (1, "processes: 1, at most")]
)
def test_processors_that_a_training_leaves_idle_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpu: Runtime, processors: int, said: str
):
    heard: list[str] = []
    monkeypatch.setattr("ddpm.training.launch.worker_count", lambda _: processors)
    monkeypatch.setattr(RunFolder, "say", lambda _, text: heard.append(text))
    train_together(1, lambda **_: None, cpu, RunFolder(tmp_path, tmp_path / "kept"))
    assert len(heard) == 1
    assert f"; {said}" in heard[0]


class Unlike(Runtime):
    """Of which the second rank computes in another way, as on another machine."""

    def of_rank(self, number: int) -> Runtime:
        return replace(super().of_rank(number), precision=(torch.float32, torch.bfloat16)[number])


def test_ranks_that_would_compute_in_different_ways_are_refused_at_once(
    tiny: Callable[..., Config], digits: ImageSet, cpu: Runtime, tmp_path: Path
):
    config = tiny(SETTINGS)
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    work = partial(train, recipe, digits.take(np.arange(512)), digits.take(np.arange(64)), save_every_seconds=1e9)
    unlike = Unlike(cpu.device, cpu.precision, cpu.compiled, cpu.deterministic)
    with (
        RunFolder(tmp_path, tmp_path / "kept") as folder,
        pytest.raises(DdpmError, match=r"do not compute alike \(number \d: cpu, torch\.\w+, .*give them machines"),
    ):
        train_together(2, work, unlike, folder)
    assert not (tmp_path / "last.safetensors").exists()


def test_on_a_cpu_the_first_rank_compiles_alone(
    tiny: Callable[..., Config], digits: ImageSet, cpu: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    alone: list[bool] = []
    monkeypatch.setattr(Ranks, "first_alone", lambda _, *, wanted: nullcontext(alone.append(wanted)))
    monkeypatch.setattr(Runtime, "compile", lambda _, function: function)
    config = tiny(SETTINGS, {"train.preview_every": 0, "train.distance_every": 0})
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    images = digits.take(np.arange(512))
    with RunFolder(tmp_path, tmp_path / "kept") as folder:
        train(recipe, images, images.take(np.arange(64)), replace(cpu, compiled=True), folder, 1e9)
    assert alone == [True] + (recipe.steps(512) - 1) * [False]


def test_a_rank_among_none_is_alone():
    environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert launched(environment) == Ranks(3, 4, 1)
    for variables in ({}, {"RANK": "3"}, {"RANK": "", "WORLD_SIZE": ""}, {"RANK": "3", "WORLD_SIZE": "1"}):
        assert launched(variables) is ALONE


def test_ranks_started_by_torchrun_do_not_share_a_device_that_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpu: Runtime
):
    monkeypatch.setattr("ddpm.training.launch.LAUNCHED", Ranks(1, 2, 1))
    monkeypatch.setattr(Runtime, "describe", lambda _: {"device": "a GPU", "precision": "float32"})
    named = replace(cpu, device=torch.device("cuda", 0))
    with pytest.raises(DdpmError, match=r"^runtime\.device=cuda:0 names one device for 2 processes: set it to cuda\.$"):
        train_together(1, lambda **_: None, named, RunFolder(tmp_path, tmp_path / "kept", writes=False))
