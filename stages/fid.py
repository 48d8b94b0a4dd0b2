"""Measure the generated images against the real ones."""

from pathlib import Path

import numpy as np
import torch

from ddpm.config import Config
from ddpm.data.sources import load_mnist
from ddpm.evaluation.classifier import WEIGHTS_SHA256, classify, load_classifier
from ddpm.evaluation.inception import choose_weights, inception_features, load_inception
from ddpm.evaluation.measure import measure_inception, measure_mnist, read_labels, to_mnist, write_class_shares
from ddpm.evaluation.protocol import embed_real_inception, versions
from ddpm.evaluation.reference import INCEPTION_FLOOR_IMAGES, InceptionReference, MnistReference
from ddpm.files import sha256, write_json
from ddpm.images import read_pngs
from ddpm.runtime import choose_runtime, worker_count
from stages import GENERATED, LABELS, METRICS, RAW, REFERENCE, run


def fid(config: Config) -> None:
    device = choose_runtime(config.runtime, 0.0).device
    weights, skipped = choose_weights(config.fid.inception, config.fid.weights_path, device)
    images = read_pngs(GENERATED, worker_count(config.runtime.workers))
    known = MnistReference.load(REFERENCE / "mnist.npz")
    features, probabilities = classify(load_classifier(device), to_mnist(images), "generated")
    asked = read_labels(LABELS, len(images))
    measured = measure_mnist(features, probabilities, asked, known, config.fid.bootstrap, config.seed)
    numbers = {"images": len(images), "reference_images": len(known.train), **measured.numbers}
    protocol = {"mnist_features": "shipped classifier, 128-d", "mnist_weights_sha256": WEIGHTS_SHA256}
    protocol["inception"] = skipped or "pytorch-fid, 2048-d, resized to 299 × 299 bilinearly by the network"
    if weights:
        numbers |= measure_by_inception(config, weights, images, device)
        protocol["inception_weights_sha256"] = sha256(weights)
        protocol["inception_floor_images"] = str(INCEPTION_FLOOR_IMAGES)
    protocol["image_size"] = f"{images.shape[2]} × {images.shape[1]}, 8-bit PNG; to 28 × 28 bicubic where it differs"
    write_class_shares(METRICS / "class_shares.csv", measured.class_shares)
    write_json(METRICS / "protocol.json", protocol | versions())
    write_json(METRICS / "fid.json", numbers)


def measure_by_inception(config: Config, weights: Path, images: np.ndarray, device: torch.device) -> dict[str, float]:
    stored = REFERENCE / "inception.npz"
    if stored.exists() and (real := InceptionReference.load(stored)).weights_sha256 == sha256(weights):
        network = load_inception(weights, device)
    else:  # the reference was made where there were no weights, or with others
        train, test = (load_mnist(RAW, part).images for part in ("train", "t10k"))
        real, network = embed_real_inception(weights, train, test, config.seed, device)
    features = inception_features(network, images, "generated")
    found = measure_inception(features, real.gaussian, config.fid.bootstrap, config.seed)
    return found | {"fid_inception_floor": float(real.floor), "fid_inception_floor_test": float(real.floor_test)}


if __name__ == "__main__":
    run(fid)
