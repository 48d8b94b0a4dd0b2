"""What the benchmarks share: the pipeline's data, a model to train and draw from for some seconds, and their tables.

They need the outputs of `dvc repro split reference`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ruamel.yaml import YAML

from ddpm.config import Config, parse_config
from ddpm.data.split import ImageSet, read_image_set
from ddpm.evaluation.classes import sure_share
from ddpm.evaluation.features.classifier import FEATURES, Classifier, classify, load_classifier
from ddpm.evaluation.frechet import fit_gaussian, frechet_distance
from ddpm.evaluation.reference import MnistReference, frechet_floor
from ddpm.models.checkpoint import Checkpoint, restore_network
from ddpm.sampling.generator import Source
from ddpm.utils.errors import DdpmError, MissingFile
from ddpm.utils.files import read_json, write_json
from ddpm.utils.images import to_uint8
from ddpm.utils.runtime import Runtime
from presets.__main__ import FOLDER, PARAMS, merge
from stages import REFERENCE, SPLIT


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows --json; the benchmark adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


def settings(*changes: Mapping[str, Any], preset: str | None = None) -> Config:
    """params.yaml with a preset and then mappings of dotted keys applied. Raises DdpmError for what does not fit."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(PARAMS)
    if preset:
        merge(values, yaml.load(FOLDER / f"{preset}.yaml"), preset)
    for key, value in {key: value for part in changes for key, value in part.items()}.items():
        section, name = key.split(".")
        merge(values, {section: {name: value}}, "changes")
    return parse_config(values, "params.yaml")


def digits() -> tuple[ImageSet, ImageSet]:
    """The training and the validation images of the pipeline. Raises MissingFile before `dvc repro split`."""
    return read_image_set(SPLIT / "train.npz"), read_image_set(SPLIT / "validation.npz")


def prepare(checkpoint: Checkpoint, runtime: Runtime) -> torch.nn.Module:
    """The network of a checkpoint, on its device and compiled where the runtime says so."""
    return runtime.compile(runtime.prepare(restore_network(checkpoint, "the checkpoint"), trains=False))


def draw(source: Source, count: int, batch: int) -> np.ndarray:
    """The first ``count`` images as the PNGs would hold them: uint8 [count, 28, 28]."""
    parts = [to_uint8(source.draw(range(first, first + batch))) for first in range(1, count + 1, batch)]
    return np.concatenate(parts)[:count]


def quality(images: np.ndarray, seed: int) -> dict[str, float]:
    """The headline numbers of the `fid` stage for uint8 images [n, 28, 28], by the shipped classifier."""
    classifier, known = yardstick()
    features, probabilities = classify(classifier, images, "measure")
    distance = frechet_distance(fit_gaussian(known.train), fit_gaussian(features))
    over_floor = distance / floor(len(images), seed)
    return {"fd_mnist": distance, "over_floor": over_floor, "sure_share": sure_share(probabilities)}


@cache
def floor(count: int, seed: int) -> float:
    """The distance that as many random training digits score."""
    return frechet_floor(yardstick()[1].train, count, seed)


@cache
def yardstick() -> tuple[Classifier, MnistReference]:
    """The shipped classifier and the real digits by it, read once for all rows."""
    return load_classifier(torch.device("cpu")), MnistReference.load(REFERENCE / "mnist.npz")


def save(rows: Sequence[Mapping[str, Any]], path: Path | None, facts: Mapping[str, Any]) -> None:
    """Write the rows and the facts about the run as JSON, where a path is given."""
    if path:
        write_json(path, {**facts, "rows": list(rows)})


def earlier(path: Path | None, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that a run of the same facts left in the file: one cut short goes on, one with more rows adds them.

    Raises DdpmError for a file of another run.
    """
    if not path or not path.exists():
        return []
    found = read_json(path)
    rows = found.pop("rows", None)
    if rows is None or found != json.loads(json.dumps(facts)):
        raise DdpmError(f"{path} is of another machine or other settings: name another file, or delete it.")
    return rows


def defaults() -> dict[str, Any]:
    """params.yaml but for `runtime`, as one of the facts that a run's rows go by."""
    return {"defaults": settings().model_dump(mode="json", exclude={"runtime"})}


def check(images: int) -> None:
    """Raise DdpmError, before the long work, where the quality of so many images could not be measured after it."""
    yardstick()
    if images <= FEATURES:
        raise DdpmError(f"--images {images}: the distance needs more than {FEATURES} of them.")


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; what the user can mend ends it with one sentence and exit status 1."""
    try:
        main()
    except DdpmError as error:
        mend = ": run `dvc repro` first." if isinstance(error, MissingFile) else ""
        sys.exit(f"error: {error}{mend}")


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows as a table."""
    print(pd.DataFrame(list(rows)).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
