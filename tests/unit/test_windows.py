"""What Windows lacks, as far as Linux can show it: every module is imported, and files are written, without it."""

import subprocess
import sys

from clones import REPOSITORY

# The libraries come first: on Linux they use what is then taken away, on Windows they do without.
SCRIPT = """
import importlib, multiprocessing.sharedctypes, os, pkgutil, platform, signal, stat, sys, tempfile
from pathlib import Path

import click, dvc.api, filelock, matplotlib.pyplot, mkdocs.config.defaults, optuna, pandas, psutil, scipy.linalg
import torch, torch._dynamo, torchvision.datasets

for module in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[module] = None
for name in ("fork", "getpgid", "getuid", "killpg", "nice", "sched_getaffinity", "sync"):
    delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGSTOP", "SIGUSR1"):
    delattr(signal, name)
sys.platform, platform.system = "win32", lambda: "Windows"

names = [
    found.name
    for room in ("ddpm", "stages", "presets", "tools", "benchmarks")
    for found in pkgutil.walk_packages([room], f"{room}.")
]
assert len(names) > 80, names
for name in names:
    importlib.import_module(name)

from ddpm.utils import files, runtime

flushed = []
def fsync(handle):
    flags = Path(f"/proc/self/fdinfo/{handle}").read_text().split("flags:")[1].split()[0]
    assert stat.S_ISREG(os.fstat(handle).st_mode) and int(flags, 8) & os.O_RDWR, "refused by Windows"
    flushed.append(handle)
os.fsync = fsync
with tempfile.TemporaryDirectory() as place:
    files.write_json(Path(place, "a.json"), {"a": 1})
    assert files.read_json(Path(place, "a.json")) == {"a": 1}
    for _ in range(2):
        with files.atomic_folder(Path(place, "folder")) as folder:
            (folder / "b").write_text("b")
    assert sorted(path.name for path in Path(place).iterdir()) == ["a.json", "folder"]
assert len(flushed) == 1
assert runtime.worker_count("auto") >= 1
cpu = runtime.Runtime(torch.device("cpu"), torch.float32, False)
assert 1 << 20 < runtime.peak_memory_bytes(cpu) * 3 <= runtime.peak_memory_bytes(cpu, 2) * 1.1
print(len(names), "modules")
"""


def test_every_module_is_imported_and_files_are_written_without_what_windows_lacks():
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("modules\n")
