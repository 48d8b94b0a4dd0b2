import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm.api import load
from ddpm.config import Config
from ddpm.utils.errors import DdpmError
from ddpm.utils.runtime import (
    Runtime,
    _memory_bytes,
    choose_device,
    choose_runtime,
    cuda_devices,
    fast_precision,
    peak_memory_bytes,
    sharing,
    true_float32,
    wanted_device,
    worker_count,
)


@pytest.fixture(autouse=True)
def _global_switches_are_given_back() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark
    torch.set_flush_denormal(False)


def test_a_device_that_is_not_there_is_named(configure: Callable[..., Config]):
    with pytest.raises(DdpmError, match=r"runtime\.device=cuda:99: "):
        choose_runtime(configure({"runtime.device": "cuda:99"}).runtime, 0.0)


def test_a_process_computes_on_the_device_of_its_number_or_the_one_it_is_shown(
    cpu: Runtime, monkeypatch: pytest.MonkeyPatch
):
    chosen: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    for count, rank, expected in ((4, 0, 0), (4, 3, 3), (4, 5, 1), (1, 1, 0)):
        monkeypatch.setattr("ddpm.utils.runtime.cuda_devices", lambda count=count: count)
        own = replace(cpu, device=torch.device("cuda")).of_rank(rank)
        assert own.device == chosen.pop() == torch.device("cuda", expected)
    named = replace(cpu, device=torch.device("cuda", 2))
    assert named.of_rank(1) == named
    assert not chosen


def test_bfloat16_is_for_devices_that_compute_in_it(monkeypatch: pytest.MonkeyPatch):
    # Device 0 is an older model than device 1.
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: ((7, 5), (9, 0))[device.index])
    assert fast_precision(torch.device("cuda", 0)) == torch.float32
    assert fast_precision(torch.device("cuda", 1)) == torch.bfloat16


@pytest.fixture
def _nvidia(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with an NVIDIA driver and its devices, of which PyTorch can use none."""
    monkeypatch.setattr("ddpm.utils.runtime._NVIDIA_DRIVERS", (tmp_path / "none", tmp_path))
    monkeypatch.setattr("ddpm.utils.runtime._NVIDIA_DEVICES", (tmp_path / "none", tmp_path))
    monkeypatch.setattr("ddpm.utils.runtime._PCI_DEVICES", tmp_path / "none")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("_nvidia")
@pytest.mark.parametrize("counted", [0, 1])  # by the driver, which may be too old for PyTorch
def test_a_driver_that_pytorch_cannot_use_is_told(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, counted: int
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: counted)
    with pytest.warns(UserWarning, match=r"NVIDIA driver, but PyTorch finds no device it can use.*nvidia-smi"):
        assert choose_runtime(configure({"runtime.device": "auto"}).runtime, 0.0).device.type == "cpu"
    with pytest.warns(UserWarning, match=r"NVIDIA driver, but PyTorch finds no device it can use.*nvidia-smi"):
        assert load().device.type == "cpu"
    with pytest.raises(
        DdpmError, match=r"choose auto or cpu\. The NVIDIA driver here may be too old for CUDA .*nvidia-smi"
    ):
        choose_runtime(configure({"runtime.device": "cuda"}).runtime, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_runtime(configure({"runtime.device": "cpu"}).runtime, 0.0)
        monkeypatch.setattr("ddpm.utils.runtime._NVIDIA_DRIVERS", (tmp_path / "none",))
        choose_runtime(configure({"runtime.device": "auto"}).runtime, 0.0)


@pytest.mark.usefixtures("_nvidia")
def test_the_driver_is_not_blamed_for_what_is_not_its_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("ddpm.utils.runtime._NVIDIA_DEVICES", (tmp_path / "none",))
    with pytest.warns(UserWarning, match="not given to this container"):
        choose_device("auto", "device auto")
    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.warns(UserWarning, match="PyTorch is built for CPUs"):
        choose_device("auto", "device auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for hidden in ("", "-1"):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
            assert choose_device("auto", "device auto").type == "cpu"


@pytest.mark.usefixtures("_nvidia")
@pytest.mark.parametrize(
    ("vendor", "kind", "told"),
    [("0x10de", "0x030200", True), ("0x10de", "0x020000", False), ("0x1002", "0x030000", False)],
    ids=["a graphics device of NVIDIA", "a network device of NVIDIA", "another graphics device"],
)
def test_a_device_without_a_driver_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vendor: str, kind: str, told: bool
):
    monkeypatch.setattr("ddpm.utils.runtime._NVIDIA_DRIVERS", (tmp_path / "none",))
    monkeypatch.setattr("ddpm.utils.runtime._PCI_DEVICES", tmp_path / "devices")
    for number in range(2):
        device = tmp_path / f"devices/0000:0{number}:00.0"
        device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert choose_device("auto", "device auto").type == "cpu"
    said = (
        r"has an NVIDIA device, but PyTorch finds no device it can use.* NVIDIA's driver is not installed, or not given"
    )
    assert [bool(re.search(said, str(warning.message))) for warning in caught] == [True] * told


def test_devices_of_a_driver_that_pytorch_cannot_use_do_not_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA card")
    for usable, count in ((True, 2), (False, 0)):
        monkeypatch.setattr("torch.cuda.is_available", lambda usable=usable: usable)
        assert cuda_devices() == sharing(torch.device("cuda"), 8) == count
        assert wanted_device("auto").type == ("cuda" if usable else "cpu")
    with pytest.raises(DdpmError, match=r"^device cuda: this machine has 0 CUDA devices; choose auto or cpu\.$"):
        load(device="cuda")


def test_devices_of_another_model_do_not_share_the_work(monkeypatch: pytest.MonkeyPatch):
    models = ["large", "large", "small", "large"]
    monkeypatch.setattr("ddpm.utils.runtime.cuda_devices", lambda: len(models))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: models[number])
    assert sharing(torch.device("cuda"), 8) == 2
    assert sharing(torch.device("cuda"), 1) == 1
    models[1] = "small"
    assert sharing(torch.device("cuda"), 8) == 1


@pytest.mark.parametrize(("capability", "usable"), [((6, 1), False), ((7, 0), False), ((7, 5), True), ((9, 0), True)])
def test_a_device_that_pytorch_has_no_kernels_for_is_refused(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], usable: bool
):
    monkeypatch.setattr("ddpm.utils.runtime.cuda_devices", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "sm_120", "compute_120"])
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA card")
    settings = configure({"runtime.device": "auto", "runtime.compile": "off"}).runtime
    if usable:
        assert choose_runtime(settings, 0.0).device.type == "cuda"
        return
    with pytest.raises(
        DdpmError, match=r"^runtime\.device=auto: PyTorch .* NVIDIA card, a device so old; set it to cpu"
    ):
        choose_runtime(settings, 0.0)
    with pytest.raises(DdpmError, match=r"^device cuda: PyTorch .* NVIDIA card, a device so old; set it to cpu"):
        load(device="cuda")


def test_float32_is_float32_and_attention_has_the_deterministic_kernel(cpu: Runtime):
    cpu.set_up()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.mem_efficient_sdp_enabled()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.math_sdp_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


def test_what_is_asked_for_is_chosen(configure: Callable[..., Config]):
    settings = {"runtime.device": "cpu", "runtime.precision": "bfloat16", "runtime.compile": "off"}
    runtime = choose_runtime(configure(settings).runtime, 1e30)
    assert runtime == Runtime(torch.device("cpu"), torch.bfloat16, False)
    assert torch.are_deterministic_algorithms_enabled()


def test_little_work_is_not_compiled(configure: Callable[..., Config]):
    settings = {"runtime.device": "cpu", "runtime.precision": "float32", "runtime.compile": "auto"}
    assert not choose_runtime(configure(settings).runtime, 1e9).compiled


def test_training_is_compiled_for_more_work_than_sampling(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ddpm.utils.runtime._compile_failure", lambda _: "")
    settings = {"runtime.device": "cpu", "runtime.precision": "float32", "runtime.compile": "auto"}
    runtime = configure(settings).runtime
    assert [choose_runtime(runtime, 2e14, trains=trains).compiled for trains in (False, True)] == [True, False]
    assert choose_runtime(runtime, 1e15, trains=True).compiled


def test_where_compiling_fails_work_that_must_be_compiled_is_refused_and_other_runs_without(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ddpm.utils.runtime._compile_failure", lambda _: "there is no compiler")
    on, auto = (configure({"runtime.device": "cpu", "runtime.compile": each}).runtime for each in ("on", "auto"))
    with pytest.raises(DdpmError, match=r"^runtime\.compile=on: .* set it to auto or off: there is no compiler$"):
        choose_runtime(on, 1.0)
    with pytest.warns(UserWarning, match="running uncompiled, as torch.compile fails here: there is no compiler"):
        assert not choose_runtime(auto, 1e30).compiled


def test_nothing_imports_the_compiler_where_nothing_is_compiled():
    code = (
        "import sys, torch; from ddpm.api import load; from ddpm.utils.runtime import Runtime; "
        "Runtime(torch.device('cpu'), torch.float32, compiled=False).set_up(); "
        "load('mnist').sample(1, seed=0, steps=2); "
        "assert torch.are_deterministic_algorithms_enabled(); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("flops", "compiled"), [(5e15, False), (2e16, True)])
def test_what_is_little_work_depends_on_the_device(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, flops: float, compiled: bool
):
    monkeypatch.setattr("ddpm.utils.runtime.cuda_devices", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_arch_list", list)
    monkeypatch.setattr("ddpm.utils.runtime.fast_precision", lambda _: torch.bfloat16)
    monkeypatch.setattr("ddpm.utils.runtime._compile_failure", lambda _: "")
    settings = {"runtime.device": "auto", "runtime.precision": "auto", "runtime.compile": "auto"}
    assert choose_runtime(configure(settings).runtime, flops) == Runtime(torch.device("cuda"), torch.bfloat16, compiled)
    assert choose_runtime(configure(settings | {"runtime.device": "cpu"}).runtime, flops).compiled
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(("rank", "own"), [("0", 0), ("3", 3), ("5", 1), (None, 0)])
def test_what_torchrun_started_tries_the_compiler_on_its_own_device(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, rank: str | None, own: int
):
    current, used = [0], []

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        before, current[0] = current[0], wanted.index
        yield
        current[0] = before

    def ones(_: int, device: torch.device) -> torch.Tensor:
        # What names no device's number is on the current one; a kernel is launched, and memory held, on the latter.
        used.append((current[0] if device.index is None else device.index, current[0]))
        return torch.zeros(1)

    monkeypatch.setenv("LOCAL_RANK", rank) if rank else monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr("ddpm.utils.runtime.cuda_devices", lambda: 4)
    monkeypatch.setattr("torch.cuda.get_arch_list", list)
    monkeypatch.setattr("torch.cuda.device", device)
    monkeypatch.setattr("torch.ones", ones)
    monkeypatch.setattr("torch.compile", lambda function, **_: function)
    settings = {"runtime.device": "auto", "runtime.precision": "float32", "runtime.compile": "auto"}
    found = choose_runtime(configure(settings).runtime, 1e17)
    assert used == [(own, own)]
    assert (found.device, found.compiled, current) == (torch.device("cuda"), True, [0])
    choose_runtime(configure(settings | {"runtime.device": "cuda:2"}).runtime, 1e17)
    assert used[1:] == [(2, 2)]


def test_a_run_resumes_only_on_the_same_model_of_device(monkeypatch: pytest.MonkeyPatch):
    runtime = Runtime(torch.device("cuda"), torch.float32, compiled=True)
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: 91002)
    found = set()
    for name in ("NVIDIA A100", "NVIDIA H100"):
        monkeypatch.setattr("torch.cuda.get_device_name", lambda _, name=name: name)
        found |= {runtime.arithmetic(), replace(runtime, deterministic=False).arithmetic()}
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: 91100)
    assert len(found | {runtime.arithmetic()}) == 5
    assert all(name.startswith("NVIDIA") for name, *_ in found)


def test_true_float32_is_inside_alone(monkeypatch: pytest.MonkeyPatch):
    @true_float32()
    def failing() -> None:
        assert not torch.backends.cudnn.allow_tf32
        raise ValueError("inside")

    for before in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
        with pytest.raises(ValueError, match="inside"):
            failing()
        assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize(("precision", "found"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_matrix_products_have_the_chosen_precision(precision: torch.dtype, found: torch.dtype):
    predict = Runtime(torch.device("cpu"), precision, False).predictor(lambda x_t, t, labels: x_t @ x_t)  # type: ignore[arg-type]
    assert predict(torch.ones(2, 2), torch.zeros(2), None).dtype == found


@pytest.mark.parametrize(
    ("precision", "compiled", "groups", "last"),
    [
        (torch.float32, False, 1, True),
        (torch.float32, False, 4, True),
        (torch.float32, False, 8, False),
        (torch.bfloat16, False, 2, True),
        (torch.bfloat16, False, 4, False),
        (torch.bfloat16, True, 4, True),
    ],
)
def test_weights_lie_in_the_order_that_is_fastest(precision: torch.dtype, compiled: bool, groups: int, last: bool):
    runtime = Runtime(torch.device("cpu"), precision, compiled)
    layers = runtime.prepare(torch.nn.Sequential(torch.nn.Conv2d(4, 32, 3), torch.nn.GroupNorm(groups, 32)))
    assert layers[0].weight.is_contiguous(memory_format=torch.channels_last) == last


def test_the_description_is_plain_values(cpu: Runtime):
    described = cpu.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["precision"] == "float32"
    assert described["compiled"] is False


def test_workers_are_the_number_asked_for_or_the_usable_processors():
    assert worker_count(3) == 3
    assert 1 <= worker_count("auto") <= (os.cpu_count() or 1)


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are of Linux")
@pytest.mark.parametrize(("quota", "found"), [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1)])
def test_a_container_has_the_processors_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, found: int
):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr("ddpm.utils.runtime._CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert worker_count("auto") == found


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are of Linux")
@pytest.mark.parametrize("group", ["slurm/job_7/step_0", "slurm/job_7"])
def test_a_job_has_the_processors_and_the_memory_of_the_groups_that_it_is_within(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, group: str
):
    (job := tmp_path / "groups/slurm/job_7").mkdir(parents=True)
    (job / "step_0").mkdir()
    (job / "step_0/memory.max").write_text("max\n")
    (job / "memory.max").write_text(f"{2**30}\n")
    (job / "cpu.max").write_text("300000 100000\n")
    (job.parent / "cpu.max").write_text("max 100000\n")
    (own := tmp_path / "cgroup").write_text(f"12:devices:/of/version/1\n0::/{group}\n")
    monkeypatch.setattr("ddpm.utils.runtime._CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr("ddpm.utils.runtime._OWN_GROUP", own)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert worker_count("auto") == 3
    assert _memory_bytes() == 2**30
    own.write_text("0::/../elsewhere\n")  # as of a container that sees the names of its machine
    assert worker_count("auto") == 8


def test_memory_is_counted_in_bytes(cpu: Runtime):
    before = peak_memory_bytes(cpu)
    block = torch.ones(1 << 28, dtype=torch.uint8)
    assert 100 << 20 < before < 64 << 30
    assert peak_memory_bytes(cpu) >= max(before, block.numel())
