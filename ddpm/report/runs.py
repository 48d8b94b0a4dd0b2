"""The page of many runs: a table, parameters and metrics side by side, quality against cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm.report.charts import Axis, Point, Value, parallel_coordinates, scatter_chart
from ddpm.report.metrics import OF_NETWORK, Difference, Metric, quality_keys
from ddpm.report.page import render, setting

_COSTS = {"train_seconds": "training, s", "generate_seconds": "sampling, s"}


@dataclass(frozen=True)
class Run:
    """A run by its name. numbers: of all files of metrics/, flat; headline: the keys of the headline ones; cost: the
    keys of metrics/cost.json. parameters: flat, empty where they are not known.
    """

    name: str
    numbers: Mapping[str, Any]
    headline: Sequence[str]
    cost: Sequence[str]
    parameters: Mapping[str, Any]


def runs_page(runs: Sequence[Run], differences: Sequence[Sequence[Difference]]) -> str:
    """One HTML page of two or more runs that were measured alike.

    differences: of each run but the first, its numbers beside those of the first.
    """
    quality = list(dict.fromkeys(key for run in runs for key in quality_keys(run.headline, dict.fromkeys(run.cost))))
    costs = list(dict.fromkeys(key for run in runs for key in run.headline if key in {*run.cost, *OF_NETWORK}))
    names, changed = [run.name for run in runs], changed_parameters(runs)
    verdicts = [{}, *({row.key: row.verdict for row in rows} for rows in differences)]
    axes = [Axis(key, [_value(run.parameters, key) for run in runs]) for key in changed]
    axes += [Axis(key, [run.numbers.get(key) for run in runs], measured=True) for key in (*quality, *costs)]
    return render(
        "runs.html",
        title=f"{len(runs)} runs compared",
        names=names,
        quality=quality,
        costs=costs,
        rows=[
            (
                [(Metric.find(key, run.numbers), found.get(key, "")) for key in quality],
                [run.numbers.get(key) for key in costs],
            )
            for run, found in zip(runs, verdicts, strict=True)
        ],
        differences=list(zip(names[1:], differences, strict=True)),
        changed=[(key, [_value(run.parameters, key) for run in runs]) for key in changed],
        parallel=parallel_coordinates(axes, names, "One line a run across its parameters and metrics, see the tables"),
        scatters=_scatters(runs, quality),
    )


def changed_parameters(runs: Sequence[Run]) -> list[str]:
    """The parameters of which the runs that have them have more than one value, but for those of `runtime`."""
    keys = dict.fromkeys(key for run in runs for key in run.parameters if not key.startswith("runtime."))
    return [key for key in keys if len({setting(run.parameters[key]) for run in runs if key in run.parameters}) > 1]


def _value(parameters: Mapping[str, Any], key: str) -> Value:
    """A parameter as a number where it is one, else as text; None where it is not known."""
    if key not in parameters:
        return None
    value = parameters[key]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else setting(value)


def _scatters(runs: Sequence[Run], quality: Sequence[str]) -> list[tuple[str, str]]:
    """(title, chart) of the first metric with an interval against each cost; none where two runs do not have both."""
    found = [[Metric.find(key, run.numbers) for run in runs] for key in quality]
    metrics = next((row for row in found if sum(bool(metric and metric.interval) for metric in row) > 1), [])
    charts = []
    for cost, label in _COSTS.items():
        points = [
            Point(number, run.name, run.numbers[cost], metric.interval)
            for number, (run, metric) in enumerate(zip(runs, metrics, strict=bool(metrics)))
            if metric and metric.interval and cost in run.numbers
        ]
        if len(points) > 1:
            key = next(metric.key for metric in metrics if metric)
            said = "; ".join(f"{point.name}: {point.y[0]:.4g} at {point.x:.4g}" for point in points)
            charts.append((f"{key} against {label}", scatter_chart(points, label, key, f"{key} by {label}. {said}")))
    return charts
