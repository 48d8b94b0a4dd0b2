"""Embed the real digits once, so that no model's evaluation has to."""

from ddpm.config import Config
from ddpm.data.sources import load_mnist
from ddpm.evaluation.classifier import classify, load_classifier
from ddpm.evaluation.inception import choose_weights
from ddpm.evaluation.protocol import embed_real_inception
from ddpm.evaluation.reference import MnistReference
from ddpm.runtime import choose_runtime
from stages import RAW, REFERENCE, run


def reference(config: Config) -> None:
    device = choose_runtime(config.runtime, 0.0).device
    weights, skipped = choose_weights(config.fid.inception, config.fid.weights_path, device)
    train, test = load_mnist(RAW, "train"), load_mnist(RAW, "t10k")
    classifier = load_classifier(device)
    train_features, _ = classify(classifier, train.images, "train")
    test_features, test_probabilities = classify(classifier, test.images, "test")
    known = MnistReference(train_features, test_features, test_probabilities, test.labels)
    known.save(REFERENCE / "mnist.npz")
    if weights:
        inception, _ = embed_real_inception(weights, train.images, test.images, config.seed, device)
        inception.save(REFERENCE / "inception.npz")
    print(f"Inception: {skipped or weights}")


if __name__ == "__main__":
    run(reference)
