"""Measure the generated images against the real ones."""

from pathlib import Path

import numpy as np
import torch

from ddpm.config import Config
from ddpm.data.sources import load_mnist
from ddpm.evaluation.classifier import classify, load_classifier
from ddpm.evaluation.inception import choose_weights, inception_features, load_inception
from ddpm.evaluation.measure import measure_features, measure_memorisation, measure_mnist, refuse_constant, to_mnist
from ddpm.evaluation.protocol import inception_protocol, mnist_protocol, versions
from ddpm.evaluation.reference import InceptionReference, MnistReference, make_inception_reference
from ddpm.evaluation.tables import read_labels
from ddpm.files import sha256, write_csv, write_json
from ddpm.images import png_name, read_pngs
from ddpm.runtime import choose_runtime, worker_count
from stages import GENERATED, LABELS, METRICS, NEAREST, RAW, REFERENCE, run


def fid(config: Config) -> None:
    device = choose_runtime(config.runtime, 0.0).device
    weights, skipped = choose_weights(config.fid.inception, config.fid.weights_path, device)
    images = read_pngs(GENERATED, worker_count(config.runtime.workers))
    count = len(images)
    refuse_constant(images, lambda i: png_name(i + 1, count))
    known = MnistReference.load(REFERENCE / "mnist.npz")
    train = load_mnist(RAW, "train").images
    digits = to_mnist(images)
    features, probabilities = classify(load_classifier(device), digits, "generated")
    asked = read_labels(LABELS, count)
    measured = measure_mnist(features, probabilities, asked, known, config.fid.bootstrap, config.seed)
    copies = measure_memorisation(digits, features, train, known)
    numbers = {"images": count, "reference_images": len(known.train), **measured.numbers}
    protocol = {
        "mnist": mnist_protocol(images.shape[1:3], count, len(known.train)),
        "inception": skipped,
        "versions": versions(),
    }
    if weights:
        found, protocol["inception"] = measure_by_inception(config, weights, images, train, device)
        numbers |= found
    write_csv(METRICS / "classes.csv", ("digit", "set", "share", "fd_mnist"), measured.by_class.rows())
    write_csv(NEAREST, copies.columns, copies.rows())
    write_json(METRICS / "protocol.json", protocol)
    write_json(METRICS / "memorisation.json", copies.numbers)
    write_json(METRICS / "fid.json", numbers)


def measure_by_inception(
    config: Config, weights: Path, images: np.ndarray, train: np.ndarray, device: torch.device
) -> tuple[dict[str, float], dict[str, object]]:
    stored, dimensions, digest = REFERENCE / "inception.npz", config.fid.inception_features, sha256(weights)
    real = InceptionReference.load(stored) if stored.exists() else None
    if real is None or real.weights_sha256 != digest or len(real.mean) != dimensions:
        # The reference was made where there were no weights, or with others.
        test = load_mnist(RAW, "t10k").images
        real = make_inception_reference(weights, dimensions, train, test, config.seed, device)
    features = inception_features(load_inception(weights, dimensions, device), images, "generated")
    names = ("fid_inception", "inception")
    numbers = measure_features(
        names, features, real.gaussian, real.train, real.test, float(real.floor), config.fid.bootstrap, config.seed
    )
    return numbers, inception_protocol(dimensions, digest, len(images), int(real.count))


if __name__ == "__main__":
    run(fid)
