"""The report of one run: what was run, how good it is, what it cost, how it came to be."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ddpm.report.charts import Curve, line_chart, whisker
from ddpm.report.metrics import Difference, Metric, quality_keys
from ddpm.report.page import Picture, flat, read_picture, render
from ddpm.utils.files import read_json

_COST = {  # of a row: the key in cost.json without `train_` or `generate_`
    "seconds": "wall time, s",
    "startup_seconds": "of that until the first step, s",
    "images_per_second": "images a second",
    "overhead_fraction": "fraction for logs, validation, previews and checkpoints",
    "peak_memory_mib": "peak memory, MiB",
    "nfe": "network evaluations an image",
    "batch_size": "images in a batch",
    "processes": "processes",
    "threads": "threads of each",
    "device": "device",
    "instructions": "instructions",
    "precision": "precision",
    "compiled": "compiled",
    "torch": "torch",
    "python": "Python",
    "system": "system",
}
_PARTS = ("fid", "memorization", "likelihood", "train", "cost")


@dataclass(frozen=True)
class Comparison:
    """This run beside another, called ``name``. changed: (key, value there, value here) of parameters that differ, None
    where those of the other are not known.
    """

    name: str
    differences: Sequence[Difference]
    changed: Sequence[tuple[str, Any, Any]] | None


def run_page(
    metrics: Path,
    model: Path,
    previews: Path,
    figures: Path,
    parameters: Mapping[str, Any],
    comparison: Comparison | None = None,
) -> str:
    """One HTML page, a function of the files and parameters alone: what is not there has no section.

    metrics, model, previews, figures: the folders that the stages `summary`, `train` and `visualize` write. parameters:
    nested, as in params.yaml. Raises MissingFile or DamagedFile for numbers, OSError for pictures.
    """
    headline = read_json(metrics / "headline.json")
    parts = {name: read_json(path) if (path := metrics / f"{name}.json").is_file() else {} for name in _PARTS}
    numbers = {key: value for part in parts.values() for key, value in part.items()} | headline
    protocol = numbers.pop("protocol", {})
    keys = quality_keys(list(headline), parts["cost"])
    found = [metric for key in keys if (metric := Metric.find(key, numbers))]
    return render(
        "run.html",
        title=f"{parameters['data']['name']}, run report",
        numbers=numbers,
        parts={name: part for name, part in parts.items() if part},
        metrics=[(metric, whisker(metric)) for metric in found],
        cost=_cost(parts["cost"]),
        charts=_charts(model),
        previews=_previews(previews),
        samples=_samples(figures),
        trajectory=read_picture(
            figures / "reverse_process.png",
            "Images in rows, from pure noise on the left to the finished sample on the right",
            "The reverse process: from noise, left, to a sample, right.",
        ),
        pairs=read_picture(
            figures / "closest_pairs.png",
            "Pairs of a generated image and the training image nearest to it, in rows by class",
            "The generated images nearest to a training image: of each pair the generated one is left.",
        ),
        classes=_classes(metrics / "classes.csv"),
        parameters=parameters,
        changed={key for key, *_ in comparison.changed or ()} if comparison else set(),
        comparison=comparison,
        protocol=flat(protocol),
    )


def _cost(cost: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Rows of what training and sampling took: (what, training's, sampling's)."""
    rows = []
    for key, what in _COST.items():
        # What computed the training has no prefix.
        pair = cost.get(f"train_{key}", cost.get(key)), cost.get(f"generate_{key}")
        rows += [(what, *pair)] if pair != (None, None) else []
    return rows


def _charts(model: Path) -> list[tuple[str, list[str], str]]:
    """(title, names of the curves, chart) of the loss and of the error by noise level; none of a training without."""
    log, validation = (
        pd.read_csv(path) if (path := model / name).is_file() else pd.DataFrame({"step": []})
        for name in ("log.csv", "validation.csv")
    )
    quarters = {}
    for column in validation:
        if match := re.fullmatch(r"val_mse_t(\d+)of(\d+)", column):
            noise = {"1": ", least noise", match[2]: ", most noise"}.get(match[1], "")
            quarters[column] = f"t in quarter {match[1]}{noise}"
    loss = [*_curve("training", log, "loss", marked=False), *_curve("validation, EMA weights", validation, "val_loss")]
    error = [curve for column, name in quarters.items() for curve in _curve(name, validation, column)]
    charts = []
    for title, unit, curves in (
        ("Loss", "weighted squared error", loss),
        ("Denoising error by noise level", "squared error", error),
    ):
        if curves:
            names = [curve.name for curve in curves]
            ends = "; ".join(f"{curve.name}: from {curve.y[0]:.3g} to {curve.y[-1]:.3g}" for curve in curves)
            charts.append((title, names, line_chart(curves, "step", unit, f"{title} by step. {ends}")))
    return charts


def _curve(name: str, table: pd.DataFrame, column: str, *, marked: bool = True) -> list[Curve]:
    """A column over the steps, without what is not finite; nothing where nothing is left."""
    if column not in table:
        return []
    there = table[np.isfinite(table[column])]
    return [Curve(name, there["step"].tolist(), there[column].tolist(), marked)] if len(there) else []


def _previews(previews: Path) -> list[Picture]:
    """The grids that the training left as it went, at most six of them, the first and the last included."""
    paths = sorted(previews.glob("*.png"), key=lambda path: int(path.stem))
    count = min(6, len(paths))
    chosen = [paths[round(place * (len(paths) - 1) / max(1, count - 1))] for place in range(count)]
    steps = [(path, f"{int(path.stem):,}") for path in chosen]
    pictures = (read_picture(path, f"Grid of samples after step {step}", f"step {step}") for path, step in steps)
    return [picture for picture in pictures if picture]


def _samples(figures: Path) -> list[Picture]:
    pictures = (
        read_picture(figures / "samples.png", "Grid of generated images", "Generated images, the first, not selected."),
        read_picture(
            figures / "real_and_generated.png",
            "Grid of real images beside one of generated images",
            "Real images, left, and generated ones, right.",
        ),
    )
    return [picture for picture in pictures if picture]


def _classes(path: Path) -> list[tuple[str, list[tuple[str, float | None, float | None]]]]:
    """Of each class its name and of each further column (name, generated, real); [] without classes."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in rows:
        label, which = row.pop("label"), row.pop("set")
        for column, text in row.items():
            table.setdefault(label, {}).setdefault(column, {})[which] = float(text) if text else None
    return [
        (label, [(column, pair.get("generated"), pair.get("real")) for column, pair in columns.items()])
        for label, columns in table.items()
    ]
