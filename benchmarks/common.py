"""What the benchmarks share: the pipeline's data, a model to sample from, the quality of its images, and their tables.

They need the outputs of `dvc repro split reference`.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from math import isnan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from ruamel.yaml import YAML

from benchmarks.judge import load_judge
from ddpm.config import Config, parse_config
from ddpm.data.image_set import ImageSet, ImageSpec, denormalize, read_image_set
from ddpm.data.load import load_images
from ddpm.data.sources.mnist import MNIST
from ddpm.evaluation.classes import ambiguous
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.evaluation.frechet import Gaussian, fit_gaussian, frechet_distance
from ddpm.evaluation.neighbours import Points, manifold
from ddpm.evaluation.reference import Reference
from ddpm.models.build import fit_to_images
from ddpm.models.checkpoint import Checkpoint, load_checkpoint
from ddpm.sampling.batches import batch_count, sample_batches
from ddpm.sampling.generator import Generator, make_generator, restore_generator
from ddpm.training.launch import train_together
from ddpm.training.loop import train
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.errors import DdpmError, one_sentence
from ddpm.utils.files import read_json, write_json
from ddpm.utils.processes import process_pool
from ddpm.utils.runtime import Runtime, choose_device, environment, process_count
from ddpm.utils.seeds import numpy_generator
from presets.__main__ import PARAMS, merge, read_preset
from stages.paths import RAW, REFERENCE, SPLIT
from stages.resume import what_decides

REAL, LAST = "real test digits", "last.safetensors"
SPEC = ImageSpec(size=28, channels=1, classes=10)  # of untrained networks, which need no data
Definitions = Mapping[str, Mapping[str, Any]]  # by column of the rows: what each name in it stands for
# No validation or preview on the way: the time is for training.
QUIET: dict[str, Any] = {"train.validate_every": 10**9, "train.preview_every": 0, "train.validation_images": 64}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows --json; the benchmark adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    return parser


def settings(*changes: Mapping[str, Any], preset: str | None = None) -> Config:
    """params.yaml with a preset and then mappings of dotted keys applied. Raises DdpmError for what does not fit."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(PARAMS)
    if preset:
        merge(values, read_preset(preset, yaml), preset)
    for key, value in {key: value for part in changes for key, value in part.items()}.items():
        section, name = key.split(".")
        merge(values, {section: {name: value}}, "changes")
    return parse_config(values, "params.yaml")


def split() -> tuple[ImageSet, ImageSet]:
    """The training and the validation images of the pipeline. Raises MissingFile before `dvc repro split`."""
    return read_image_set(SPLIT / "train.npz"), read_image_set(SPLIT / "validation.npz")


def fit(config: Config, runtime: Runtime, folder: Path) -> tuple[Checkpoint, dict[str, Any], dict[str, Any]]:
    """Train on the pipeline's split in ``folder``, which holds the checkpoints after it: a killed run resumes there.

    Beside it stands of which settings, code and data it is. Raises DdpmError for a folder of others.
    Returns the checkpoint after the last step, which is the file `LAST` there, the results and the cost, see `train`.
    """
    torch.compiler.reset()  # else a limit on compiled versions of one function leaves later runs eager, silently
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    images = split()  # first, as it says how to make what is not there
    note, values = folder.with_name(f"{folder.name}.json"), written_out(config)
    wanted = {key: values[key] for key in ("seed", "model", "diffusion", "train")}
    wanted["code_and_data"] = what_decides("train", config)
    if folder.exists() and any(folder.iterdir()) and (not note.exists() or read_json(note) != wanted):
        raise DdpmError(
            f"{folder} holds a training by other settings, code or data: delete it, or name another --work."
        )
    write_json(note, wanted)
    with RunFolder(folder, folder / "kept") as place:
        if not place.finished:
            flops = recipe.flops(images[0])
            processes = process_count(config.runtime, runtime, config.train.shards, flops)
            work = partial(train, recipe, *images, save_every_seconds=60.0)
            results, cost = train_together(processes, work, runtime, place)
            place.finish({"results": results, "cost": cost})
        found = place.finished
    assert found
    return load_checkpoint(folder / LAST), found["results"], found["cost"]


@contextmanager
def sampling(
    path: Path, config: Config, runtime: Runtime
) -> Iterator[tuple[Generator, Callable[[Generator, str], np.ndarray]]]:
    """The generator of a checkpoint file, and what samples it in as many processes as the pipeline would.

    That is a function of the generator, perhaps with other settings but of as many images, and of a name for the
    progress bar. It returns the images as the PNGs would hold them: uint8 [n, c, h, w].
    """
    generator = make_generator(load_checkpoint(path), str(path), config.generate, config.seed, runtime)
    processes = process_count(config.runtime, runtime, batch_count(config, runtime.device), float("inf"))
    with process_pool(processes, restore_generator, path, config.generate, config.seed, runtime) as pool:

        def sampled(chosen: Generator, label: str) -> np.ndarray:
            with TemporaryDirectory() as kept:
                batches = sample_batches(chosen, config.runtime.generate_batch_size, Path(kept), label, pool)
                return np.concatenate([batch.images for batch in batches])

        yield generator, sampled


def sample(generator: Generator, count: int, batch: int) -> np.ndarray:
    """The first ``count`` images as the PNGs would hold them: uint8 [count, c, h, w]."""
    parts = [denormalize(generator.sample(range(first, first + batch))) for first in range(1, count + 1, batch)]
    return np.concatenate(parts)[:count]


def real_and_named(named: Sequence[str]) -> dict[str, np.ndarray]:
    """The real test digits, as `REAL`, and the images of each NAME=PATH: uint8 [n, c, h, w].

    A path is of a folder of PNGs or of a file that `python -m ddpm evaluate` reads. Raises DdpmError for what is no
    NAME=PATH and for a NAME that is there already, and what `load_images` does.
    """
    places: dict[str, Path] = {}
    for each in named:
        name, _, path = each.partition("=")
        if not (name and path) or name in (REAL, *places):
            raise DdpmError(f"{each}: name images as NAME=PATH, each by a name of its own.")
        places[name] = Path(path)
    return {REAL: MNIST.load(RAW, "test").images} | {name: load_images(path, 2) for name, path in places.items()}


def quality(images: np.ndarray, labels: np.ndarray | None = None) -> dict[str, float]:
    """Headline numbers of the `fid` stage for uint8 images [n, c, h, w]; fd_judge by `benchmarks.judge`.

    labels: int64 [n], the class labels that they were conditioned on, for label_accuracy.
    """
    network, real = evaluator()
    found = network.features(images, "measure")
    assert found.probabilities is not None
    distance = frechet_distance(real.gaussian, fit_gaussian(found.values))
    some = real.train[numpy_generator(0, "benchmark").permutation(real.count)[: len(images)]]
    alike = manifold(Points(some), Points(found.values, "measure"))
    numbers = {
        "fd_mnist": distance,
        "over_floor": distance / floor(len(images)),
        "fd_judge": frechet_distance(judged_training_images(), fit_gaussian(judge_features(images))),
        "precision": float(alike["precision"].mean()),
        "recall": float(alike["recall"].mean()),
        "ambiguous_fraction": float(ambiguous(found.probabilities).mean()),
    }
    if labels is not None:
        numbers["label_accuracy"] = float((found.probabilities.argmax(1) == labels).mean())
    return numbers


@torch.inference_mode()
def judge_features(images: np.ndarray) -> np.ndarray:
    """Of uint8 images [n, 1, 28, 28] by `benchmarks.judge`: float32 [n, 96]."""
    judge = load_judge()
    return torch.cat([judge.features(part) for part in torch.from_numpy(images).split(50)]).numpy()


@cache
def judged_training_images() -> Gaussian:
    """Of all 60,000 training images by `benchmarks.judge`."""
    return fit_gaussian(judge_features(MNIST.load(RAW, "train").images))


@cache
def floor(count: int) -> float:
    """The distance that as many random training images score."""
    return evaluator()[1].frechet_floor(count)


@cache
def evaluator() -> tuple[MnistExtractor, Reference]:
    """The shipped classifier and the real images by it, read once for all rows. Raises MissingFile."""
    return MnistExtractor(torch.device("cpu")), Reference.load(REFERENCE / "mnist.npz")


def save(
    rows: Sequence[Mapping[str, Any]],
    path: Path | None,
    metadata: Mapping[str, Any],
    definitions: Definitions | None = None,
) -> None:
    """Write the rows, what the run was and on which machine, and what names in the rows stand for as JSON, if asked."""
    if path:
        write_json(path, {**metadata, "machine": machine(), **_defined(rows, definitions), "rows": list(rows)})


def machine() -> dict[str, Any]:
    """Of the last rows: what decides their seconds and the last bits of their numbers, settings aside."""
    device = choose_device(settings().runtime.device, "runtime.device")
    runtime = Runtime(device, torch.float32, compiled=False, deterministic=True).describe()
    return {"device": runtime["device"], "processors": os.cpu_count(), "torch": runtime["torch"], **environment()}


def earlier(
    path: Path | None, metadata: Mapping[str, Any], definitions: Definitions | None = None
) -> list[dict[str, Any]]:
    """The rows that a run of the same metadata left in the file: a run that was stopped resumes, more rows are added.

    Raises DdpmError for a file of another run, and where a name in its rows stood for something else.
    """
    if not path or not path.exists():
        return []
    found = read_json(path)
    rows = found.pop("rows", None)
    wanted = {**metadata, **_defined(rows or (), definitions)}
    found |= _defined(rows or (), found.get("definitions"))  # those of rows that were taken out count no more
    if rows is None or {key: found.get(key) for key in wanted} != json.loads(json.dumps(wanted)):
        raise DdpmError(f"{path} is of another machine or other settings: name another file, or delete it.")
    return rows


def _defined(rows: Sequence[Mapping[str, Any]], definitions: Definitions | None) -> dict[str, Any]:
    """What the names in the rows stand for, but for those of no row: a new one leaves the file as good as it was."""
    if not definitions:
        return {}
    found = {column: {row[column]: known.get(row[column]) for row in rows} for column, known in definitions.items()}
    return {"definitions": found}


def defaults(*changes: Mapping[str, Any], preset: str | None = None) -> dict[str, Any]:
    """params.yaml with a preset, and with what all rows of a run change: part of the metadata that its rows go by."""
    return {"defaults": written_out(settings(*changes, preset=preset))}


def written_out(config: Config) -> dict[str, Any]:
    """Settings but for `runtime` as plain values.

    What the network's `auto` stands for is written out, as it may come to stand for something else.
    """
    chosen = config.model_copy(update={"model": fit_to_images(config.model, SPEC)})
    return chosen.model_dump(mode="json", exclude={"runtime"})


def check(images: int) -> None:
    """Raise DdpmError, before the long work, where the quality of so many images could not be measured after it."""
    dimensions = evaluator()[0].dimensions
    if images <= dimensions:
        raise DdpmError(f"--images {images}: the distance needs more than {dimensions} of them.")


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; what the user can fix ends it with one sentence and exit status 1."""
    with one_sentence(restore="run `dvc repro` first"):
        main()


def slug_of(name: str) -> str:
    """The name of a row as part of a file's name."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def known(deviation: float) -> float | str:
    """A standard deviation as it is shown: one seed, or one set of images, has none."""
    return "–" if isnan(deviation) else float(deviation)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows as a table."""
    print(pd.DataFrame(list(rows)).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
