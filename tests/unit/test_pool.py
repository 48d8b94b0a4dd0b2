import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

import ddpm.utils.processes
from ddpm.config import Config
from ddpm.data.image_set import ImageSpec
from ddpm.models.build import build_network
from ddpm.models.checkpoint import Checkpoint, save_checkpoint
from ddpm.models.conditioning import Conditioning
from ddpm.sampling.batches import batch_count, sample_replicates, write_images
from ddpm.sampling.generator import Generator, restore_generator
from ddpm.utils.errors import DdpmError
from ddpm.utils.images import read_pngs
from ddpm.utils.processes import process_pool
from ddpm.utils.runtime import Runtime, process_count, processes_that_fit


def stop(_: Generator) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sample_in_a_process_that_is_killed(restored: tuple[object, ...]) -> None:
    with process_pool(2, restore_generator, *restored) as pool:
        assert pool
        pool.submit(stop).result()


INTERRUPTED_AT_ITS_START = """
import os, signal
from ddpm.utils.processes import worker_processes

if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: None)
    with worker_processes(2, "worked", int) as executor:
        found = [executor.submit(os.getpid) for _ in range(2)]
        print("started", flush=True)
        print(len([one.result() for one in found]), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups to interrupt")
def test_processes_leave_an_interrupt_to_their_parent_from_their_start(tmp_path: Path):
    (script := tmp_path / "script.py").write_text(INTERRUPTED_AT_ITS_START)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script)]
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        for _ in range(20):  # while the processes begin
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.05)
        printed, complaints = process.communicate(timeout=120)
    assert printed == "2\n"
    assert "Traceback" not in complaints


def fail(_: Generator, reason: str) -> None:
    raise ValueError(reason)


@pytest.fixture
def restored(tiny: Callable[..., Config], cpu: Runtime, tmp_path: Path) -> tuple[object, ...]:
    """The arguments of `restore_generator` for a checkpoint of an untrained network."""
    config, spec = (
        tiny({"generate.num_images": 22, "generate.trajectories": 5, "generate.steps": 4}),
        ImageSpec(28, 1, 10),
    )
    torch.manual_seed(0)
    groups = {name: dict(build_network(config.model, spec).named_parameters()) for name in ("ema", "guide")}
    for weights in groups.values():
        torch.nn.init.normal_(weights["conv_out.weight"], std=0.1)
    path = tmp_path / "best.safetensors"
    labels = Conditioning.by_class([0.1] * 10)
    save_checkpoint(path, Checkpoint(config.model, config.diffusion, spec, labels, {}, groups))
    return path, config.generate, config.seed, cpu


def test_images_have_the_same_bits_for_any_number_of_processes(restored: tuple[object, ...], tmp_path: Path):
    generator = restore_generator(*restored)  # type: ignore[arg-type]
    found = []
    for processes in (1, 2, 3):
        folder, kept = tmp_path / f"{processes}", tmp_path / f"kept {processes}"
        folder.mkdir()
        with process_pool(processes, restore_generator, *restored) as pool:
            assert (pool is None) == (processes == 1)
            cost, trajectory = write_images(generator, folder, 2, 4, kept, pool)
            replicates = sample_replicates(generator, 2, 4, kept, pool)
        assert cost["generate_seconds"] > 0
        assert cost["generate_batch_size"] == 4
        assert len(list(kept.rglob("batch_*"))) == 3 * 6
        found.append([read_pngs(folder, 1), *trajectory.values(), *replicates.values()])
    assert found[0][0].std() > 20
    for other in found[1:]:
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found[0], other, strict=True))


def test_batches_that_are_there_are_not_sampled_again(
    restored: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    generator = restore_generator(*restored)  # type: ignore[arg-type]
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    write_images(generator, tmp_path / "first", 1, 4, tmp_path / "kept")
    (tmp_path / "kept" / "batch_00000009.npz").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    with process_pool(2, restore_generator, *restored) as pool:
        write_images(generator, tmp_path / "second", 1, 4, tmp_path / "kept", pool)
    assert "resuming generate from image 9 of 22" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert np.array_equal(read_pngs(tmp_path / "first", 1), read_pngs(tmp_path / "second", 1))


def test_the_memory_of_a_device_is_the_most_that_a_process_held(
    restored: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    generator = restore_generator(*restored)  # type: ignore[arg-type]
    for name in ("cpu", "cuda"):
        (tmp_path / name).mkdir()
    assert write_images(generator, tmp_path / "cpu", 1, 4, tmp_path / "kept")[0]["device_bytes"] == 0
    # On two devices: the batches of one took more than those of the other.
    held = iter([5, 3, 9, 3, 9, 3])
    sample = Generator.sample
    monkeypatch.setattr(Generator, "sample", lambda _, numbers, on_step: sample(generator, numbers, on_step))
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda _: next(held))
    there = replace(generator, device=torch.device("cuda"))
    assert write_images(there, tmp_path / "cuda", 1, 4, kept := tmp_path / "there")[0]["device_bytes"] == 9
    # What is kept is read again.
    for path in tmp_path.glob("cuda/*"):
        path.unlink()
    assert write_images(there, tmp_path / "cuda", 1, 4, kept)[0]["device_bytes"] == 9


def test_eight_cuda_devices_have_a_batch_each_of_the_default_images(tiny: Callable[..., Config]):
    config = tiny({"generate.num_images": 10_000})
    assert [batch_count(config, torch.device(name)) for name in ("cuda", "cpu")] == [8, 80]


def test_smaller_batches_are_sampled_just_where_no_larger_one_is(restored: tuple[object, ...], tmp_path: Path):
    generator = restore_generator(*restored)  # type: ignore[arg-type]
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    write_images(generator, tmp_path / "first", 1, 4, kept := tmp_path / "kept")
    (kept / "batch_00000009.npz").unlink()
    before = set(kept.iterdir())
    with process_pool(2, restore_generator, *restored) as pool:
        write_images(generator, tmp_path / "second", 1, 2, kept, pool)
    assert {path.stem for path in set(kept.iterdir()) - before} == {"batch_00000009", "batch_00000011"}


def restore_in_little_memory(*restored: Any) -> Generator:  # noqa: ANN401
    """A generator in whose process no more than four images fit into memory."""
    generator = restore_generator(*restored)
    predict = generator.denoiser.predict

    def predict_few(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        if len(x_t) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(x_t, t, labels)

    return replace(generator, denoiser=replace(generator.denoiser, predict=predict_few))


def test_processes_agree_on_a_batch_that_fits_into_memory(
    restored: tuple[object, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    generator = restore_generator(*restored)  # type: ignore[arg-type]
    for name in ("enough", "little"):
        (tmp_path / name).mkdir()
    write_images(generator, tmp_path / "enough", 1, 4, tmp_path / "kept")
    with process_pool(2, restore_in_little_memory, *restored) as pool:
        cost, _ = write_images(generator, tmp_path / "little", 1, 16, tmp_path / "there", pool)
    said = capfd.readouterr()
    assert [size for size in (8, 4, 2) if f"going on with batches of {size}" in said.out + said.err] == [8, 4]
    assert cost["generate_batch_size"] == 4
    assert np.array_equal(read_pngs(tmp_path / "enough", 1), read_pngs(tmp_path / "little", 1))


def test_what_a_task_raises_is_raised_here_and_the_processes_end(restored: tuple[object, ...]):
    with process_pool(2, restore_generator, *restored) as pool:
        assert pool
        with pytest.raises(ValueError, match="as asked"):
            pool.submit(fail, "as asked").result()
    assert not multiprocessing.active_children()


def test_a_killed_process_is_one_sentence(restored: tuple[object, ...]):
    with pytest.raises(
        DdpmError, match=r"was killed, as for want of memory, or hung: lower runtime\.processes\. The next run"
    ):
        sample_in_a_process_that_is_killed(restored)
    assert not multiprocessing.active_children()


def test_a_pool_that_fails_leaves_other_processes_alone():
    def give_up() -> None:
        with process_pool(2, str) as pool:
            assert pool
            pool.submit(str).result()
            assert len(multiprocessing.active_children()) > 1
            raise DdpmError("given up")

    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    other.start()
    try:
        with pytest.raises(DdpmError, match=r"^given up$"):
            give_up()
        assert multiprocessing.active_children() == [other]
    finally:
        other.kill()
        other.join()


def pause(_: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_process_that_is_stopped_does_not_keep_this_one_from_ending():
    # Were it waited for, this lets it go on: the test then fails in place of hanging.
    def release() -> None:
        released.append(True)
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGCONT)

    released: list[bool] = []
    patience = threading.Timer(120.0, release)

    def give_up() -> None:
        with process_pool(2, str) as pool:
            assert pool
            pool.submit(pause)
            children = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
            wait(lambda: any(child.status() == psutil.STATUS_STOPPED for child in children), 300.0)
            patience.start()
            raise DdpmError("given up")

    with pytest.raises(DdpmError, match=r"^given up$"):
        give_up()
    patience.cancel()
    assert not released
    assert not multiprocessing.active_children()


def impatient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(ddpm.utils.processes, "_READ_EVERY", 0.1)
    monkeypatch.setattr(ddpm.utils.processes, "_READINGS", round(seconds / 0.1))
    monkeypatch.setattr(ddpm.utils.processes, "_AT_REST", 0.0)


def test_processes_that_hang_with_work_to_do_are_ended(monkeypatch: pytest.MonkeyPatch):
    def sample() -> None:
        with process_pool(2, str) as pool:
            assert pool
            assert pool.submit(str).result() in ("0", "1")
            pool.submit(pause).result(300.0)

    impatient(monkeypatch, 3.0)
    with pytest.raises(DdpmError, match=r"was killed, as for want of memory, or hung: lower runtime\.processes\."):
        sample()
    assert not multiprocessing.active_children()


def compute(_: object, seconds: float) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "done"


def test_processes_that_compute_or_have_nothing_to_do_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    impatient(monkeypatch, 2.0)
    with process_pool(2, str) as pool:
        assert pool
        assert pool.submit(compute, 5.0).result() == "done"
        time.sleep(5.0)
        assert not pool.working
        assert pool.submit(str).result() in ("0", "1")


def test_processes_do_not_outlive_a_killed_parent(root: Path, tmp_path: Path):
    script = textwrap.dedent(
        """
        import time
        from ddpm.utils.processes import process_pool

        if __name__ == "__main__":
            with process_pool(2, str) as pool:
                futures = [pool.submit(time.sleep) for _ in range(2)]
                print("ready", flush=True)
                time.sleep(60)
        """
    )
    (tmp_path / "parent.py").write_text(script)
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"ready\n"
        wait(lambda: len(psutil.Process(parent.pid).children()) >= 2)
        children = psutil.Process(parent.pid).children()
        parent.kill()
    wait(lambda: not any(child.is_running() for child in children))


def wait(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_processes_are_as_many_as_asked_for_or_as_repay(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Config], tmp_path: Path
):
    monkeypatch.setattr("ddpm.utils.runtime.worker_count", lambda _: 6)
    memory = Mock(total=100 * 2**30, available=2**20)  # what other programs hold at the moment decides nothing
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr("ddpm.utils.runtime._CONTROL_GROUPS", tmp_path)
    limit = tmp_path / "memory.max"
    cpu, cuda, second = (
        Runtime(torch.device(*device), torch.float32, compiled=False) for device in (("cpu",), ("cuda",), ("cuda", 1))
    )
    auto, three = (tiny({"runtime.processes": processes}).runtime for processes in ("auto", 3))
    assert process_count(three, cpu, 100, 1e9) == 3
    assert process_count(three, cpu, 2, 1e9) == 2
    assert process_count(auto, cpu, 100, 1e15) == 6
    assert process_count(auto, cpu, 4, 1e15) == 4
    assert process_count(auto, cpu, 100, 1e9) == 1
    limit.write_text("max\n")
    assert process_count(auto, cpu, 100, 1e15) == 6
    for gibibytes, processes in ((4, 2), (1, 1)):
        memory.total = gibibytes * 2**30
        assert process_count(auto, cpu, 100, 1e15) == processes
        assert process_count(three, cpu, 100, 1e15) == 3
    memory.total = 100 * 2**30
    limit.write_text(f"{5 * 2**30}\n")
    assert process_count(auto, cpu, 100, 1e15) == processes_that_fit() == 3
    monkeypatch.setattr("ddpm.utils.runtime.cuda_devices", lambda: 4)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA card")
    assert process_count(auto, cuda, 100, 1e15) == 4
    assert process_count(auto, cuda, 3, 1e15) == 3
    assert process_count(three, cuda, 100, 1e15) == 3
    for settings in (auto, three):
        assert process_count(settings, second, 100, 1e15) == 1
    monkeypatch.setattr("ddpm.utils.runtime.cuda_devices", lambda: 1)
    assert process_count(three, cuda, 100, 1e15) == 1
