"""Make the figures from what the other stages wrote."""

import pandas as pd

from ddpm.config import Config
from ddpm.data.image_set import read_image_set
from ddpm.data.sources import SOURCES
from ddpm.figures.curves import write_loss_curves
from ddpm.figures.grids import closest_pairs, real_and_generated, reverse_gif, reverse_strip, sample_grid
from ddpm.utils.files import load_arrays
from ddpm.utils.image_files import read_images
from ddpm.utils.runtime import worker_count
from stages.paths import EVALUATION, FIGURES, GENERATED, MODEL, RAW, SPLIT, TRAJECTORY
from stages.runner import run

STRIP_ROWS = 6
PAIRS = 5  # of each class


def visualize(config: Config) -> None:
    settings = config.visualize
    columns, scale = settings.grid_columns, settings.scale
    generated = read_images(GENERATED, worker_count(config.runtime.workers))
    test, training = read_image_set(SPLIT / "test.npz"), SOURCES[config.data.name].load(RAW, "train")
    nearest = pd.read_csv(EVALUATION / "nearest.csv")
    space = "feature" if "feature_index" in nearest else "pixel"
    sample_grid(FIGURES / "samples.png", generated, columns, scale)
    real_and_generated(FIGURES / "real_and_generated.png", test.images, generated, max(1, columns // 2), scale)
    closest_pairs(FIGURES / "closest_pairs.png", generated, training, nearest, PAIRS, scale, space)
    trajectory = load_arrays(TRAJECTORY)
    x_t, t = trajectory["x_t"], trajectory["t"].tolist()
    reverse_strip(FIGURES / "reverse_process.png", x_t, t, settings.snapshots, STRIP_ROWS, 2 * scale)
    reverse_strip(FIGURES / "predicted_x_0.png", trajectory["x_0"], t, settings.snapshots, STRIP_ROWS, 2 * scale)
    reverse_gif(FIGURES / "reverse_process.gif", x_t, settings.gif_seconds, scale)
    write_loss_curves(FIGURES / "loss.png", pd.read_csv(MODEL / "log.csv"), pd.read_csv(MODEL / "validation.csv"))
    print("\n".join(str(path) for path in sorted(FIGURES.glob("[!.]*"))))


if __name__ == "__main__":
    run(visualize)
