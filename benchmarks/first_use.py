"""Seconds of the shipped model's first uses, start included: `python -m benchmarks.first_use --help`.

Each is a process of its own, in an empty folder: `python -m ddpm sample`, which samples 64 digits; loading the model;
the model and one digit, a second one, and the right half of one painted again. The least and the median of several.
"""

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tqdm import tqdm

from benchmarks.common import arguments, run, save, show

CODE = """
import time
started = time.perf_counter()
import numpy as np
import ddpm
model = ddpm.load()
print("import and load", time.perf_counter() - started)
digit, right = np.zeros((1, 28, 28), np.uint8), np.arange(28) >= np.full((28, 1), 14)
digit[:, 4:24, 13:16] = 255  # a one
for call, name in (
    (lambda: model.sample(1, labels=7), "first digit"),
    (lambda: model.sample(1, labels=7, seed=1), "next digit"),
    (lambda: model.inpaint(digit, right), "inpainting a digit"),
):
    started = time.perf_counter()
    call()
    print(name, time.perf_counter() - started)
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="of each (default 5)")
    given = parser.parse_args()
    seconds: dict[str, list[float]] = defaultdict(list)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    for _ in tqdm(range(given.repeats), unit="run"):
        with TemporaryDirectory() as folder:
            started = time.perf_counter()
            command = [sys.executable, "-m", "ddpm", "sample"]
            subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
            seconds["python -m ddpm sample, 64 digits"].append(time.perf_counter() - started)
            command = [sys.executable, "-c", CODE]
            done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            name, _, found = line.rpartition(" ")
            seconds[name].append(float(found))
    rows = [{"what": name, "least_s": min(found), "median_s": median(found)} for name, found in seconds.items()]
    save(rows, given.json, {"repeats": given.repeats})
    show(rows)


if __name__ == "__main__":
    run(main)
