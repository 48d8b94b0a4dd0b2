"""Measure images from anywhere as the `fid` stage does: `python -m ddpm.evaluation IMAGES --reference data/raw`.

IMAGES is a folder of PNG files, an npz file ([n, h, w], [n, h, w, c] or [n, c, h, w]; uint8, or floating point in
[0, 1] or [-1, 1]) or an IDX file.
"""

import argparse
from pathlib import Path

import torch

from ddpm.data.load import load_images
from ddpm.data.sources.mnist import load_mnist
from ddpm.evaluation.evaluator import Inception, Yardstick
from ddpm.evaluation.features.classifier import load_classifier
from ddpm.evaluation.features.inception import find_weights
from ddpm.evaluation.measure import measure_memorisation, refuse_constant
from ddpm.evaluation.reference import MnistReference, make_mnist_reference
from ddpm.evaluation.tables import number_table, read_labels
from ddpm.utils.errors import one_sentence
from ddpm.utils.files import write_json
from ddpm.utils.runtime import worker_count


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ddpm.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--reference", type=Path, required=True, help="folder with the four MNIST files")
    parser.add_argument("--features", type=Path, metavar="NPZ", help="the real digits' features: read, or made there")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="a column `digit`: what each image was to show")
    parser.add_argument("--bootstrap", type=int, default=200, help="resamples for the intervals (default 200)")
    parser.add_argument("--inception", type=Path, metavar="PTH", help="pytorch-fid's weights: measure by them, too")
    parser.add_argument("--dimensions", type=int, default=2048, choices=(64, 192, 768, 2048), help="of Inception")
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write numbers and protocol there, too")
    return parser.parse_args()


def evaluate(asked: argparse.Namespace) -> None:
    """Measure, print, and write what is asked for. Raises DdpmError, OSError."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = load_images(asked.images, worker_count("auto"))
    refuse_constant(images, lambda i: f"number {i + 1}")
    labels = read_labels(asked.labels, len(images)) if asked.labels else None
    train, test = (load_mnist(asked.reference, part) for part in ("train", "t10k"))
    inception: Inception | str = "skipped: no weights were named"
    if asked.inception:
        weights = find_weights(asked.inception, download=False)
        inception = Inception.load(weights, asked.dimensions, None, (train.images, test.images), asked.seed, device)
    classifier = load_classifier(device)
    if asked.features and asked.features.exists():
        known = MnistReference.load(asked.features)
    else:
        known = make_mnist_reference(classifier, train, test)
        if asked.features:
            known.save(asked.features)
    found = Yardstick(classifier, known, inception).measure(images, labels, asked.bootstrap, asked.seed, "images")
    numbers = found.numbers | measure_memorisation(found.digits, found.features, train.images, known).numbers
    print(number_table(numbers))
    if asked.json:
        write_json(asked.json, numbers | {"protocol": found.protocol})


def main() -> None:
    """Run; what the user can mend ends it with one sentence and exit status 1."""
    with one_sentence():
        evaluate(parse())


if __name__ == "__main__":
    main()
