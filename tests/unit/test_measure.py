import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ddpm.commands.evaluate import number_table
from ddpm.data.image_set import ImageSet, ImageSpec
from ddpm.data.load import GivenLabels, read_labels
from ddpm.evaluation import frechet, neighbours
from ddpm.evaluation import reference as reference_module
from ddpm.evaluation.evaluator import Evaluator
from ddpm.evaluation.features import Features
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.evaluation.frechet import fit_gaussian, frechet_distance
from ddpm.evaluation.measure import (
    RealImages,
    alike,
    mean_interval,
    measure_classes,
    measure_features,
    over_replicates,
    refuse_constant,
)
from ddpm.evaluation.neighbours import nearest
from ddpm.evaluation.reference import Reference, pixels, reference_of
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile
from ddpm.utils.runtime import Runtime
from ddpm.utils.seeds import numpy_generator

TRAIN, TEST, REST = slice(0, 6000), slice(6000, 8000), slice(8000, 10_000)
Numbers = dict[str, float]


@pytest.fixture(scope="module")
def reference(by_classifier: Features, test_digits: ImageSet) -> Reference:
    """6,000 of the test digits as the training set, 2,000 as the test set; the last 2,000 are left to be measured."""
    assert by_classifier.probabilities is not None
    train, test = ((by_classifier.values[part], test_digits.labels[part]) for part in (TRAIN, TEST))
    return reference_of("test", train, test, by_classifier.probabilities[TEST], 3407)


def measured(
    by: Features, reference: Reference, chosen: object, labels: np.ndarray | None = None, *, alone: bool = False
) -> Numbers:
    """All numbers of some of the test digits."""
    assert by.probabilities is not None
    stream = partial(numpy_generator, 1)
    features, probabilities = by.values[chosen], by.probabilities[chosen]
    beside = RealImages.for_images(len(features), reference, "mnist", stream)
    # Their classes only: nobody dealt them their labels, so that everything else takes them as independent.
    numbers = measure_features("mnist", "fd_mnist", features, beside, 20, stream, alone, GivenLabels())
    given = GivenLabels(labels)
    classes, _ = measure_classes("fd_mnist", features, probabilities, given, reference, 20, stream, alone)
    return numbers | classes


def test_real_images_score_what_real_images_score(by_classifier: Features, reference: Reference, test_digits: ImageSet):
    numbers = measured(by_classifier, reference, REST, test_digits.labels[REST])
    intervals = [key.removesuffix("_low") for key in numbers if key.endswith("_low")]
    assert len(intervals) == 10
    for key in intervals:
        assert numbers[f"{key}_low"] <= numbers[key] <= numbers[f"{key}_high"], key
    for key in ("precision_mnist", "recall_mnist", "coverage_mnist", "label_accuracy", "confident_fraction"):
        assert numbers[key] == pytest.approx(numbers[f"{key}_real"], abs=0.05), key
    assert numbers["fd_mnist_over_floor"] == numbers["fd_mnist"] / numbers["fd_mnist_floor"]


def test_nothing_is_so_many_times_a_floor_of_0(
    by_classifier: Features, reference: Reference, test_digits: ImageSet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Reference, "frechet_floor", lambda *_: 0.0)
    found = measured(by_classifier, reference, REST, test_digits.labels[REST])
    assert found["fd_mnist_floor"] == 0
    assert "fd_mnist_over_floor" not in found


def test_numbers_alone_are_those_beside_what_real_digits_score(
    by_classifier: Features, reference: Reference, test_digits: ImageSet
):
    together, alone = (
        measured(by_classifier, reference, REST, test_digits.labels[REST], alone=alone) for alone in (False, True)
    )
    intervals = ("_low", "_high")
    assert {key: value for key, value in alone.items() if not key.endswith(intervals)}.items() <= together.items()
    assert {key for key in together if f"{key}_real" in together} <= set(alone)
    assert not [key for key in alone if key.endswith(("_real", "_floor"))]


@pytest.mark.parametrize(("costly", "most"), [(True, 55), (False, 2300)])
def test_of_many_features_few_eigenvalue_problems_are_solved(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, costly: bool, most: int
):
    """Those of the real images and of three sets at the defaults. 2048 features take half a second for each."""
    monkeypatch.setattr(frechet, "_MANY_DIMENSIONS", 4 if costly else 8)
    monkeypatch.setattr(reference_module, "_KEPT_NUMBERS", 500 * 8)  # of so many features not all are kept either
    solved: list[int] = []
    for name in ("eigh", "eigvalsh"):
        solve = getattr(np.linalg, name)
        monkeypatch.setattr(np.linalg, name, lambda matrix, solve=solve: solved.append(len(matrix)) or solve(matrix))
    train, test, *sets = (rng.normal(size=(count, 8)).astype(np.float32) for count in (1000, 200, 200, 200, 200))
    labels = (np.zeros(len(part), np.int64) for part in (train, test))
    known = reference_of("x", *zip((train, test), labels, strict=True), None, 7)
    stream = partial(numpy_generator, 7)
    beside = RealImages.for_images(200, known, "x", stream)
    numbers = measure_features("x", "fd_x", sets[0], beside, 200, stream, False, GivenLabels())
    others = [measure_features("x", "fd_x", part, beside, 0, stream, True, GivenLabels()) for part in sets[1:]]
    assert max(solved) == 8
    assert 0.9 * most < len(solved) <= most
    assert numbers["fd_x_low"] < numbers["fd_x"] < numbers["fd_x_high"]
    assert abs(numbers["fd_x_infinity"]) < numbers["fd_x"]
    assert numbers["fd_x_infinity_low"] < numbers["fd_x_infinity"] < numbers["fd_x_infinity_high"]
    assert ("fd_x_infinity" in others[0]) == (not costly)


def test_the_interval_of_a_distance_does_not_go_below_zero_but_that_of_fd_infinity_may(rng: np.random.Generator):
    train = rng.normal(size=(1000, 8)).astype(np.float32)
    known = reference_of("x", (train, np.zeros(1000, np.int64)), (train, np.zeros(1000, np.int64)), None, 7)
    stream = partial(numpy_generator, 7)
    beside = RealImages.for_images(1000, known, "x", stream)
    numbers = measure_features("x", "fd_x", train, beside, 20, stream, False, GivenLabels())
    assert numbers["fd_x_low"] == 0 < numbers["fd_x_high"]
    assert numbers["fd_x_infinity_low"] < 0


def test_few_images_have_no_infinity_and_no_distance_per_class(by_classifier: Features, reference: Reference):
    numbers = measured(by_classifier, reference, slice(8000, 8200))
    assert not {"fd_mnist_infinity", "fd_mnist_per_class", "label_accuracy"} & set(numbers)
    assert numbers["fd_mnist"] > 0
    assert numbers["kd_mnist_low"] < numbers["kd_mnist"] < numbers["kd_mnist_high"]


def test_a_missing_digit_shows(by_classifier: Features, reference: Reference, test_digits: ImageSet):
    chosen = np.flatnonzero((test_digits.labels != 4) & (np.arange(10_000) >= 6000))[:2000]
    with_all, without = (measured(by_classifier, reference, part) for part in (REST, chosen))
    assert without["fd_mnist"] > 3 * with_all["fd_mnist"]
    assert without["min_class_fraction"] < 0.01


def test_the_distance_is_the_one_of_the_gaussians(by_classifier: Features, reference: Reference):
    expected = frechet_distance(fit_gaussian(reference.train), fit_gaussian(by_classifier.values[REST]))
    assert measured(by_classifier, reference, REST)["fd_mnist"] == pytest.approx(expected, rel=1e-9)


def test_labels_that_are_given_make_parts_resamples_and_floor_as_even(
    by_classifier: Features, reference: Reference, test_digits: ImageSet
):
    # 2,000 of 4,000 further digits, each class as often as among the training digits: dealt, not drawn.
    others, wanted = np.arange(6000, 10_000), np.bincount(reference.train_labels) / 3
    of_class = [others[test_digits.labels[6000:] == label][: round(wanted[label])] for label in range(10)]
    chosen = np.concatenate(of_class)
    known = test_digits.labels[chosen]
    stream, features = partial(numpy_generator, 1), by_classifier.values[chosen]
    beside = RealImages.for_images(len(chosen), reference, "mnist", stream)
    blind, dealt, as_clusters = (
        measure_features("mnist", "fd_mnist", features, beside, 100, stream, False, given)
        for given in (GivenLabels(), GivenLabels(known), GivenLabels(clusters=known))
    )
    width = [numbers["fd_mnist_high"] - numbers["fd_mnist_low"] for numbers in (blind, dealt, as_clusters)]
    assert width[1] == width[2] < 0.9 * width[0]
    assert dealt["fd_mnist_floor"] < 0.9 * blind["fd_mnist_floor"]
    assert as_clusters["fd_mnist_floor"] == pytest.approx(dealt["fd_mnist_floor"], rel=0.05)
    assert dealt["fd_mnist_infinity"] == as_clusters["fd_mnist_infinity"] > blind["fd_mnist_infinity"]
    same = ("fd_mnist", "recall_mnist_low", "precision_mnist", "kd_mnist_low", "fd_mnist_infinity_real")
    assert [blind[key] for key in same] == [dealt[key] for key in same]


def test_a_few_copies_among_fresh_digits_are_counted(
    by_classifier: Features, reference: Reference, test_digits: ImageSet
):
    mixed = np.r_[np.arange(100), np.arange(8000, 9900)]
    train = test_digits.take(np.arange(6000))
    held_out = nearest(pixels(test_digits.images[TEST]), pixels(train.images))[1]
    evaluator = Evaluator([(MnistExtractor(torch.device("cpu")), reference)], {}, 3407)
    features = {"mnist": by_classifier.values[mixed]}
    numbers, table = evaluator.memorization(test_digits.images[mixed], features, train, held_out)
    assert numbers["memorized_fraction_pixel"] == pytest.approx(0.05 + 0.01, abs=0.01)
    assert numbers["memorized_fraction_feature"] == pytest.approx(0.05 + 0.01, abs=0.01)
    assert table["pixel_index"][:100].tolist() == list(range(100))
    columns = ["image", "pixel_index", "pixel_distance", "feature_index", "feature_distance"]
    assert list(table.columns) == columns
    assert table.iloc[3].tolist() == [4, 3, 0.0, 3, 0.0]


def test_what_sets_of_as_many_images_are_compared_with_is_found_once(
    reference: Reference, test_digits: ImageSet, monkeypatch: pytest.MonkeyPatch
):
    evaluator = Evaluator([(MnistExtractor(torch.device("cpu")), reference)], {}, 1)
    found, radii = [], neighbours._radii
    monkeypatch.setattr(neighbours, "_radii", lambda *given: found.append(given[-1]) or radii(*given))
    images, unknown = test_digits.images[8000:8300], GivenLabels()
    first, *others = [evaluator.measure(images[:200], unknown, 0, "x", alone=True) for _ in range(3)]
    assert sorted(found) == [*["radii, mnist, generated"] * 3, "radii, mnist, training images"]
    assert all(other.numbers == first.numbers for other in others)
    assert evaluator.measure(images, unknown, 0, "x", alone=True).numbers != first.numbers
    assert found.count("radii, mnist, training images") == 2


def test_without_the_features_of_all_training_images_pixels_are_left(rng: np.random.Generator, reference: Reference):
    sample = replace(reference, count=60_000)
    images = rng.integers(256, size=(40, 1, 28, 28), dtype=np.uint8)
    train = ImageSet(images, np.zeros(40, np.int64), np.arange(40), 1)
    evaluator = Evaluator([(MnistExtractor(torch.device("cpu")), sample)], {}, 1)
    numbers, table = evaluator.memorization(images, {}, train, np.ones(10))
    assert list(table.columns) == ["image", "pixel_index", "pixel_distance"]
    assert numbers["memorized_fraction_pixel"] == 1


def test_blank_images_are_named_and_refused_where_there_are_no_others(
    test_digits: ImageSet, capsys: pytest.CaptureFixture[str]
):
    images = test_digits.images[:50].copy()
    refuse_constant(images, str)
    assert not capsys.readouterr().out
    images[[3, 17, 20, 41]] = np.array([0, 0, 9, 255], np.uint8)[:, None, None, None]
    refuse_constant(images, str)
    assert capsys.readouterr().out.startswith("4 of 50 images are blank (3, 17, 20, …): ")
    with pytest.raises(DdpmError, match="all 4 images are blank: "):
        refuse_constant(images[[3, 17, 20, 41]], str)


def test_the_interval_of_a_mean_is_the_normal_ones_for_many(rng: np.random.Generator):
    values = rng.normal(size=2000)
    low, high = mean_interval(values, 1000, rng)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 2000**0.5, rel=0.1)


def test_images_are_compared_by_pixels_at_the_size_and_in_the_channels_of_the_data_set(test_digits: ImageSet):
    images = test_digits.images[:5]
    assert alike(images.repeat(3, 1), ImageSpec(28, 1, 10)).shape == (5, 1, 28, 28)
    assert np.array_equal(alike(images.repeat(3, 1), ImageSpec(28, 1, 10)), images)
    assert alike(images, ImageSpec(16, 3, 0)).shape == (5, 3, 16, 16)


def test_the_table_has_a_row_a_number():
    numbers = {"fd": 1.23456, "fd_low": 1.0, "fd_high": 1.5, "fd_real": 0.4, "fd_floor": 0.2, "kd": 0.5}
    head, first, second, third = number_table(numbers | {"images": 10_000}).splitlines()
    assert head.split() == ["value", "low", "high", "real", "floor"]
    assert first.split() == ["fd", "1.23456", "1", "1.5", "0.4", "0.2"]
    assert second.split() == ["kd", "0.5"]
    assert third.split() == ["images", "10000"]


def test_replicates_give_mean_and_deviation_of_what_all_of_them_have():
    found = over_replicates({"fd": 1.0, "kd": 5.0}, [{"fd": 2.0, "kd": 5.0, "more": 1.0}, {"fd": 6.0}])
    assert found == {"fd_replicates_mean": 3.0, "fd_replicates_std": pytest.approx(7**0.5)}
    assert over_replicates({"fd": 1.0}, []) == {}
    assert set(over_replicates({"fd": 1.0, "images": 8}, [{"fd": 2.0, "images": 8}])) == {
        "fd_replicates_mean",
        "fd_replicates_std",
    }


@pytest.mark.parametrize(
    ("content", "columns", "protocol"),
    [
        ("image,label\n1,7\n2,0\n", ([7, 0], None), "class"),
        ("image,label,cluster\n1,7,30\n2,0,4\n", ([7, 0], [30, 4]), "class and cluster"),
        ("image,cluster\n1,30\n2,4\n", (None, [30, 4]), "cluster"),
        ("image,label\n", (None, None), "none"),
    ],
)
def test_labels_are_read_as_they_were_written(tmp_path: Path, content: str, columns: tuple[object, ...], protocol: str):
    path = tmp_path / "labels.csv"
    path.write_text(content)
    labels = read_labels(path, 2)
    found = labels.classes, labels.clusters
    assert tuple(None if column is None else column.tolist() for column in found) == columns
    assert str(labels) == protocol
    assert str(read_labels(path, 2, ["00001.png", "00002.png"])) == protocol


@pytest.mark.parametrize(
    ("content", "files"),
    [
        ("file,label\n2.png,2\n10.png,10\n1.png,1\n", ["1.png", "10.png", "2.png"]),
        ("file,label\nsome/2.png,2\nsome/10.png,10\nsome/1.png,1\n", ["1.png", "10.png", "2.png"]),
        ("image,label\n1,1\n2,2\n10,10\n", ["1.png", "10.png", "2.png"]),
        ("image,label\n0010,10\n0001,1\n0002,2\n", ["1.png", "10.png", "2.png"]),
        ("label\n1\n10\n2\n", ["1.png", "10.png", "2.png"]),
        ("image,label\n2,10\n3,2\n1,1\n", []),
        ("image,label\n1,10\n2,2\n0,1\n", []),
        ("file,label\n 2.png,2\n10.png ,10\n1.png,1\n", ["1.png", "10.png", "2.png"]),
        ("file,image,label\nfirst,1,1\nsecond,2,2\nthird,10,10\n", ["1.png", "10.png", "2.png"]),
        ("file,image,label\n1.png,2,1\n2.png,10,2\n10.png,1,10\n", ["1.png", "10.png", "2.png"]),
    ],
)
def test_a_row_of_labels_is_of_the_image_that_it_names(tmp_path: Path, content: str, files: list[str]):
    (path := tmp_path / "labels.csv").write_text(content)
    labels = read_labels(path, 3, files).classes
    assert labels is not None
    assert labels.tolist() == [1, 10, 2]


@pytest.mark.parametrize(
    ("content", "files"),
    [
        ("file,label\n1.png,1\n3.png,3\n", ["1.png", "2.png"]),
        ("file,label\n1.png,1\n1.png,3\n", ["1.png", "2.png"]),
        ("image,label\n1,1\n1,3\n", []),
        ("image,label\n1,1\n3,3\n", []),
        ("image,label\nx,1\ny,3\n", []),
        ("file,label\n,1\nNA,3\n", ["1.png", "2.png"]),
        ("file,image,label\nx,1,1\ny,3,3\n", ["1.png", "2.png"]),
    ],
)
def test_labels_of_other_images_are_refused(tmp_path: Path, content: str, files: list[str]):
    (path := tmp_path / "labels.csv").write_text(content)
    with pytest.raises(DamagedFile, match="does not name each of the 2 images once"):
        read_labels(path, 2, files)


@pytest.mark.parametrize(
    "content", ["", "image,label\n1,7\n", "image,label\n1,7\n2,x\n", "image\n1\n2\n", "cluster\n1\nx\n"]
)
def test_a_damaged_table_of_labels_is_named(tmp_path: Path, content: str):
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(DamagedFile, match=r"labels\.csv"):
        read_labels(path, 2)
    path.unlink()
    with pytest.raises(MissingFile, match=r"labels\.csv is missing"):
        read_labels(path, 2)


ELSEWHERE = """
import sys
from functools import partial
from pathlib import Path
import numpy as np
from ddpm.data.load import GivenLabels
from ddpm.evaluation.measure import RealImages, measure_features
from ddpm.evaluation.reference import reference_of
from ddpm.utils.files import significant, write_json
from ddpm.utils.seeds import numpy_generator
rng = np.random.default_rng(5)
mixing = rng.normal(size=(64, 64))
train, test, generated = (np.maximum(0, rng.normal(s, 1, (n, 64)) @ mixing).astype(np.float32)
                          for s, n in ((0, 6000), (0, 1000), (0.1, 1000)))
known = reference_of("x", (train, np.zeros(6000, int)), (test, np.zeros(1000, int)), None, 7)
stream = partial(numpy_generator, 7)
beside = RealImages.for_images(1000, known, "x", stream)
numbers = measure_features("x", "fd_x", generated, beside, 10, stream, False, GivenLabels())
write_json(Path(sys.argv[1]), significant(numbers))
"""


def test_another_machine_writes_the_same_numbers(root: Path, tmp_path: Path):
    """Other kernels of the linear algebra and another number of threads: other last bits, the same file."""
    written = []
    for name, variables in (
        ("here", {"OMP_NUM_THREADS": "1"}),
        ("there", {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Nehalem"}),
    ):
        environment = os.environ | {"MKL_CBWR": "COMPATIBLE" if name == "there" else "AVX2"} | variables
        subprocess.run([sys.executable, "-c", ELSEWHERE, tmp_path / name], cwd=root, env=environment, check=True)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_the_table_of_classes_is_written_with_six_digits(by_classifier: Features, reference: Reference):
    assert by_classifier.probabilities is not None
    stream = partial(numpy_generator, 1)
    parts = (by_classifier.values[REST], by_classifier.probabilities[REST])
    _, table = measure_classes("fd_mnist", *parts, GivenLabels(), reference, 0, stream, False)
    assert isinstance(table, pd.DataFrame)
    assert len(table) == 20
    assert table.groupby("set")["fraction"].sum().tolist() == pytest.approx([1, 1])


def test_the_protocol_names_a_device_that_is_no_cpu(cpu: Runtime, monkeypatch: pytest.MonkeyPatch):
    def protocol(**given: torch.device) -> dict[str, object]:
        images = np.zeros((3, 1, 28, 28), np.uint8)
        return Evaluator([], {}, 1, **given).measure(images, GivenLabels(), 0, "some").protocol

    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: 91200)
    cpu.set_up()
    assert "device" not in protocol()
    assert protocol(device=torch.device("mps"))["device"] == "mps"
    assert protocol(device=torch.device("cuda"))["device"] == "NVIDIA H100, cuDNN 91200, TF32 off"
    torch.set_float32_matmul_precision("high")
    assert str(protocol(device=torch.device("cuda"))["device"]).endswith("TF32 on")
    cpu.set_up()


def test_one_image_alone_is_refused_in_words(by_classifier: Features, reference: Reference):
    with pytest.raises(DdpmError, match="holds 1 images, too few for 128 features"):
        measured(by_classifier, reference, slice(8000, 8001))


@pytest.mark.parametrize(
    ("text", "found"),
    [("label,comment\n3,0,\n7,0,\n", [3, 7]), ("label\n1\n2\n", [1, 2]), ("label\ntrue\nfalse\n", None)],
    ids=["comma at the end", "plain", "truth values"],
)
def test_a_table_of_labels_is_read_by_its_columns(tmp_path: Path, text: str, found: list[int] | None):
    (path := tmp_path / "labels.csv").write_text(text)
    if found is None:
        with pytest.raises(DamagedFile, match="no whole numbers in a column"):
            read_labels(path, 2)
    else:
        labels = read_labels(path, 2).classes
        assert labels is not None
        assert labels.tolist() == found
