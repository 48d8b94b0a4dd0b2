"""What `fid` computes of features, by their number, in seconds: `python -m benchmarks.many_features --help`.

Inception's 2048 features need a CUDA device to be had in minutes; what is made of them is computed on the CPU on every
machine. It takes as long for random features as for real ones, so those are measured: of MNIST's numbers of images, at
the defaults, with further sets. Nothing else should run.
"""

import time
from functools import partial

import numpy as np
import torch

from benchmarks.common import arguments, run, save, settings, show
from ddpm.data.load import GivenLabels
from ddpm.evaluation.measure import RealImages, measure_features
from ddpm.evaluation.reference import reference_of
from ddpm.utils.seeds import numpy_generator

TRAIN, TEST = 60_000, 10_000


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--features", type=int, nargs="+", default=[128, 2048], help="default 128 2048")
    given = parser.parse_args()
    config = settings()
    count, stream = config.generate.num_images, partial(numpy_generator, 0)
    random = np.random.default_rng(0)
    rows = []
    for features in given.features:
        # Correlated, as real features are: the eigenvalues then are not all alike.
        mixed = (random.normal(size=(features, features)) * np.linspace(0, 1, features)).astype(np.float32)

        def draw(images: int, mixed: np.ndarray = mixed) -> np.ndarray:
            return random.normal(size=(images, len(mixed))).astype(np.float32) @ mixed

        train, test = (draw(images) for images in (TRAIN, TEST))
        labels = (np.zeros(len(part), np.int64) for part in (train, test))
        started = time.perf_counter()
        known = reference_of("random", *zip((train, test), labels, strict=True), None, 0)
        referred = time.perf_counter()
        beside = RealImages.for_images(count, known, "x", stream)
        measure_features("x", "fd_x", draw(count), beside, config.fid.bootstrap, stream, False, GivenLabels())
        measured = time.perf_counter()
        for _ in range(config.generate.replicates):
            measure_features("x", "fd_x", draw(count), beside, 0, stream, True, GivenLabels())
        ended = time.perf_counter()
        rows.append(
            {
                "features": features,
                "reference_s": referred - started,
                "images_s": measured - referred,
                "replicates_s": ended - measured,
                "all_s": ended - started,
            }
        )
        save(rows, given.json, {"threads": torch.get_num_threads(), "images": count})
    show(rows)


if __name__ == "__main__":
    run(main)
