"""How seconds and memory grow: `python -m benchmarks.scaling --help`.

Along each axis the other sizes stay as params.yaml says. Every point is measured in a process of its own, so that its
peak memory is its own; the networks are untrained, which changes no speed, and not compiled. The exponent is the slope
of a least-squares line through the logarithms: 1 is proportional, 0 does not grow. That of memory counts what the work
takes beyond the idle process.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import SPEC, arguments, run, save, settings, show
from ddpm.data.image_set import ImageSet
from ddpm.models.build import build_network
from ddpm.models.checkpoint import Checkpoint
from ddpm.models.conditioning import Conditioning
from ddpm.sampling.batches import write_images
from ddpm.sampling.generator import make_generator
from ddpm.training.loop import train
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.runtime import choose_runtime, peak_memory_bytes, worker_count

# (axis, what is measured, values, what else is set)
AXES: list[tuple[str, str, list[int], dict[str, Any]]] = [
    ("images", "sample", [10_000, 30_000, 100_000], {"generate.steps": 1}),
    ("images, npz", "sample", [10_000, 30_000, 100_000], {"generate.steps": 1, "generate.format": "npz"}),
    ("steps", "sample", [5, 10, 20, 40], {"generate.num_images": 1000}),
    ("base_channels", "sample", [16, 32, 64, 128], {"generate.num_images": 500, "generate.steps": 5}),
    ("image_size", "sample", [14, 28, 56, 112], {"generate.num_images": 500, "generate.steps": 5}),
    ("base_channels", "train", [16, 32, 64, 128], {}),
    ("image_size", "train", [14, 28, 56, 112], {}),
    ("batch_size", "train", [16, 32, 64, 128, 256], {}),
]
KEYS = {
    "images": "generate.num_images",
    "images, npz": "generate.num_images",
    "steps": "generate.steps",
    "base_channels": "model.base_channels",
    "batch_size": "train.batch_size",
}
TRAIN_STEPS = 30


def point(kind: str, axis: str, value: int, fixed: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds (of all images, or of one training step), peak MiB, and how many of these the work itself took."""
    changes: dict[str, Any] = {
        "model.clusters": 1,
        "generate.guidance": 1.0,
        "generate.autoguidance": 1.0,
        "generate.trajectories": 1,
        "generate.output_size": SPEC.size,
    } | fixed
    if axis in KEYS:
        changes[KEYS[axis]] = value
    spec = replace(SPEC, size=value) if axis == "image_size" else SPEC
    config = settings(changes)
    runtime = choose_runtime(config.runtime.model_copy(update={"compile": "off"}), 0.0)
    idle = peak_memory_bytes(runtime) / 2**20
    with TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "sample":
            torch.manual_seed(0)
            weights = dict(build_network(config.model, spec).named_parameters())
            labels = Conditioning.by_class([1.0 / spec.classes] * spec.classes)
            checkpoint = Checkpoint(
                config.model, config.diffusion, spec, labels, {}, {"ema": weights, "guide": weights}
            )
            generator = make_generator(checkpoint, "the network", config.generate, config.seed, runtime)
            cost, _ = write_images(generator, folder, worker_count("auto"), "auto", folder / "kept")
            peak = peak_memory_bytes(runtime) / 2**20
            return cost["generate_seconds"], peak, peak - idle
        count = TRAIN_STEPS * config.train.batch_size
        random = np.random.default_rng(0)
        images = random.integers(256, size=(count, *spec.shape), dtype=np.uint8)
        training = ImageSet(images, random.integers(spec.classes, size=count), np.arange(count), spec.classes)
        quiet = {"train.epochs": 1.0, "train.validate_every": 10**9, "train.preview_every": 0}
        config = settings(changes, quiet, {"train.validation_images": 1})
        recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
        with RunFolder(folder / "out", folder / "kept") as run:
            _, cost = train(recipe, training, training, runtime, run, float("inf"))
        peak = peak_memory_bytes(runtime) / 2**20
        return config.train.batch_size / cost["train_images_per_second"], peak, peak - idle


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of log y over log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def main() -> None:
    given = arguments(__doc__).parse_args()
    rows, slopes = [], []
    context = multiprocessing.get_context("spawn")
    for axis, kind, values, fixed in AXES:
        found = []
        for value in tqdm(values, desc=f"{kind} by {axis}"):
            started = time.perf_counter()
            with ProcessPoolExecutor(1, context) as pool:
                seconds, peak, taken = pool.submit(point, kind, axis, value, fixed).result()
            found.append((seconds, taken))
            whole = time.perf_counter() - started
            rows.append(
                {
                    "work": kind,
                    "axis": axis,
                    "value": value,
                    "seconds": seconds,
                    "peak_mib": peak,
                    "taken_mib": taken,
                    "whole_s": whole,
                }
            )
        slopes.append(
            {
                "work": kind,
                "axis": axis,
                "seconds_exponent": exponent(values, [seconds for seconds, _ in found]),
                "memory_exponent": exponent(values, [taken for _, taken in found]),
            }
        )
        save(rows, given.json, {"exponents": slopes})
    show(rows)
    show(slopes)


if __name__ == "__main__":
    run(main)
