"""Whether all that is said of CUDA is true of the device here, and how fast it is: `python -m benchmarks.cuda --help`.

For a machine with a GPU and little else: it needs the checkout, the four MNIST files, PyTorch and what `NEEDED` names,
neither dvc nor a network; without a C compiler it trains uncompiled, as `device` says then. After six and a half
minutes no further check begins, and after eight one that is under way is broken off, even where the device hangs. Every
check says what was compared; one that does not hold, or was not done, makes the exit status 1, and the rest is done all
the same. Nothing of it is measured on a CPU: there, with --rehearse, the same checks run in small, and show only that
they can.
"""

import argparse
import faulthandler
import importlib.util
import json
import math
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NEEDED = (
    "torch",
    "numpy",
    "scipy",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "PIL",
    "tqdm",
    "psutil",
    "threadpoolctl",
    "filelock",
)
ROOT = Path(__file__).parents[1]
GRACE = 1.5  # minutes that the last check to begin has
CHECKS: dict[str, Callable[["Bench"], dict[str, Any]]] = {}


class Bench:
    """The device, the images and the settings of all checks. rehearse: whether they are done in small."""

    def __init__(self, mnist: Path, *, rehearse: bool) -> None:
        from ddpm.config import RuntimeConfig, read_yaml
        from ddpm.data.sources.mnist import MNIST
        from ddpm.data.split import stratified_split
        from ddpm.utils.runtime import choose_runtime

        self.rehearse = rehearse
        self.values: dict[str, Any] = read_yaml(Path("params.yaml"))
        self.config = self.settings({})
        images = MNIST.load(mnist, "train")
        train, validation = stratified_split(images.labels, self.config.split.train_fraction, self.config.seed)
        self.training, self.validation = images.take(train), images.take(validation)
        wanted: dict[str, Any] = {"device": "cpu" if rehearse else "cuda", "compile": "off" if rehearse else "auto"}
        self.runtime_settings: RuntimeConfig = self.config.runtime.model_copy(update=wanted)
        self.runtime = choose_runtime(self.runtime_settings, float("inf"))
        self.device = self.runtime.device

    def settings(self, changes: dict[str, dict[str, Any]], preset: str | None = None) -> Any:  # noqa: ANN401
        """params.yaml with a preset and with changes, by section."""
        from ddpm.config import parse_config, read_yaml

        values = json.loads(json.dumps(self.values))
        for part in ([read_yaml(ROOT / f"presets/{preset}.yaml")] if preset else []) + [changes]:
            for section, entries in part.items():
                values[section] = values[section] | entries
        return parse_config(values, "params.yaml")

    def train(
        self,
        folder: Path,
        config: Any,  # noqa: ANN401
        stop_after: int = 0,
        save_every_seconds: float = 1e9,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> dict[str, Any]:
        """Train in the folder, which may hold a stopped run; stop_after: steps after which it is asked to stop.

        on_step: called within each step with its number, from 0.
        """
        import torch

        from ddpm.training.loop import train
        from ddpm.training.ranks import Ranks
        from ddpm.training.run_folder import RunFolder
        from ddpm.training.state import Recipe

        torch.compiler.reset()
        steps = count()

        def asked() -> bool:
            on_step(step := next(steps))
            return 0 < stop_after <= step

        ranks = Ranks(stop=asked)
        recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
        with RunFolder(folder, folder / "kept") as place:
            return train(recipe, self.training, self.validation, self.runtime, place, save_every_seconds, ranks)[1]

    def digest(self, folder: Path, config: Any) -> str:  # noqa: ANN401
        """Train in the folder, to the end; returns the beginning of the checkpoint's SHA-256."""
        from ddpm.utils.files import sha256

        self.train(folder, config)
        return sha256(folder / "last.safetensors")[:16]

    def uncompiled(self) -> "Bench":
        """The same without compiling."""
        other = copy(self)
        other.runtime = replace(self.runtime, compiled=False)
        return other

    def short(self, steps: int, preset: str | None = None, **changes: Any) -> Any:  # noqa: ANN401
        """Settings for so many steps, of a small network in a rehearsal."""
        size = self.settings({}, preset).train.batch_size if not self.rehearse else 16
        train = {
            "batch_size": size,
            "epochs": steps * size / len(self.training),
            "preview_every": 0,
            "validate_every": 10**9,
            "validation_images": 64,
        }
        small = {"base_channels": 8, "blocks_per_level": 1, "clusters": 1} if self.rehearse else {}
        return self.settings({"train": train | changes, "model": small, "generate": {"steps": 4}}, preset)


def check(function: Callable[[Bench], dict[str, Any]]) -> Callable[[Bench], dict[str, Any]]:
    """Add to the checks, by name. It returns figures, of which `holds` tells whether what its docstring says is so."""
    CHECKS[function.__name__] = function
    return function


@check
def noise(bench: Bench) -> dict[str, Any]:
    """The noise of 1,000 images has the same bits on the device as on the CPU."""
    import torch

    from ddpm.diffusion.noise import ImageNoise

    places = [ImageNoise(7, 1, range(1, 1001), (1, 28, 28), device) for device in (torch.device("cpu"), bench.device)]
    equal = [torch.equal(places[0](), places[1]().cpu()) for _ in range(3)]
    seconds = timed(places[1], bench, 20)
    return {"holds": all(equal), "microseconds_an_image": seconds / 1000 * 1e6}


@check
def same_bits(bench: Bench) -> dict[str, Any]:
    """Two trainings of 60 steps give the same checkpoint, and so does one that was stopped on its way and resumed."""
    config, digests = bench.short(60, log_every=10), []
    with TemporaryDirectory() as name:
        for run in ("first", "second", "stopped"):
            folder = Path(name) / run
            if run == "stopped":
                try:
                    bench.train(folder, config, stop_after=25)
                except SystemExit as stop:
                    stopped = str(stop)
            digests.append(bench.digest(folder, config))
    return {"holds": len(set(digests)) == 1 and "stopped at step" in stopped, "digests": digests, "stopped": stopped}


@check
def killed(bench: Bench) -> dict[str, Any]:
    """A training of 60 steps that is killed on its way (SIGKILL) and resumed gives the same checkpoint, uncompiled."""
    bench, config = bench.uncompiled(), bench.short(60, log_every=10)
    with TemporaryDirectory() as name:
        folder = Path(name) / "killed"
        child = get_context("spawn").Process(target=_train_slowly, args=(bench, folder, config))
        child.start()
        while child.is_alive() and not (folder / "kept/state.safetensors").exists():
            time.sleep(0.01)
        child.kill()
        child.join()
        digests = [bench.digest(place, config) for place in (folder, Path(name) / "whole")]
    holds = len(set(digests)) == 1 and child.exitcode == -signal.SIGKILL
    return {"holds": holds, "digests": digests, "status": child.exitcode}


def _train_slowly(bench: Bench, folder: Path, config: Any) -> None:  # noqa: ANN401
    """In a process of its own: keep the state of every step, so that it is killed before the last one."""
    bench.runtime.set_up()
    bench.train(folder, config, save_every_seconds=0.0)


@check
def attention_bits(bench: Bench) -> dict[str, Any]:
    """With attention and dropout, too, two trainings of 20 steps give the same checkpoint."""
    config = bench.short(20)
    values = config.model.model_copy(update={"attention": True, "dropout": 0.1})
    config = config.model_copy(update={"model": values})
    with TemporaryDirectory() as name:
        digests = [bench.digest(Path(name) / run, config) for run in ("first", "second")]
    return {"holds": len(set(digests)) == 1, "digests": digests}


@check
def checkpoint_on_the_cpu(bench: Bench) -> dict[str, Any]:
    """A network trained on the device predicts the same on the CPU in float32, to 1e-3 of its prediction."""
    import torch

    from ddpm.models.checkpoint import load_checkpoint, restore_network

    with TemporaryDirectory() as name:
        bench.train(Path(name), bench.short(20))
        path = Path(name) / "last.safetensors"
        x_t, t = torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(16) * 60
        found = []
        for device in (torch.device("cpu"), bench.device):
            checkpoint = load_checkpoint(path, device)
            network = restore_network(checkpoint, str(path), "ema").to(device)
            labels = torch.zeros(16, dtype=torch.int64, device=device) if checkpoint.conditioning.count else None
            with torch.inference_mode():
                found.append(network(x_t.to(device), t.to(device), labels).float().cpu())
    difference = ((found[0] - found[1]).abs().max() / found[0].abs().max()).item()
    return {"holds": difference < 1e-3, "largest_difference": difference}


@check
def no_waiting(bench: Bench) -> dict[str, Any]:
    """Training waits for the device less than once in five steps, the rows of the log among them."""
    import warnings

    import torch

    # The first steps compile, and after the last ones weights are copied to be saved.
    first, last, config = 10, 190, bench.short(200, log_every=50)
    steps, modes = last - first, {first: "warn", last: "default"}

    def on_step(step: int) -> None:
        if bench.device.type == "cuda" and step in modes:
            torch.cuda.set_sync_debug_mode(modes[step])

    with TemporaryDirectory() as name, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            bench.train(Path(name), config, on_step=on_step)
        finally:
            on_step(last)
    places = [f"{Path(entry.filename).name}:{entry.lineno}" for entry in caught if "synchroniz" in str(entry.message)]
    often = sorted({place: places.count(place) for place in places}.items(), key=lambda item: -item[1])[:5]
    return {"holds": len(places) / steps < 0.2, "waits_a_step": len(places) / steps, "where": dict(often)}


@check
def speed(bench: Bench) -> dict[str, Any]:
    """The preset `gpu` trains and samples all its images in ten minutes; images a second, compiled and not.

    And their share of a large matrix product's.
    """
    import torch

    size = 256 if bench.rehearse else 8192
    left, right = (torch.randn(size, size, device=bench.device, dtype=bench.runtime.precision) for _ in range(2))
    peak = 2 * size**3 / timed(lambda: left @ right, bench, 10)
    figures: dict[str, Any] = {"matmul_tflops": peak / 1e12}
    for preset in (None, "gpu"):
        for mode in [bench.uncompiled(), bench] if bench.runtime.compiled else [bench]:
            kind = f"{preset or 'default'}_{'compiled' if mode.runtime.compiled else 'uncompiled'}"
            found = _speed(mode, preset, peak)
            figures |= {f"{kind}_{key}": value for key, value in found.items()}
        figures |= {
            f"{preset or 'default'}_{key}": value for key, value in _compiles(bench, preset, found["nfe"]).items()
        }
    peak_memory = torch.cuda.max_memory_allocated() / 2**20 if bench.device.type == "cuda" else 0.0
    in_time = found["whole_seconds"] < 600 or bench.rehearse  # the last is of `gpu`, compiled where that works
    return {"holds": in_time, "peak_memory_mib": peak_memory, **figures}


def _speed(bench: Bench, preset: str | None, peak: float) -> dict[str, float]:
    """Of a preset as ``bench`` computes. peak: FLOPs a second of a large matrix product."""
    from ddpm.data.image_set import denormalize
    from ddpm.models.checkpoint import load_checkpoint
    from ddpm.sampling.generator import make_generator
    from ddpm.training.state import Recipe
    from ddpm.utils.devices import fitting_batch

    config, whole = bench.short(20 if bench.rehearse else 300, preset), bench.settings({}, preset)
    short, full = (Recipe(each.model, each.diffusion, each.train, each.seed) for each in (config, whole))
    with TemporaryDirectory() as folder:
        cost = bench.train(Path(folder), config)
        checkpoint = load_checkpoint(Path(folder) / "last.safetensors", bench.device)
    flops = short.flops(bench.training) / (short.steps(len(bench.training)) * config.train.batch_size)  # an image's
    startup, rate = cost["train_startup_seconds"], cost["train_images_per_second"]
    generator = make_generator(checkpoint, "it", config.generate, config.seed, bench.runtime)
    batch = 16 if bench.rehearse else fitting_batch(10**6, bench.device)
    # The first call compiles.
    seconds = timed(lambda: denormalize(generator.sample(range(1, batch + 1))), bench, 1)
    evaluations = batch * generator.nfe / seconds
    nfe = generator.changed(steps=whole.generate.steps).nfe
    trained, sampled = startup + full.flops(bench.training) / flops / rate, 10_000 * nfe / evaluations
    return {
        "startup_seconds": startup,
        "train_images_per_second": rate,
        "train_share_of_matmul": rate * flops / peak,
        "evaluations_per_second": evaluations,
        "nfe": nfe,
        "whole_training_seconds": trained,
        "seconds_for_10000_images": sampled,
        "whole_seconds": trained + sampled * whole.generate.num_images / 10_000 * (1 + whole.generate.replicates),
    }


def _compiles(bench: Bench, preset: str | None, nfe: float) -> dict[str, bool]:
    """Whether the pipeline compiles what a preset trains, and what it samples with at so many evaluations an image."""
    from ddpm.models.build import flops_per_image
    from ddpm.training.state import Recipe
    from ddpm.utils.runtime import choose_runtime

    config = bench.settings({}, preset)
    generate = config.generate
    images = generate.num_images * (1 + generate.replicates)
    sampled = flops_per_image(config.model, bench.training.spec) * nfe * images
    trained = Recipe(config.model, config.diffusion, config.train, config.seed).flops(bench.training)
    training = choose_runtime(bench.runtime_settings, trained, trains=True)
    return {
        "compiles_training": training.compiled,
        "compiles_sampling": choose_runtime(bench.runtime_settings, sampled).compiled,
    }


@check
def samplers(bench: Bench) -> dict[str, Any]:
    """Every sampler gives on the device the images of the CPU, in float32: 99 of 100 pixels within one grey level."""
    import numpy as np
    import torch

    from ddpm.data.image_set import denormalize
    from ddpm.diffusion.samplers import SAMPLERS
    from ddpm.models.checkpoint import load_checkpoint
    from ddpm.sampling.generator import make_generator

    figures = {}
    with TemporaryDirectory() as name:
        bench.train(Path(name), bench.short(20 if bench.rehearse else 400))
        path = Path(name) / "last.safetensors"
        plain = replace(bench.runtime, precision=torch.float32, compiled=False)
        for sampler in SAMPLERS:
            found = []
            for device in (torch.device("cpu"), bench.device):
                config = bench.settings({"generate": {"sampler": sampler, "steps": 8}}).generate
                runtime = replace(plain, device=device)
                generator = make_generator(load_checkpoint(path, device), "it", config, 0, runtime)
                found.append(denormalize(generator.sample(range(1, 17))).astype(int))
            figures[sampler] = float((np.abs(found[0] - found[1]) <= 1).mean())
    return {"holds": min(figures.values()) >= 0.99, **figures}


@check
def likelihood(bench: Bench) -> dict[str, Any]:
    """The bits per dimension of 100 digits are on the device those of the CPU, to 1e-3 of their size, in float32."""
    import numpy as np
    import torch

    from ddpm.diffusion.likelihood import Likelihood, bits_per_dimension
    from ddpm.models.checkpoint import load_checkpoint
    from ddpm.sampling.generator import make_denoiser

    some, found, seconds = bench.validation.take(np.arange(10 if bench.rehearse else 100)), [], 0.0
    with TemporaryDirectory() as name:
        bench.train(Path(name), bench.short(20 if bench.rehearse else 400))
        path = Path(name) / "last.safetensors"
        for device in (torch.device("cpu"), bench.device):
            checkpoint = load_checkpoint(path, device)
            runtime = replace(bench.runtime, precision=torch.float32, compiled=False, device=device)
            denoiser = make_denoiser(checkpoint, str(path), runtime)
            given = torch.from_numpy(some.images).to(device), checkpoint.conditioning.labels(some, device)
            started = time.perf_counter()
            measured = Likelihood(denoiser.conditioned, *given, denoiser.schedule, 5, 0)
            bits = bits_per_dimension(measured, checkpoint.conditioning.frequencies.flatten().tolist())
            found.append(bits["bpd_small"])
            seconds = time.perf_counter() - started
    return {"holds": abs(found[1] / found[0] - 1) < 1e-3, "bits_per_dimension": found, "seconds_there": seconds}


@check
def classifier(bench: Bench) -> dict[str, Any]:
    """The shipped classifier's features of 1,000 digits are on the device those of the CPU, to 1e-3 of their size."""
    import numpy as np
    import torch

    from ddpm.evaluation.features.classifier import MnistExtractor

    images = bench.validation.images[: 100 if bench.rehearse else 1000]
    places = torch.device("cpu"), bench.device
    found = [MnistExtractor(device).features(images, "measure").values for device in places]
    difference = float(np.abs(found[0] - found[1]).max() / np.abs(found[0]).max())
    return {"holds": difference < 1e-3, "largest_difference": difference}


@check
def toolbox(bench: Bench) -> dict[str, Any]:
    """What `ddpm.load` offers gives on the device what it gives on the CPU: see `differences`."""
    import numpy as np

    import ddpm

    images = bench.validation.take(np.arange(2))
    found = differences(ddpm.load(device="cpu"), ddpm.load(device=bench.device), images.images, images.labels)
    return {"holds": max(found.values()) < 1, **found}


def differences(here: Any, there: Any, images: Any, labels: Any) -> dict[str, float]:  # noqa: ANN401
    """How far two models of the same checkpoint are apart by all that they do with two digits: at 1 too far.

    Images by a grey level on average, denoising and likelihood by 1e-3, classes and labels not at all.
    """
    import numpy as np
    import torch

    from ddpm.data.image_set import normalize

    fast, right = {"steps": 5, "autoguidance": 1.0}, np.arange(28) >= np.full((28, 1), 14)
    x_t, given = normalize(torch.from_numpy(images)), labels.tolist()
    calls: dict[str, tuple[float, Callable[[Any], Any]]] = {
        "sample": (1, lambda m: m.sample(3, labels=[3, 8, 1])),
        "trajectory": (1, lambda m: m.trajectory(2, labels=8)["x_t"]),
        "inpaint": (1, lambda m: m.inpaint(images, right, labels=labels, resamplings=2, **fast)),
        "vary": (1, lambda m: m.vary(images, 0.5, labels=labels)),
        "interpolate": (1, lambda m: m.interpolate(images[0], images[1], 3, labels=given)),
        "interpolate_by_seed": (1, lambda m: m.interpolate(images[0], images[1], 3, labels=given, seed=1)),
        "invert": (1, lambda m: m.invert(images, labels=labels).images),
        "denoise": (1e-3, lambda m: m.denoise(x_t, 300, labels=labels).cpu().numpy()),
        "log_likelihood": (1e-3, lambda m: np.log(-m.log_likelihood(images))),
        "classify": (1e-9, lambda m: m.classify(images, right)),
        "class_labels": (1e-9, lambda m: m.class_labels(9)),
    }
    found = {}
    for name, (most, call) in calls.items():
        one, other = (np.asarray(call(model), dtype=np.float64) for model in (here, there))
        found[name] = float(np.abs(one - other).mean() / most)
    return found


def timed(work: Callable[[], object], bench: Bench, count: int) -> float:
    """Seconds of one call, the mean of so many after a first one."""
    work()
    bench.runtime.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        work()
    bench.runtime.synchronize()
    return (time.perf_counter() - started) / count


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    device = found["device"]
    lines = [
        f"# {'A rehearsal on' if device['rehearsal'] else 'On'} {device['device']}",
        "",
        f"PyTorch {device['torch']}, {found['seconds']:.0f} seconds in all.",
        "",
    ]
    for name, result in found["checks"].items():
        lines += [f"**{name}**: {result['what']} {'Holds.' if result['holds'] else 'DOES NOT HOLD.'}", ""]
        rest = {key: value for key, value in result.items() if key not in ("what", "holds")}
        lines += [
            f"- {key}: {value:,.4g}" if isinstance(value, float) else f"- {key}: {value}" for key, value in rest.items()
        ]
        lines += [""]
    if found["skipped"]:
        lines += [f"Time was over before: {', '.join(found['skipped'])}.", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=ROOT / "data/raw", help="the four IDX files (default data/raw)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE", help="the same as Markdown")
    parser.add_argument("--checks", nargs="+", choices=list(CHECKS), metavar="NAME", help="only these")
    parser.add_argument("--rehearse", action="store_true", help="in small, on the CPU")
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"after which no further check begins (default 6.5, in a rehearsal never); {GRACE} later all is over",
    )
    given = parser.parse_args()
    minutes = (math.inf if given.rehearse else 6.5) if given.minutes is None else given.minutes
    with _at_most(minutes + GRACE):
        return _run(given, minutes)


@contextmanager
def _at_most(minutes: float) -> Iterator[None]:
    """After so many minutes inside, end this process with status 1, even where it waits for the device without end."""
    if math.isfinite(minutes):
        faulthandler.dump_traceback_later(60 * minutes, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _run(given: argparse.Namespace, minutes: float) -> int:
    if missing := [name for name in NEEDED if not _is_there(name)]:
        print(f"error: these Python packages are missing: {', '.join(missing)}.", file=sys.stderr)
        return 2
    import torch

    if not given.rehearse and not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA device here; --rehearse runs the checks in small.", file=sys.stderr)
        return 2
    from ddpm.utils.errors import one_sentence

    with one_sentence(restore="run `dvc repro fetch_mnist` first, or name the folder by --mnist"):
        bench = Bench(given.mnist, rehearse=given.rehearse)
    started = time.perf_counter()
    checks: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {"device": bench.runtime.describe() | {"rehearsal": given.rehearse}, "checks": checks}
    found["skipped"] = list(given.checks or CHECKS)
    while found["skipped"] and (began := time.perf_counter()) - started < 60 * minutes:
        name = found["skipped"][0]
        what = " ".join((CHECKS[name].__doc__ or "").split())
        try:
            result = CHECKS[name](bench)
        except Exception:  # whatever it was, the other checks are of use
            traceback.print_exc()
            result = {"holds": False, "error": traceback.format_exc(limit=1).splitlines()[-1]}
        checks[name] = {"what": what, **result, "seconds": time.perf_counter() - began}
        del found["skipped"][0]
        print(json.dumps({name: checks[name]}, indent=2), flush=True)
        found["seconds"] = time.perf_counter() - started
        for path, write in ((given.json, partial(json.dumps, indent=2)), (given.page, page)):
            if path:
                path.write_text(write(found) + "\n", encoding="utf-8")
    if found["skipped"]:
        print(f"error: time was over before {', '.join(found['skipped'])}: give more --minutes.", file=sys.stderr)
    return 1 if found["skipped"] or not all(result["holds"] for result in checks.values()) else 0


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())
