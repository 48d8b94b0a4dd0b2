"""Label accuracy and distance of samplings of a few models: `python -m benchmarks.tradeoff`.

It draws the rows that `benchmarks.samplings` left in files of benchmarks/results/, all of one noise.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.common import run
from benchmarks.page import RESULTS
from ddpm.utils.files import atomic_path, read_json

MODELS = {
    "default, 5.5 epochs": ("high_noise_again",),
    "long as it was, 45 epochs": ("long_high_noise",),
    "48 channels, 32 epochs": ("long_wider",),
    "long: the default's recipe, 45 epochs": ("long_default_recipe", "long_guidance"),
    "the default's recipe, 32 epochs": ("frontier_half_hour",),
}


def plot(path: Path) -> None:
    """One point a sampling, one colour a model; dashed: as many real training images."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    floors = []
    for label, names in MODELS.items():
        rows = [row for name in names for row in read_json(RESULTS / f"{name}.json")["rows"]]
        accuracies, distances = ([row[key] for row in rows] for key in ("label_accuracy", "fd_mnist"))
        axes.plot([100 * accuracy for accuracy in accuracies], distances, "o", label=label, alpha=0.8)
        floors += [row["fd_mnist"] / row["over_floor"] for row in rows]
    axes.axhline(max(floors), color="grey", linestyle="--", label="real training images")
    axes.set(xlabel="digits of their label, %", ylabel="Fréchet distance (fd_mnist)", ylim=(0, None))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, metavar="PNG", default=Path("docs/images/tradeoff.png"))
    plot(parser.parse_args().plot)


if __name__ == "__main__":
    run(main)
