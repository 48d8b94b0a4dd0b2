"""Where and how fast to compute: device, number format, compilation. It changes speed and rounding, never the task."""

import math
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil
import torch
from torch import Tensor

from ddpm.config import RuntimeConfig
from ddpm.utils.errors import DdpmError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

F = TypeVar("F", bound=Callable[..., Any])

# Below this much work (FLOPs of the whole stage) compiling costs more time than it saves: in evaluating a network, and
# in training one. On a CPU it saves a sixth of the one and a twelfth of the other (`benchmarks.throughput`). Of CUDA an
# estimate: a minute of a large GPU at a quarter of its peak. Elsewhere it is done on demand only.
_COMPILE_PAYS_FLOPS = {"cpu": (1e14, 3e14), "cuda": (1e16, 1e16)}
_PROCESSES_PAY_FLOPS = 3e12  # half a minute of a core: below, starting processes takes longer than they save
# Of Linux, and of Linux under Windows.
_NVIDIA_DRIVERS = Path("/proc/driver/nvidia/version"), Path("/usr/lib/wsl/lib/libcuda.so.1")
_NVIDIA_DEVICES = Path("/dev/nvidiactl"), Path("/dev/dxg")
_PCI_DEVICES, _NVIDIA, _GRAPHICS = Path("/sys/bus/pci/devices"), "0x10de", "0x03"  # vendor; first digits of the class
_CONTROL_GROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_PROCESS_BYTES = 3 * 2**29  # of memory for each process that trains or samples on a CPU, which takes two thirds of it
_LINUX = platform.system() == "Linux"


@dataclass(frozen=True)
class Runtime:
    """device: where tensors live. precision: the format of matrix products. compiled: whether networks are compiled.

    deterministic: whether results have the same bits in every run.
    """

    device: torch.device
    precision: torch.dtype
    compiled: bool
    deterministic: bool = True

    def set_up(self) -> None:
        """Let this process compute so."""
        # float32 means float32: with TF32 a GPU would measure other distances than a CPU.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.set_flush_denormal(True)
        torch.backends.cudnn.benchmark = not self.deterministic
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            if self.compiled:
                torch.use_deterministic_algorithms(True)  # the compiler's too
            else:
                torch.set_deterministic_debug_mode("error")  # the same; not to import the compiler saves a second
            # The gradients of attention's fused kernels on CUDA are not deterministic; of 49 places none needs them.
            torch.backends.cuda.enable_flash_sdp(False)
            torch.backends.cuda.enable_mem_efficient_sdp(False)
            torch.backends.cuda.enable_cudnn_sdp(False)
            # That mode also fills all new memory, which guards against reading it unwritten; nothing here does, and it
            # takes a twentieth of a training step.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def of_rank(self, rank: int) -> "Runtime":
        """The same in a process of its own, number ``rank`` of those on this machine; sets it up.

        On a CPU it computes in one thread: the results then have the same bits for any number of processes and cores.
        """
        cuda = self.device.type == "cuda" and self.device.index is None
        device = _device_of_rank(rank) if cuda else self.device
        own = replace(self, device=device)
        own.set_up()
        if cuda:
            torch.cuda.set_device(device)
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        return own

    def prepare(self, network: torch.nn.Module) -> torch.nn.Module:
        """Move a network to the device, its weights in the memory order that is fastest there."""
        # Uncompiled on a CPU, GroupNorm of few channels a group is up to five times slower in channels_last.
        few = 16 if self.precision == torch.bfloat16 else 8
        norms = (layer for layer in network.modules() if isinstance(layer, torch.nn.GroupNorm))
        slow = not self.compiled and self.device.type == "cpu"
        slow = slow and any(norm.num_channels // norm.num_groups < few for norm in norms)
        # Apple's kernels take images in the usual order.
        fastest = torch.contiguous_format if slow or self.device.type == "mps" else torch.channels_last
        return network.to(self.device).to(memory_format=fastest)

    def predictor(self, network: torch.nn.Module) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """The network as a function (x_t, t, labels) -> prediction, its matrix products in the chosen format."""

        def predict(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                return cast(Tensor, network(x_t, t, labels))

        return predict

    def compile(self, function: F) -> F:
        """``function`` compiled for fixed shapes, or itself.

        On CUDA its kernels are launched as one graph, so that a result is overwritten by the next call: copy it first.
        """
        if not self.compiled:
            return function
        if self.device.type != "cuda":
            return cast(F, torch.compile(function, dynamic=False))
        compiled = torch.compile(function, dynamic=False, mode="reduce-overhead")

        def launch(*given: Any) -> Any:  # noqa: ANN401
            # Validation has no backward pass; unless told, the graphs would wait for one, and be recorded again.
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(*given)

        return cast(F, launch)

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read next is honest."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def arithmetic(self) -> tuple[str, str, bool, str, bool]:
        """What decides how results are rounded: device, number format, compiled or not, release of torch, flag.

        Of a CUDA device its model, and the release of cuDNN.
        """
        device = self.device.type
        if device == "cuda":
            device = f"{torch.cuda.get_device_name(self.device)}, cuDNN {torch.backends.cudnn.version()}"
        return device, str(self.precision), self.compiled, torch.__version__, self.deterministic

    def describe(self) -> dict[str, str | bool | int]:
        """What was chosen, as plain values for the metrics."""
        names = {"cuda": torch.cuda.get_device_name, "mps": lambda _: "Apple GPU (mps)", "cpu": lambda _: _cpu_name()}
        return {
            "device": names[self.device.type](self.device),
            "threads": torch.get_num_threads(),
            "precision": str(self.precision).removeprefix("torch."),
            "compiled": self.compiled,
            "torch": torch.__version__,
        }


def environment() -> dict[str, str]:
    """What else of the machine can explain that two runs differ in their last bits."""
    return {
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def choose_runtime(config: RuntimeConfig, flops: float, *, trains: bool = False) -> Runtime:
    """Turn the settings, `auto` included, into a choice for work of about ``flops`` floating-point operations.

    trains: whether that work is training. Raises what `choose_device` does, and DdpmError where it is to be compiled
    and that fails.
    """
    device = choose_device(config.device, f"runtime.device={config.device}")
    precision = fast_precision(device) if config.precision == "auto" else getattr(torch, config.precision)
    pays = _COMPILE_PAYS_FLOPS.get(device.type, (math.inf, math.inf))[trains]
    compiled = config.compile == "on" or (config.compile == "auto" and flops > pays)
    if compiled and flops and (failure := _compile_failure(device)):
        if config.compile == "on":
            raise DdpmError(f"runtime.compile=on: torch.compile fails here, set it to auto or off: {failure}")
        warnings.warn(f"running uncompiled, as torch.compile fails here: {failure}", stacklevel=2)
        compiled = False
    runtime = Runtime(device, precision, compiled, config.deterministic)
    runtime.set_up()
    return runtime


def choose_device(wanted: str | torch.device, called: str) -> torch.device:
    """The device of that name, which messages call ``called``; auto: CUDA where there is a device, else the CPU.

    Warns where auto takes the CPU beside an NVIDIA device. Raises DdpmError for a device that is not there, and for one
    that PyTorch has no kernels for.
    """
    count, unused = cuda_devices(), _why_unused()
    if unused and wanted == "auto":
        seen = "driver" if _has_nvidia_driver() else "device"
        warnings.warn(
            f"this machine has an NVIDIA {seen}, but PyTorch finds no device it can use, so the CPU computes. "
            f"{unused} To name the device cpu silences this.",
            stacklevel=2,
        )
    try:
        device = wanted_device(wanted)
    except (RuntimeError, TypeError) as error:
        raise DdpmError(f"there is no {called}: choose auto, cpu or cuda.") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise DdpmError(f"there is no {called}: choose auto, cpu or cuda.")
    if device.type == "cuda" and (device.index or 0) >= count:
        fix = "choose auto or cpu." + (unused and f" {unused}")
        raise DdpmError(f"{called}: this machine has {count} CUDA devices; {fix}")
    if device.type == "cuda" and (reason := _without_kernels(device)):
        raise DdpmError(f"{called}: {reason}; set it to cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DdpmError(f"{called}: PyTorch finds no Apple GPU on this machine; choose auto or cpu.")
    return device


def cuda_devices() -> int:
    """How many CUDA devices PyTorch can use here."""
    # With a driver that is too old, PyTorch still counts them.
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _why_unused() -> str:
    """Why PyTorch can use no CUDA device although the machine has an NVIDIA driver or device, as a sentence.

    Empty where there are devices that it can use, or neither, or where they are hidden on purpose.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or cuda_devices():
        return ""
    if not _has_nvidia_driver():
        missing = "NVIDIA's driver is not installed, or not given to this container (`docker run --gpus all`)."
        return missing if _has_nvidia_device() else ""
    if torch.version.cuda is None:
        return "This PyTorch is built for CPUs: the one of requirements.txt, on Linux, is for CUDA."
    if not any(path.exists() for path in _NVIDIA_DEVICES):
        return "The devices are not given to this container: see nvidia-smi in it, and `docker run --gpus all`."
    return f"The NVIDIA driver here may be too old for CUDA {torch.version.cuda}, see nvidia-smi."


def _has_nvidia_driver() -> bool:
    return any(path.exists() for path in _NVIDIA_DRIVERS)


def _has_nvidia_device() -> bool:
    """Whether the kernel sees a graphics device of NVIDIA, with a driver or without."""

    def is_one(device: Path) -> bool:
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            return False
        return vendor == _NVIDIA and kind.startswith(_GRAPHICS)

    return any(map(is_one, _PCI_DEVICES.glob("*")))


def _without_kernels(device: torch.device) -> str:
    """Why a CUDA device is too old for this release of PyTorch; empty where it is not."""
    known = [int(found[1]) for name in torch.cuda.get_arch_list() if (found := re.match(r"sm_(\d+)", name))]
    if not known or divmod(min(known), 10) <= torch.cuda.get_device_capability(device):
        return ""
    return f"PyTorch {torch.__version__} no longer computes on {torch.cuda.get_device_name(device)}, a device so old"


def wanted_device(device: str | torch.device) -> torch.device:
    """The device of that name; auto: CUDA where there is one, else the CPU. Raises RuntimeError where it is no name."""
    default = "cuda" if cuda_devices() else "cpu"
    return torch.device(default if device == "auto" else device)


def sharing(device: torch.device, processes: int) -> int:
    """How many of so many processes can share work on a device.

    No CUDA device is shared: there are at most as many processes as devices, not counting those of other models than
    the first's and what follows them, whose results have other bits. A device that is named by its index is used alone,
    and so is an Apple GPU.
    """
    if device.type == "mps" or device.index is not None:
        return 1
    if device.type != "cuda":
        return processes
    models = [torch.cuda.get_device_name(number) for number in range(cuda_devices())]  # the fastest comes first
    return min(processes, sum(1 for _ in takewhile(lambda model: model == models[0], models)))


def process_count(config: RuntimeConfig, runtime: Runtime, most: int, flops: float) -> int:
    """How many processes share work of ``most`` equal parts: the setting, or one a processor or CUDA device.

    flops: of the work, which must repay starting them on a CPU, where `auto` is no more than the machine's memory
    holds: the whole of it, free or not, so that the same machine always has as many. See `sharing`.
    """
    if isinstance(config.processes, int):
        found = config.processes
    elif runtime.device.type == "cuda":
        found = most
    else:
        found = processes_that_fit() if flops > _PROCESSES_PAY_FLOPS else 1
    return sharing(runtime.device, min(found, most))


def processes_that_fit() -> int:
    """How many processes this machine's processors and memory hold: one a processor, see `process_count`."""
    return min(worker_count("auto"), max(1, _memory_bytes() // _PROCESS_BYTES))


def _memory_bytes() -> int:
    """The main memory of this machine, or less where this process is limited to that, see `_limits`."""
    limits = [int(limit) for limit in _limits("memory.max") if limit != "max"]
    return min([int(psutil.virtual_memory().total), *limits])


def _limits(name: str) -> list[str]:
    """What a file of Linux's control groups, version 2, says of this process's group and of those that it is within.

    Containers (`docker run --memory`), Slurm and systemd limit by them. Within a container its group is the uppermost.
    """
    lines = _OWN_GROUP.read_text().splitlines() if _OWN_GROUP.exists() else []
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    files = (place / name for place in (Path(group), *Path(group).parents))
    return [path.read_text().strip() for file in files if (path := _CONTROL_GROUPS / file).is_file()]


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, compute in one thread inside: sums then have the same bits on machines with more or fewer cores."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def worker_count(workers: int | str) -> int:
    """How many threads to use beside the main one: the setting, or the number of usable processors.

    Where a control group (`docker run --cpus`) limits to the time of fewer processors, there are that many.
    """
    if isinstance(workers, int):
        return workers
    if not _LINUX:
        return os.cpu_count() or 1
    # Microseconds of processor time, or "max", in so many microseconds.
    quotas = [each.split() for each in _limits("cpu.max")]
    given = [math.ceil(int(quota) / int(period)) for quota, period in quotas if quota != "max"]
    return max(1, min([len(os.sched_getaffinity(0)), *given]))


@contextmanager
def true_float32() -> Iterator[None]:
    """Inside, float32 on CUDA means float32 in convolutions too: see `Runtime.set_up`, which a caller may not want."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def peak_memory_bytes(runtime: Runtime, processes: int = 1) -> int:
    """The most memory this process has held: on its device for CUDA, else resident in main memory.

    processes: where more than one, so many were started by this one and have ended: each counts as much as the largest,
    on Windows as much as this one. On Linux the libraries, which all of them share, count once.
    """
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated(runtime.device)
    if resource is None:
        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss)) * (1 + processes if processes > 1 else 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if processes > 1:
        peak += processes * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - _shared_kibibytes())
    return peak * 1024 if _LINUX else peak


def _shared_kibibytes() -> int:
    """What of this process's memory are pages of files, all but a little of it libraries; 0 where that is not known."""
    if not _LINUX:
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("RssFile:")), 0)


def fast_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, float32 elsewhere."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device)[0] >= 8
    elif device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def _device_of_rank(rank: int) -> torch.device:
    """The CUDA device of process number ``rank`` of those on this machine."""
    # Where each process is shown a device of its own alone, as by Slurm, that is number 0, whatever the rank.
    return torch.device("cuda", rank % cuda_devices())


def _compile_failure(device: torch.device) -> str:
    """Why torch.compile fails here, "" if it works: a CPU needs a C++ compiler, CUDA needs Triton and a C compiler."""
    # What torchrun has started takes a device of its own only later; to try on the first would put memory of all there.
    own = _device_of_rank(int(os.environ.get("LOCAL_RANK") or 0)) if device == torch.device("cuda") else device
    try:
        with torch.cuda.device(own) if own.type == "cuda" else nullcontext():
            torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.ones(64, device=own))
    except Exception as error:  # the compiler's failures have no common type; whatever it was, running uncompiled works
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"
