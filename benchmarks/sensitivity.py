"""What the yardstick sees: `python -m benchmarks.sensitivity --help`.

Real test digits are spoiled more and more, by noise, blur, rotation, missing digits or copies, and measured as if they
had been generated. The distance should grow with every level.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from benchmarks.common import arguments, check, quality, run, save, settings, show
from ddpm.data.sources.mnist import load_mnist
from ddpm.data.split import ImageSet
from ddpm.utils.files import atomic_path
from ddpm.utils.seeds import numpy_generator
from stages import RAW

Spoil = Callable[[ImageSet, float, np.random.Generator], np.ndarray]


def noise(digits: ImageSet, level: float, generator: np.random.Generator) -> np.ndarray:
    added = level * 255 * generator.standard_normal(digits.images.shape)
    return (digits.images + added).round().clip(0, 255).astype(np.uint8)


def blur(digits: ImageSet, level: float, _: np.random.Generator) -> np.ndarray:
    return ndimage.gaussian_filter(digits.images, (0, level, level))


def rotation(digits: ImageSet, level: float, generator: np.random.Generator) -> np.ndarray:
    signs = generator.choice((-1, 1), size=len(digits))
    turned = [
        ndimage.rotate(image, sign * level, reshape=False, order=1)
        for image, sign in zip(digits.images, signs, strict=True)
    ]
    return np.stack(turned)


def missing_digits(digits: ImageSet, level: float, generator: np.random.Generator) -> np.ndarray:
    left = np.flatnonzero(digits.labels >= level)
    return digits.images[generator.choice(left, size=len(digits))] if level else digits.images


def copies(digits: ImageSet, level: float, generator: np.random.Generator) -> np.ndarray:
    images = digits.images.copy()
    spoiled = generator.permutation(len(images))[: round(level * len(images))]
    images[spoiled] = digits.images[0]
    return images


SPOILED: dict[str, tuple[Spoil, tuple[float, ...], str]] = {
    "noise": (noise, (0, 0.05, 0.1, 0.2, 0.4), "deviation, of the range of grey"),
    "blur": (blur, (0, 0.5, 0.75, 1.0, 1.5), "deviation, in pixels"),
    "rotation": (rotation, (0, 10, 20, 30, 45), "degrees, to either side"),
    "missing digits": (missing_digits, (0, 1, 3, 6, 9), "of ten"),
    "copies": (copies, (0, 0.05, 0.1, 0.3, 1.0), "share of copies of one image"),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="test digits a row (default 10000)")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    asked = parser.parse_args()
    check(asked.images)
    test = load_mnist(RAW, "t10k")
    digits = ImageSet(test.images[: asked.images], test.labels[: asked.images], test.indices[: asked.images])
    seed = settings().seed
    rows = []
    cases = [(name, level) for name, (_, levels, _) in SPOILED.items() for level in levels]
    for name, level in tqdm(cases, desc="sensitivity", unit="row"):
        images = SPOILED[name][0](digits, level, numpy_generator(seed, name))
        rows.append({"spoiled_by": name, "level": level, **quality(images, seed)})
        save(rows, asked.json, {"images": asked.images})
    show(rows)
    if asked.plot:
        plot(rows, asked.plot)


def plot(rows: list[dict[str, float | str]], path: Path) -> None:
    """One panel for each way of spoiling, the distance over its level, with what the unspoiled digits score."""
    figure, panels = plt.subplots(1, len(SPOILED), figsize=(13, 3.2), sharey=True, layout="constrained")
    for panel, (name, (_, _, unit)) in zip(panels, SPOILED.items(), strict=True):
        line = [(row["level"], row["fd_mnist"]) for row in rows if row["spoiled_by"] == name]
        panel.plot(*np.array(line, np.float64).T, marker="o")
        panel.axhline(float(line[0][1]), color="grey", linestyle="--", linewidth=1)
        panel.set(yscale="log", title=name, xlabel=unit)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("Fréchet distance")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


if __name__ == "__main__":
    run(main)
