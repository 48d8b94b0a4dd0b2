"""The loss curves of a training run."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import pandas as pd
from matplotlib.figure import Figure

from ddpm.files import atomic_path


def loss_curves(path: Path, log: pd.DataFrame, validation: pd.DataFrame) -> None:
    """Training loss with its running mean beside the validation loss, and validation error by quarter of the times.

    log: columns step, loss. validation: columns step, val_loss, val_mse_t1of4, …. Raises OSError.
    """
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(log["step"], log["loss"], color="0.75", linewidth=0.8, label="training, mean of the last steps")
    smooth = log["loss"].rolling(max(1, len(log) // 20), min_periods=1).mean()
    left.plot(log["step"], smooth, color="tab:blue", label="training, smoothed")
    left.plot(validation["step"], validation["val_loss"], "o-", color="tab:orange", markersize=3, label="validation")
    left.set(title="Loss", xlabel="step", ylabel="weighted squared error", yscale="log")
    quarters = [column for column in validation if column.startswith("val_mse_t")]
    for quarter in quarters:
        number, _, count = quarter.removeprefix("val_mse_t").partition("of")
        name = {"1": " (least noise)", count: " (most noise)"}.get(number, "")
        label = f"t in quarter {number}{name}"
        right.plot(validation["step"], validation[quarter], "o-", markersize=3, label=label)
    right.set(title="Validation error by noise level", xlabel="step", ylabel="squared error", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
