"""The loss curves of a training run."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ddpm.utils.files import atomic_path


def write_loss_curves(path: Path, log: pd.DataFrame, validation: pd.DataFrame) -> None:
    """Write `loss_curves` as a PNG of 1200 × 480 pixels: equal tables give equal bytes. Raises OSError."""
    with atomic_path(path) as temporary:
        loss_curves(log, validation).savefig(temporary, format="png", metadata={"Software": None})


def loss_curves(log: pd.DataFrame, validation: pd.DataFrame) -> Figure:
    """Training loss with its running mean beside the validation loss, and validation error by quarter of the times.

    log: columns step, loss (the mean since the row before). validation: columns step, val_loss, val_mse_t1of4, ….
    """
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    # A row's loss belongs to the middle of its steps, not to their end.
    middle = (log["step"] + log["step"].shift(fill_value=0)) / 2
    axes = left.subplots()
    axes.plot(middle, log["loss"], color="0.6", linewidth=0.8, label="training")
    # Only where the window has as many rows on both sides: a lopsided one lags behind what falls.
    smooth = log["loss"].rolling(2 * (len(log) // 40) + 1, center=True).mean()
    axes.plot(middle, smooth, color="tab:blue", label="training, running mean")
    step = validation["step"]
    axes.plot(step, validation["val_loss"], "o-", color="tab:orange", markersize=3, label="validation, EMA weights")
    _finish(axes, "Loss", "weighted squared error")
    axes = right.subplots()
    for quarter in (column for column in validation if column.startswith("val_mse_t")):
        number, _, count = quarter.removeprefix("val_mse_t").partition("of")
        noise = {"1": " (least noise)", count: " (most noise)"}.get(number, "")
        axes.plot(step, validation[quarter], "o-", markersize=3, label=f"t in quarter {number}{noise}")
    _finish(axes, "Validation error by noise level", "squared error")
    return figure


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set(title=title, xlabel="step", ylabel=unit, yscale="log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8) if high < 20 * low else (1, 2, 5)))
    decimal = FuncFormatter(lambda value, _: np.format_float_positional(value, 4, fractional=False, trim="-"))
    axes.yaxis.set_major_formatter(decimal)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)
