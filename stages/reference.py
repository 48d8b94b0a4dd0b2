"""Embed the real digits once, so that no model's evaluation has to."""

from ddpm.config import Config
from ddpm.data.sources.mnist import load_mnist
from ddpm.evaluation.features.classifier import load_classifier
from ddpm.evaluation.features.inception import choose_weights
from ddpm.evaluation.reference import make_inception_reference, make_mnist_reference
from ddpm.utils.runtime import choose_runtime
from stages import RAW, REFERENCE, run


def reference(config: Config) -> None:
    device = choose_runtime(config.runtime, 0.0).device
    weights, skipped = choose_weights(config.fid.inception, config.fid.weights_path, device)
    train, test = load_mnist(RAW, "train"), load_mnist(RAW, "t10k")
    make_mnist_reference(load_classifier(device), train, test).save(REFERENCE / "mnist.npz")
    if weights:
        dimensions = config.fid.inception_features
        known = make_inception_reference(weights, dimensions, train.images, test.images, config.seed, device)
        known.save(REFERENCE / "inception.npz")
    print(f"Inception: {skipped or weights}")


if __name__ == "__main__":
    run(reference)
