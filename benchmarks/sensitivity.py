"""What the Fréchet distance sees: `python -m benchmarks.sensitivity --help`.

Real test images are corrupted more and more, by noise, blur, rotation, missing classes or copies, and measured as if
they had been generated. The distance should grow with every level.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from benchmarks.common import arguments, check, quality, run, save, settings, show
from ddpm.data.image_set import ImageSet
from ddpm.data.sources import SOURCES
from ddpm.utils.files import atomic_path
from ddpm.utils.seeds import numpy_generator
from stages.paths import RAW

Corruption = Callable[[ImageSet, float, np.random.Generator], np.ndarray]


def noise(real: ImageSet, level: float, generator: np.random.Generator) -> np.ndarray:
    added = level * 255 * generator.standard_normal(real.images.shape)
    return (real.images + added).round().clip(0, 255).astype(np.uint8)


def blur(real: ImageSet, level: float, _: np.random.Generator) -> np.ndarray:
    return ndimage.gaussian_filter(real.images, (0, 0, level, level))


def rotation(real: ImageSet, level: float, generator: np.random.Generator) -> np.ndarray:
    signs = generator.choice((-1, 1), size=len(real))
    turned = [
        ndimage.rotate(image, sign * level, axes=(1, 2), reshape=False, order=1)
        for image, sign in zip(real.images, signs, strict=True)
    ]
    return np.stack(turned)


def missing_classes(real: ImageSet, level: float, generator: np.random.Generator) -> np.ndarray:
    left = np.flatnonzero(real.labels >= level)
    return real.images[generator.choice(left, size=len(real))] if level else real.images


def copies(real: ImageSet, level: float, generator: np.random.Generator) -> np.ndarray:
    images = real.images.copy()
    chosen = generator.permutation(len(images))[: round(level * len(images))]
    images[chosen] = real.images[0]
    return images


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...], str]] = {
    "noise": (noise, (0, 0.05, 0.1, 0.2, 0.4), "deviation, of the range of grey"),
    "blur": (blur, (0, 0.5, 0.75, 1.0, 1.5), "deviation, in pixels"),
    "rotation": (rotation, (0, 10, 20, 30, 45), "degrees, to either side"),
    "missing digits": (missing_classes, (0, 1, 3, 6, 9), "of ten"),
    "copies": (copies, (0, 0.05, 0.1, 0.3, 1.0), "fraction of copies of one image"),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="test images a row (default 10000)")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    given = parser.parse_args()
    check(given.images)
    config = settings()
    test = SOURCES[config.data.name].load(RAW, "test")
    real = test.take(np.arange(min(given.images, len(test))))
    rows = []
    cases = [(name, level) for name, (_, levels, _) in CORRUPTIONS.items() for level in levels]
    for name, level in tqdm(cases, desc="sensitivity", unit="row"):
        images = CORRUPTIONS[name][0](real, level, numpy_generator(config.seed, name))
        rows.append({"corruption": name, "level": level, **quality(images)})
        save(rows, given.json, {"images": given.images})
    show(rows)
    if given.plot:
        plot(rows, given.plot)


def plot(rows: list[dict[str, float | str]], path: Path) -> None:
    """One panel for each corruption, the distance over its level; dashed: the test images as they are."""
    figure, panels = plt.subplots(1, len(CORRUPTIONS), figsize=(13, 3.2), sharey=True, layout="constrained")
    for panel, (name, (_, _, unit)) in zip(panels, CORRUPTIONS.items(), strict=True):
        line = [(row["level"], row["fd_mnist"]) for row in rows if row["corruption"] == name]
        panel.plot(*np.array(line, np.float64).T, marker="o")
        panel.axhline(float(line[0][1]), color="grey", linestyle="--", linewidth=1)
        panel.set(yscale="log", title=name, xlabel=unit)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("Fréchet distance")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


if __name__ == "__main__":
    run(main)
