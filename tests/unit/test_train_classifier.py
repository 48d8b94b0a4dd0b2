"""A data set with labels that has no shipped classifier: it is trained, kept in a file, and measures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ddpm.config import Config
from ddpm.data.image_set import ImageSet, ImageSpec
from ddpm.data.load import GivenLabels
from ddpm.data.sources import SOURCES
from ddpm.evaluation.evaluator import open_evaluator
from ddpm.evaluation.features import extractor_names, open_extractors, refuse_too_few
from ddpm.evaluation.features.classifier import (
    FEATURES,
    WEIGHTS,
    Classifier,
    TrainedExtractor,
    as_input,
    classifier_of,
    load_trained,
)
from ddpm.evaluation.train_classifier import accuracy, augment, train, train_classifier, trained_on
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile
from ddpm.utils.files import sha256

CPU = torch.device("cpu")
Sets = tuple[ImageSet, ImageSet]


@pytest.fixture(scope="module")
def trained(coloured: Sets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier of the coloured digits, trained for a few seconds."""
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    assert train_classifier(path, *coloured, 3, CPU, torch.float32) > 0.95
    return path


def settings(*names: str, swd: str = "auto") -> SimpleNamespace:
    """Those of the section `fid`."""
    return SimpleNamespace(
        extractors=names or "auto", swd=swd, inception="auto", inception_weights=None, inception_features=64
    )


def test_the_network_of_mnist_is_the_shipped_one():
    shapes = {name: weight.shape for name, weight in load_file(WEIGHTS).items()}
    assert {name: weight.shape for name, weight in Classifier().state_dict().items()} == shapes
    assert classifier_of(ImageSpec(28, 1, 10)).state_dict().keys() == shapes.keys()


@pytest.mark.parametrize(
    ("size", "channels", "classes", "widths", "left"),
    [
        (8, 1, 10, [32], 4),
        (28, 1, 26, [32, 48, 64], 3),
        (32, 3, 100, [32, 48, 64], 4),
        (100, 3, 2, [32, 48, 64, 80], 4),
    ],
)
def test_it_fits_any_size_channels_and_classes(size: int, channels: int, classes: int, widths: list[int], left: int):
    spec = ImageSpec(size, channels, classes)
    network = classifier_of(spec).eval()
    convolutions = [layer for layer in network.levels if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [width for width in widths for _ in range(2)]
    assert network.embed.in_features == widths[-1] * left**2
    images = np.zeros((2, 1, size, size), np.uint8)
    assert network(torch.tensor(as_input(images, spec))).shape == (2, classes)


def test_training_again_gives_the_same_bytes_and_another_number_of_epochs_others(coloured: Sets, tmp_path: Path):
    few = coloured[0].take(np.arange(300)), coloured[1]
    digests = []
    for name, epochs in (("a", 1), ("b", 1), ("c", 2)):
        train_classifier(tmp_path / name, *few, epochs, CPU, torch.float32)
        digests.append(sha256(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]


def test_fewer_images_than_a_batch_are_trained_on(coloured: Sets):
    images, labels = coloured[0].images[:30], coloured[0].labels[:30]
    build = lambda: classifier_of(coloured[0].spec)  # noqa: E731
    network = train(build, images, labels, 1, 30, CPU, torch.float32)
    assert accuracy(network, images, labels, CPU) > 0.8


@pytest.mark.parametrize(("images", "epochs"), [(30, 5), (100, 5), (500, 1)])
def test_five_steps_are_a_training_too(coloured: Sets, images: int, epochs: int):
    few = coloured[0].take(np.arange(images))
    network = train(lambda: classifier_of(few.spec), few.images, few.labels, 1, epochs, CPU, torch.float32)
    assert all(weight.isfinite().all() for weight in network.parameters())


def test_augmentation_moves_an_image_a_little_and_is_seeded(coloured: Sets):
    images = torch.tensor(coloured[0].images[:50])
    first, again, other = (augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.shape, first.dtype) == (images.shape, torch.uint8)
    differences = [(moved.float() - images.float()).abs().mean() for moved in (first, images.roll(1, 0))]
    assert 0 < differences[0] < differences[1]


def test_its_file_says_what_it_is_and_gives_the_network_back(trained: Path, coloured: Sets):
    network, spec, remarks = load_trained(trained, CPU)
    assert spec == coloured[0].spec
    assert remarks["recipe"] == "3 epochs of 2000 images, seed 3407, float32"
    assert remarks["test_accuracy"] == accuracy(network, coloured[1].images, coloured[1].labels, CPU) > 0.95
    assert not network.training


def test_its_features_and_probabilities_are_those_of_the_network(trained: Path, coloured: Sets):
    extractor = TrainedExtractor(CPU, coloured[0].spec, 2000, trained)
    assert (extractor.name, extractor.frechet_key) == ("coloured", "fd_coloured")
    assert extractor.weights_sha256 == sha256(trained)
    found = extractor.features(coloured[1].images, "test")
    assert found.values.shape == (len(coloured[1]), FEATURES)
    assert found.probabilities is not None
    assert (found.probabilities.argmax(1) == coloured[1].labels).mean() == extractor.remarks["test_accuracy"]


@pytest.mark.parametrize("change", [{"name": "others"}, {"size": 28}, {"channels": 1}])
def test_a_classifier_of_other_data_is_refused(trained: Path, coloured: Sets, change: dict[str, object]):
    with pytest.raises(DdpmError, match=r"trained on coloured \(3 classes, 3 × 16 × 16\).*dvc repro classifier"):
        TrainedExtractor(CPU, replace(coloured[0].spec, **change), 2000, trained)  # type: ignore[arg-type]


def test_a_missing_or_damaged_file_is_named(trained: Path, coloured: Sets, tmp_path: Path):
    path = tmp_path / "classifier.safetensors"
    with pytest.raises(MissingFile, match=r"classifier\.safetensors is missing"):
        TrainedExtractor(CPU, coloured[0].spec, 2000, path)
    for content in (b"", b"nothing", trained.read_bytes()[:-9], WEIGHTS.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match=r"classifier\.safetensors is damaged or no classifier"):
            TrainedExtractor(CPU, coloured[0].spec, 2000, path)


def test_auto_means_the_networks_that_fit_the_data():
    assert extractor_names("auto", ImageSpec(28, 1, 10, "mnist")) == ("mnist", "inception")
    assert extractor_names("auto", ImageSpec(28, 1, 10, "fashion_mnist")) == ("classifier", "inception")
    assert extractor_names("auto", ImageSpec(64, 3, 0, "folder")) == ("inception",)
    assert extractor_names("auto", ImageSpec(64, 3, 1, "folder")) == ("inception",)
    assert extractor_names(("mnist",), ImageSpec(64, 3, 0, "folder")) == ("mnist",)


def test_the_digits_classifier_measures_no_other_data(coloured: Sets):
    with pytest.raises(DdpmError, match=r"mnist knows MNIST's ten digits, but the data set is coloured.*auto"):
        open_extractors(settings("mnist"), coloured[0], CPU, Path("absent"))


def test_two_networks_never_share_a_key(test_digits: ImageSet, tmp_path: Path):
    path = tmp_path / "classifier.safetensors"
    part = test_digits.take(np.arange(300))
    train_classifier(path, part, part, 1, CPU, torch.float32)
    networks, _ = open_extractors(settings("mnist", "classifier"), part, CPU, path)
    assert [network.frechet_key for network in networks] == ["fd_mnist", "fd_own_mnist"]


def test_few_training_images_are_measured_by_patches(coloured: Sets, trained: Path, tmp_path: Path):
    few = coloured[0].take(np.arange(200))
    evaluator = open_evaluator(settings(), few, coloured[1], 7, CPU, tmp_path, trained)
    assert evaluator.skipped["classifier"] == "200 training images are too few for 128 features"
    assert not evaluator.networks
    assert evaluator.real == (few, coloured[1])
    with pytest.raises(DdpmError, match=r"too few for 128 features.*fid\.swd to on"):
        open_evaluator(settings(swd="off"), few, coloured[1], 7, CPU, tmp_path, trained)


def test_its_table_is_that_of_mnist_and_real_images_are_near_their_floor(
    coloured: Sets, trained: Path, tmp_path: Path, configure: Callable[..., Config], rng: np.random.Generator
):
    fid = configure().fid
    evaluator = open_evaluator(fid, *coloured, 7, CPU, tmp_path, trained)
    assert evaluator.real is None
    half = coloured[0].take(np.arange(600))
    numbers, far = (
        evaluator.measure(images, labels, 5, "images").numbers
        for images, labels in (
            (half.images, GivenLabels(half.labels)),
            (rng.integers(256, size=(600, 3, 16, 16), dtype=np.uint8), GivenLabels()),
        )
    )
    for key in ("fd", "kd", "precision", "recall", "density", "coverage"):
        assert {f"{key}_coloured", f"{key}_coloured_low", f"{key}_coloured_high", f"{key}_coloured_real"} <= set(
            numbers
        )
    assert {"label_accuracy", "ambiguous_fraction", "classifier_score", "class_kl"} <= set(numbers)
    assert not [key for key in numbers if "mnist" in key or "swd" in key]
    assert numbers["fd_coloured_over_floor"] < 3
    assert far["fd_coloured_over_floor"] > 100
    assert numbers["label_accuracy"] > 0.95
    protocol = evaluator.measure(half.images, GivenLabels(), 0, "images").protocol["coloured"]
    assert protocol["test_accuracy"] == load_trained(trained, CPU)[2]["test_accuracy"]
    assert protocol["weights_sha256"] == sha256(trained)
    assert protocol["recipe"].startswith("3 epochs of 2000 images")


def test_a_small_test_set_has_no_number_that_depends_on_its_size(coloured: Sets, trained: Path, tmp_path: Path):
    few = coloured[1].take(np.arange(100))
    evaluator = open_evaluator(settings("classifier"), coloured[0], few, 7, CPU, tmp_path, trained)
    numbers = evaluator.measure(coloured[0].images[:400], GivenLabels(), 0, "images").numbers
    assert "fd_coloured_real" not in numbers
    assert {"fd_coloured", "fd_coloured_floor", "kd_coloured_real", "precision_coloured_real"} <= set(numbers)
    # Of 100 images the fraction of real ones nearby is another than of 400.
    sizes_matter = {"recall_coloured", "coverage_coloured", "class_kl", "classifier_score"}
    assert sizes_matter <= set(numbers)
    assert not {f"{key}_real" for key in (*sizes_matter, "fd_coloured_per_class")} & set(numbers)
    assert {"confident_fraction_real", "density_coloured_real"} <= set(numbers)
    as_many = evaluator.measure(coloured[0].images[:1000], GivenLabels(), 0, "images").numbers
    assert "fd_coloured_floor" in as_many
    more = evaluator.measure(coloured[0].images[:1001], GivenLabels(), 0, "images").numbers
    assert "fd_coloured" in more
    assert not {"fd_coloured_floor", "fd_coloured_over_floor"} & set(more)
    evaluator = open_evaluator(settings("classifier"), coloured[0], few.take(np.arange(7)), 7, CPU, tmp_path, trained)
    numbers = evaluator.measure(coloured[0].images[:400], GivenLabels(), 0, "images").numbers
    assert "kd_coloured" in numbers
    assert "kd_coloured_real" not in numbers


def test_the_test_images_themselves_score_as_the_real_ones_do(coloured: Sets, trained: Path, tmp_path: Path):
    evaluator = open_evaluator(settings("classifier"), *coloured, 7, CPU, tmp_path, trained)
    numbers = evaluator.measure(coloured[1].images, GivenLabels(), 0, "images").numbers
    for key in ("precision", "recall", "density", "coverage"):
        assert numbers[f"{key}_coloured"] == pytest.approx(numbers[f"{key}_coloured_real"], rel=1e-9), key
    # In another order the covariance is rounded otherwise. Of an eigenvalue near 0, as these features of few images
    # have, the root then keeps half of the digits; six are published.
    assert numbers["fd_coloured"] == pytest.approx(numbers["fd_coloured_real"], rel=1e-7)


def test_data_without_labels_is_measured_by_patches_and_pixels(coloured: Sets, tmp_path: Path):
    train_set, test_set = (replace(part, classes=0, class_names=(), labels=part.labels * 0) for part in coloured)
    evaluator = open_evaluator(settings(), train_set, test_set, 7, CPU, tmp_path, Path("absent"))
    found = evaluator.measure(test_set.images[:100], GivenLabels(), 5, "images")
    assert {"swd", "swd_16", "swd_real", "swd_floor", "swd_low", "swd_high"} <= set(found.numbers)
    assert found.numbers["reference_images"] == 2000
    assert not [key for key in found.numbers if key.startswith(("fd_", "label", "classifier"))]
    assert list(found.classes.columns) == ["label", "set", "fraction"]
    assert found.protocol["swd"]["images"] == 100
    assert found.protocol["inception"].startswith("skipped: ")
    numbers, table = evaluator.memorization(test_set.images[:50], found.features, train_set, np.ones(50))
    assert "memorized_fraction_pixel" in numbers
    assert list(table.columns) == ["image", "pixel_index", "pixel_distance"]


def test_too_few_images_are_refused_before_a_classifier_of_labelled_data_is_trained(configure: Callable[..., Config]):
    settings = configure({"fid.extractors": "auto", "fid.inception": "auto"}).fid
    labelled = set(SOURCES) - {"folder", "mnist"}
    assert len(labelled) >= 7
    for name in labelled:
        refuse_too_few(FEATURES + 1, name, settings, CPU)
        with pytest.raises(DdpmError, match="128 is too few to be measured by the 128 features of classifier"):
            refuse_too_few(FEATURES, name, settings, CPU)
    refuse_too_few(FEATURES, "folder", settings, CPU)  # which may be without labels


def test_whether_images_are_too_few_may_show_by_the_training_images(configure: Callable[..., Config], coloured: Sets):
    settings = configure({"fid.extractors": "auto", "fid.inception": "auto"}).fid
    spec, cuda = coloured[0].spec, torch.device("cuda")
    with pytest.raises(DdpmError, match="128 is too few to be measured by the 128 features of classifier"):
        refuse_too_few(FEATURES, "folder", settings, CPU, train=(spec, 2 * FEATURES + 2))
    refuse_too_few(FEATURES, "folder", settings, CPU, train=(replace(spec, classes=0, class_names=()), 1000))
    refuse_too_few(FEATURES, "folder", settings, CPU, train=(spec, 2 * FEATURES))  # none is trained
    # The shipped network needs no training images: few of them excuse nothing.
    with pytest.raises(DdpmError, match="128 is too few to be measured by the 128 features of mnist"):
        refuse_too_few(FEATURES, "mnist", settings, CPU, train=(replace(spec, name="mnist"), FEATURES))
    # Inception, under auto, only where there are training images enough for it.
    refuse_too_few(1000, "folder", settings, cuda)
    refuse_too_few(1000, "folder", settings, cuda, train=(spec, 4097))
    with pytest.raises(DdpmError, match="1000 is too few to be measured by the 2048 features of inception"):
        refuse_too_few(1000, "folder", settings, cuda, train=(spec, 4098))


def test_the_number_of_cores_decides_no_bit_of_a_classifier(coloured: Sets, tmp_path: Path):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            path = tmp_path / f"{threads}.safetensors"
            train_classifier(path, coloured[0].take(np.arange(300)), coloured[1], 2, CPU, torch.float32)
            found.append(path.read_bytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_a_classifier_of_another_recipe_is_not_taken_for_the_wanted_one(coloured: Sets, tmp_path: Path):
    train, test = (part.take(np.arange(100)) for part in coloured)
    train_classifier(path := tmp_path / "classifier.safetensors", train, test, 1, CPU, torch.float32)
    assert trained_on(path, train, 1, torch.float32)
    assert not trained_on(path, train, 3, torch.float32)
    assert not trained_on(path, train, 1, torch.bfloat16)
    assert not trained_on(path, test, 1, torch.float32)
    renamed = replace(train, class_names=("other", *train.class_names[1:]))
    assert not trained_on(path, renamed, 1, torch.float32)
