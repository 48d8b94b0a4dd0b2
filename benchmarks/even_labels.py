"""What even labels are worth: real digits drawn as samples are labelled: `python -m benchmarks.even_labels --help`.

A model's conditioning labels are spread evenly over its samples (`balanced_labels`); the test digits and the training
digits of the floor are drawn without a look at theirs. Here both are drawn, or weighted, so that their labels are as
frequent as in training: by class, and by class and cluster, of which a class has 10, 100 or, as by default, 200. The
distances are to all training digits: each the mean over --draws of 10,000 training digits, of --infinity for FD∞; of
the test digits all are taken.
"""

import numpy as np

from benchmarks.common import arguments, evaluator, judge_features, run, save, show
from ddpm.data.sources.mnist import MNIST
from ddpm.evaluation.frechet import Gaussian, fit_gaussian, frechet_distance, frechet_infinity
from ddpm.models.conditioning import fit_conditioning
from ddpm.sampling.labels import balanced_labels
from ddpm.utils.seeds import numpy_generator
from stages.paths import RAW

# By clusters of each class.
CLUSTERS = {
    0: "random",
    1: "even by class",
    10: "even by 10 × 10 clusters",
    100: "even by 10 × 100 clusters",
    200: "even by 10 × 200 clusters",
}
COUNT, SEED = 10_000, 3407


def evenly(labels: np.ndarray, frequencies: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Positions of ``count`` images, int64 [count], in random order, each label as often as a model's samples have it.

    labels: int64 [n] in 0 … k−1. frequencies: float64 [k], see `balanced_labels`, of a run of numbers from anywhere.
    """
    start = int(generator.integers(1, 10**6))
    wanted = np.bincount(balanced_labels(range(start, start + count), frequencies), minlength=len(frequencies))
    members = [generator.permutation(np.flatnonzero(labels == label)) for label in range(len(frequencies))]
    chosen = np.concatenate([each[:number] for each, number in zip(members, wanted, strict=True)])
    return generator.permutation(chosen)


def weighted_gaussian(features: np.ndarray, weights: np.ndarray) -> Gaussian:
    """Mean and covariance of features [n, d] by weights [n], as unbiased as for equal ones."""
    features = features.astype(np.float64)
    covariance = np.cov(features, rowvar=False, aweights=weights)
    return Gaussian(np.average(features, 0, weights), covariance, len(features))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--draws", type=int, default=40, help="of training digits for a mean (default 40)")
    parser.add_argument("--infinity", type=int, default=8, help="of those for fd_mnist_infinity (default 8)")
    given = parser.parse_args()
    network, real = evaluator()
    train, test = (MNIST.load(RAW, part) for part in ("train", "test"))
    features, of_test = (
        (network.features(images.images, "measure").values, judge_features(images.images)) for images in (train, test)
    )
    references = real.gaussian, fit_gaussian(features[1])
    rows = []
    for clusters in CLUSTERS:
        generator, frequencies = numpy_generator(SEED, "benchmark", clusters), np.ones(1)
        labels, weights = np.zeros(len(train), np.int64), np.ones(len(test))
        if clusters:
            conditioning = fit_conditioning(train, train.classes, clusters, SEED)
            labels, own = (conditioning.labels(images).numpy() for images in (train, test))
            frequencies = conditioning.frequencies.flatten().numpy()
            weights = (frequencies / np.bincount(own, minlength=len(frequencies)).clip(1))[own]
        distances, infinities = [], []
        for draw in range(given.draws):
            chosen = evenly(labels, frequencies, COUNT, generator)
            drawn = [fit_gaussian(each[chosen]) for each in features]
            distances.append([frechet_distance(*pair) for pair in zip(references, drawn, strict=True)])
            if draw < given.infinity:
                infinities.append(frechet_infinity(features[0][chosen], references[0], generator))
        mean, std = np.mean(distances, 0), np.std(distances, 0)
        weighted = [weighted_gaussian(each, weights) for each in of_test]
        tests = [frechet_distance(*pair) for pair in zip(references, weighted, strict=True)]
        row = {
            "labels": CLUSTERS[clusters],
            "train_fd_mnist": mean[0],
            "its_std": std[0],
            "train_fd_mnist_infinity": float(np.mean(infinities)),
            "train_fd_judge": mean[1],
            "test_fd_mnist": tests[0],
            "test_fd_judge": tests[1],
            "test_effective_images": round(weights.sum() ** 2 / (weights**2).sum()),
        }
        rows.append(row)
        save(rows, given.json, {"count": COUNT, "draws": given.draws, "infinity": given.infinity})
        show([row])
    show(rows)


if __name__ == "__main__":
    run(main)
