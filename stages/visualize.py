"""Draw the figures from what the other stages wrote."""

import pandas as pd

from ddpm.config import Config
from ddpm.data.sources import load_mnist
from ddpm.data.split import read_image_set
from ddpm.figures.curves import loss_curves
from ddpm.figures.digits import closest_pairs, reverse_gif, reverse_strip, sample_sheet, side_by_side
from ddpm.files import load_arrays
from ddpm.images import read_pngs
from ddpm.runtime import worker_count
from stages import FIGURES, GENERATED, MODEL, NEAREST, RAW, SPLIT, TRAJECTORY, run

STRIP_ROWS = 6
PAIRS = 5  # of each digit


def visualize(config: Config) -> None:
    settings = config.visualize
    generated = read_pngs(GENERATED, worker_count(config.runtime.workers))[..., 0]
    real = read_image_set(SPLIT / "test.npz").images
    way = load_arrays(TRAJECTORY)
    sample_sheet(FIGURES / "samples.png", generated, settings.grid_columns, settings.scale)
    side_by_side(
        FIGURES / "real_and_generated.png", real, generated, max(1, settings.grid_columns // 2), settings.scale
    )
    strip_scale = 2 * settings.scale
    reverse_strip(
        FIGURES / "reverse_process.png", way["x_t"], way["t"].tolist(), settings.snapshots, STRIP_ROWS, strip_scale
    )
    reverse_gif(FIGURES / "reverse_process.gif", way["x_t"], settings.gif_seconds, settings.scale)
    loss_curves(FIGURES / "loss.png", pd.read_csv(MODEL / "log.csv"), pd.read_csv(MODEL / "validation.csv"))
    training = load_mnist(RAW, "train")
    nearest = pd.read_csv(NEAREST).sort_values("feature_distance")
    nearest["digit"] = training.labels[nearest["feature_index"]]
    pairs = nearest.groupby("digit").head(PAIRS).sort_values("digit", kind="stable")
    closest_pairs(
        FIGURES / "closest_pairs.png",
        generated[pairs["image"] - 1],
        training.images[pairs["feature_index"]],
        PAIRS,
        settings.scale,
    )
    print("\n".join(str(path) for path in sorted(FIGURES.iterdir())))


if __name__ == "__main__":
    run(visualize)
