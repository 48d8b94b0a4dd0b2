"""Sample images from a trained model.

python -m ddpm sample                                      64 digits of all classes in digits.png
python -m ddpm sample --classes 3 8 --count 16 --scale 4   threes and eights in turn, larger
python -m ddpm sample --classes sneaker --model FILE       by name, of a model of Fashion-MNIST
python -m ddpm sample --count 10000 --out digits           10,000 PNG files in the folder digits
python -m ddpm sample --count 10000 --out digits.npz       arrays: images and what they were conditioned on
python -m ddpm sample --model data/model/best.safetensors  by the model that the pipeline trained here
python -m ddpm sample --model mnist_unconditional          by one that knows no class label
"""

import argparse

import numpy as np

from ddpm.api import MOST_IMAGES
from ddpm.commands.options import add_options, check_output, given_settings, open_model, write_images
from ddpm.utils.errors import DdpmError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--count", type=int, default=64, help="how many images (default 64)")
    parser.add_argument(
        "--classes", nargs="+", metavar="CLASS", help="these in turn, by name or by number (default: all)"
    )
    add_options(parser, "digits.png")


def run(arguments: argparse.Namespace) -> None:
    """Sample, and write the images. Raises DdpmError, OSError."""
    check_output(arguments)
    if not 1 <= arguments.count <= MOST_IMAGES:
        raise DdpmError(f"--count {arguments.count}: a whole number from 1 to {MOST_IMAGES:,} is wanted.")
    model = open_model(arguments)
    classes = arguments.classes
    labels = [classes[i % len(classes)] for i in range(arguments.count)] if classes else None
    images = model.sample(arguments.count, labels=labels, seed=arguments.seed, **given_settings(arguments))
    classes, clusters = model.class_labels(arguments.count, labels), model.cluster_labels(arguments.count, labels)
    write_images(arguments, np.asarray(images), labels=classes, clusters=clusters)
