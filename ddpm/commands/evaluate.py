"""Measure images from anywhere as the `fid` stage does: `python -m ddpm evaluate IMAGES --reference data/raw`.

A data set with labels for which no classifier is shipped is measured by one that is trained on it, which takes minutes;
--classifier data/classifier/classifier.safetensors reads that of the pipeline. IMAGES is a folder of PNG files, an npz
file ([n, h, w], [n, h, w, c] or [n, c, h, w]; uint8, or floating point in [0, 1] or [-1, 1]) or an IDX file. The
conditioning labels are the columns of --labels, or the arrays `labels` and `clusters` of the npz file. A row of
--labels is of the image that its column `file` or `image` names; without one, rows are in the order of the files'
names, in which 10.png comes before 2.png.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ddpm.commands.options import DEVICES, check_whole
from ddpm.data.image_set import ImageSpec
from ddpm.data.load import GivenLabels, load_images, read_labels
from ddpm.data.sources import SOURCES
from ddpm.evaluation.evaluator import open_evaluator
from ddpm.evaluation.features import EXTRACTORS, extractor_names, refuse_too_few
from ddpm.evaluation.measure import refuse_constant
from ddpm.evaluation.reference import find_nearest_pixels
from ddpm.evaluation.train_classifier import EPOCHS, train_classifier, trained_on
from ddpm.utils.errors import DamagedFile, DdpmError
from ddpm.utils.files import load_arrays, significant, write_json
from ddpm.utils.images import png_paths
from ddpm.utils.runtime import Runtime, choose_device, fast_precision, processes_that_fit, worker_count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("images", type=Path)
    parser.add_argument("--reference", type=Path, required=True, help="folder with the data set's original files")
    parser.add_argument("--data", default="mnist", choices=list(SOURCES), help="the data set (default mnist)")
    names = ", ".join(EXTRACTORS)
    parser.add_argument("--extractors", nargs="*", metavar="NAME", choices=list(EXTRACTORS), help=f"some of {names}")
    parser.add_argument("--classifier", type=Path, metavar="FILE", help="of the data set, read, or trained and written")
    parser.add_argument("--classifier-epochs", type=int, default=EPOCHS, help=f"of that training (default {EPOCHS})")
    parser.add_argument("--swd", default="auto", choices=("auto", "on", "off"), help="patches (default auto)")
    parser.add_argument("--features", type=Path, metavar="FOLDER", help="the real images' features, read or made")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="label, cluster of each file or image")
    parser.add_argument("--bootstrap", type=int, default=200, help="resamples for the intervals (default 200)")
    parser.add_argument("--inception-weights", metavar="PTH", help="else torch's cache or a download")
    parser.add_argument("--inception-features", type=int, default=2048, choices=(64, 192, 768, 2048))
    parser.add_argument("--device", default="auto", help=DEVICES)
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write numbers and protocol there, too")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print, and write what is asked for. Raises DdpmError, OSError."""
    check_whole(arguments, classifier_epochs=1, bootstrap=0, seed=0)
    arguments.inception = "required" if arguments.extractors else "auto"  # who names it wants it
    arguments.extractors = "auto" if arguments.extractors is None else tuple(arguments.extractors)
    with tempfile.TemporaryDirectory() as scratch:
        evaluate(arguments, arguments.features or Path(scratch))


def evaluate(arguments: argparse.Namespace, features: Path) -> None:
    """Measure, print, and write what is asked for; ``features`` is a folder. Raises DdpmError, OSError."""
    if arguments.extractors == () and arguments.swd == "off":
        raise DdpmError("--extractors names no network, and --swd is off: nothing would be measured.")
    images = load_images(arguments.images, worker_count("auto"))
    refuse_constant(images, lambda i: f"number {i + 1}")
    labels = _labels(arguments, len(images))
    device = choose_device(arguments.device, f"--device {arguments.device}")
    Runtime(device, torch.float32, compiled=False).set_up()
    train, test = (SOURCES[arguments.data].load(arguments.reference, part) for part in ("train", "test"))
    # Before a classifier is trained, and the features of all real images.
    labels = known_labels(labels, train.spec)
    if "classifier" in arguments.extractors and not train.classes:
        raise DdpmError("--extractors names classifier, but the data set has no labels for it: leave it out.")
    names = "the number of images, {},", "--extractors"
    refuse_too_few(len(images), arguments.data, arguments, device, *names, train=(train.spec, len(train)))
    classifier = arguments.classifier or features / "classifier.safetensors"
    if "classifier" in extractor_names(arguments.extractors, train.spec):
        recipe = arguments.classifier_epochs, fast_precision(device)
        known = classifier.exists() and (arguments.classifier or trained_on(classifier, train, *recipe))
        if not known:
            train_classifier(classifier, train, test, recipe[0], device, recipe[1])
    given = arguments.seed, device, features, classifier, processes_that_fit()
    evaluator = open_evaluator(arguments, train, test, *given)
    for network, reference in evaluator.networks:
        reference.save(features / f"{network.name}.npz")
    test_nearest = find_nearest_pixels(features / "pixels.npz", train, test)
    found = evaluator.measure(images, labels, arguments.bootstrap, "images")
    numbers = found.numbers | evaluator.memorization(images, found.features, train, test_nearest)[0]
    print(number_table(numbers))
    for name, reason in evaluator.skipped.items():
        print(f"{name} skipped: {reason}")
    if arguments.json:
        write_json(arguments.json, significant(numbers | {"protocol": found.protocol}))


def _labels(arguments: argparse.Namespace, count: int) -> GivenLabels:
    """The class label and the cluster that each image was given: of the table, or of the npz file."""
    if arguments.labels:
        files = [path.name for path in png_paths(arguments.images)] if arguments.images.is_dir() else []
        return read_labels(arguments.labels, count, files if len(files) == count else [])
    arrays = load_arrays(arguments.images) if arguments.images.suffix == ".npz" else {}
    given = {name: arrays[name] for name in ("labels", "clusters") if name in arrays}
    for name, part in given.items():
        if part.shape != (count,) or part.dtype.kind not in "iu":
            reason = f"holds {name} that are not one whole number for each of its images"
            raise DamagedFile(f"{arguments.images} {reason}: leave that array out, or name a table by --labels")
    classes, clusters = (given[name].astype(np.int64) if name in given else None for name in ("labels", "clusters"))
    return GivenLabels(classes, clusters)


def known_labels(labels: GivenLabels, spec: ImageSpec) -> GivenLabels:
    """The labels, which are clusters alone where the real images have no classes.

    Raises DdpmError where they have classes, but not these.
    """
    if labels.classes is None:
        return labels
    if not spec.classes:
        return GivenLabels(clusters=labels.conditioning)
    unknown = labels.classes[(labels.classes < 0) | (labels.classes >= spec.classes)]
    if len(unknown):
        raise DdpmError(
            f"{unknown[0]} is given as the label of an image, but {spec.name} has the classes 0 to {spec.classes - 1}: "
            "correct the labels, or leave them out."
        )
    return labels


def number_table(numbers: Mapping[str, float]) -> str:
    """Flat metrics as text, one row a number: its value, 95 % interval, and what real images score."""
    ends = ("_low", "_high", "_real", "_floor")
    rows = {
        key: [f"{numbers[key + end]:.6g}" if key + end in numbers else "" for end in ("", *ends)]
        for key in numbers
        if not key.endswith(ends)
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", *(end[1:] for end in ends)]).to_string()
