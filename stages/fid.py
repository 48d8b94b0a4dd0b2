"""Measure the generated images against the real ones."""

import numpy as np

from ddpm.config import Config
from ddpm.data.sources.mnist import load_mnist
from ddpm.evaluation.evaluator import Inception, Yardstick
from ddpm.evaluation.features.classifier import load_classifier
from ddpm.evaluation.features.inception import choose_weights
from ddpm.evaluation.measure import in_order, measure_memorisation, refuse_constant
from ddpm.evaluation.reference import MnistReference
from ddpm.evaluation.tables import read_labels, scatter
from ddpm.utils.files import load_arrays, write_csv, write_json
from ddpm.utils.images import png_name, read_pngs
from ddpm.utils.runtime import choose_runtime, worker_count
from stages import DRAWS, GENERATED, LABELS, METRICS, NEAREST, RAW, REFERENCE, run


def fid(config: Config) -> None:
    yardstick = open_yardstick(config)
    images = read_pngs(GENERATED, worker_count(config.runtime.workers))
    refuse_constant(images, lambda i: png_name(i + 1, len(images)))
    asked = read_labels(LABELS, len(images))
    found = yardstick.measure(images, asked, config.fid.bootstrap, config.seed, "generated")
    others = [
        yardstick.measure(np.repeat(again[..., None], 3, -1), asked, 0, config.seed, name, alone=True).numbers
        for name, again in load_arrays(DRAWS).items()
    ]
    beside_real = {key: value for key, value in found.numbers.items() if f"{key}_real" in found.numbers}
    numbers = in_order({"draws": 1 + len(others), **found.numbers, **scatter(beside_real, others)})
    train = load_mnist(RAW, "train").images
    copies = measure_memorisation(found.digits, found.features, train, yardstick.known)
    write_csv(METRICS / "classes.csv", ("digit", "set", "share", "fd_mnist"), found.by_class.rows())
    write_csv(NEAREST, copies.columns, copies.rows())
    write_json(METRICS / "memorisation.json", copies.numbers)
    write_json(METRICS / "fid.json", numbers | {"protocol": found.protocol})


def open_yardstick(config: Config) -> Yardstick:
    """What the settings measure by, the reference as the stage of that name left it."""
    device = choose_runtime(config.runtime, 0.0).device
    weights, skipped = choose_weights(config.fid.inception, config.fid.weights_path, device)
    inception: Inception | str = skipped
    if weights:
        train, test = (load_mnist(RAW, part).images for part in ("train", "t10k"))
        stored = REFERENCE / "inception.npz"
        inception = Inception.load(weights, config.fid.inception_features, stored, (train, test), config.seed, device)
    return Yardstick(load_classifier(device), MnistReference.load(REFERENCE / "mnist.npz"), inception)


if __name__ == "__main__":
    run(fid)
