import numpy as np
import pytest
import torch
from prdc import compute_prdc
from scipy.stats import mannwhitneyu
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from ddpm.evaluation import neighbours
from ddpm.evaluation.neighbours import Points, manifold, memorized_fraction, nearest, nearest_auc


@pytest.fixture(params=[0.0, 0.4])
def sets(rng: np.random.Generator, request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(700, 6)), rng.normal(request.param, 0.8, size=(700, 6))


def test_precision_and_recall_are_those_of_torch_fidelity(sets: tuple[np.ndarray, np.ndarray]):
    real, generated = sets
    found = manifold(Points(real), Points(generated))
    # Its first set is the generated one, its second the real one.
    theirs = prc_features_to_metric(torch.from_numpy(generated), torch.from_numpy(real), verbose=False)
    assert found["precision"].mean() == pytest.approx(theirs["precision"], rel=1e-6)
    assert found["recall"].mean() == pytest.approx(theirs["recall"], rel=1e-6)


def test_density_and_coverage_are_those_of_prdc(sets: tuple[np.ndarray, np.ndarray]):
    real, generated = sets
    found = manifold(Points(real), Points(generated))
    theirs = compute_prdc(real, generated, nearest_k=5)
    assert found["density"].mean() == pytest.approx(theirs["density"], rel=1e-9)
    assert found["coverage"].mean() == pytest.approx(theirs["coverage"], rel=1e-9)
    theirs = compute_prdc(real, generated, nearest_k=3)
    assert found["precision"].mean() == pytest.approx(theirs["precision"], rel=1e-9)
    assert found["recall"].mean() == pytest.approx(theirs["recall"], rel=1e-9)


def test_strips_change_nothing(sets: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    whole = manifold(*map(Points, sets))
    index, distance = nearest(*sets, "test")
    monkeypatch.setattr(neighbours, "_STRIP", 33)
    parts = manifold(*map(Points, sets))
    for name in ("precision", "recall", "density", "coverage"):
        assert np.array_equal(whole[name], parts[name]), name
    assert np.array_equal(nearest(*sets, "test")[0], index)
    assert np.array_equal(nearest(*sets, "test")[1], distance)


def test_of_many_images_a_strip_is_no_larger_than_memory_allows(
    sets: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    sizes, distances = [], torch.cdist

    def watched(rows: Tensor, columns: Tensor, **options: str) -> Tensor:
        sizes.append(len(rows) * len(columns))
        return distances(rows, columns, **options)

    whole = manifold(*map(Points, sets))
    monkeypatch.setattr(torch, "cdist", watched)
    monkeypatch.setattr(neighbours, "_NUMBERS", 700 * 20)
    parts = manifold(*map(Points, sets))
    assert max(sizes) == 700 * 20
    for name in ("precision", "recall", "density", "coverage"):
        assert np.array_equal(whole[name], parts[name]), name


def test_the_nearest_is_the_nearest(sets: tuple[np.ndarray, np.ndarray]):
    queries, points = sets
    every = np.linalg.norm(queries[:, None] - points[None], axis=2)
    index, distance = nearest(queries, points, "test")
    assert np.array_equal(index, every.argmin(1))
    np.testing.assert_allclose(distance, every.min(1), rtol=1e-12)
    index, distance = nearest(points, points, "test")
    assert np.array_equal(index, np.arange(len(points)))
    assert (distance == 0).all()


def test_the_nearest_is_found_among_more_points_than_fit_into_memory(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    images, others = (rng.integers(256, size=(count, 3, 4, 4), dtype=np.uint8) for count in (700, 1300))
    others[1200] = others[5]  # of equal ones the first
    images[3] = others[5]
    parts = []

    def convert(part: np.ndarray) -> np.ndarray:
        parts.append(len(part))
        return part.reshape(len(part), -1) / np.float32(255)

    whole = nearest(convert(images), convert(others))
    monkeypatch.setattr(neighbours, "_NUMBERS", 48 * 400)
    parts.clear()
    index, distance = nearest(images, others, "test", convert)
    assert max(parts) <= 500
    assert index[3] == 5
    assert np.array_equal(index, whole[0])
    np.testing.assert_allclose(distance, whole[1], rtol=1e-12)


def test_a_collapsed_set_is_precise_and_covers_nothing(rng: np.random.Generator):
    real = rng.normal(size=(500, 4))
    found = manifold(Points(real), Points(np.repeat(real[:1], 500, 0)))
    assert found["precision"].mean() == 1
    assert found["recall"].mean() < 0.01
    assert found["coverage"].mean() < 0.05


def test_nearest_auc_is_the_statistic_of_mann_and_whitney(rng: np.random.Generator):
    a, b = rng.integers(20, size=300).astype(float), rng.integers(5, 25, size=200).astype(float)
    expected = 1 - mannwhitneyu(a, b).statistic / (300 * 200)
    assert nearest_auc(a, b) == pytest.approx(expected, rel=1e-12)
    assert nearest_auc(b, b) == 0.5
    assert nearest_auc(np.zeros(3), b) == 1


def test_memorized_fraction_counts_what_is_closer_than_a_hundredth_of_the_held_out(rng: np.random.Generator):
    held_out = rng.normal(10, 1, size=5000)
    assert memorized_fraction(rng.normal(10, 1, size=5000), held_out) == pytest.approx(0.01, abs=0.005)
    assert memorized_fraction(np.r_[np.zeros(50), np.full(50, 10.0)], held_out) == 0.5


@pytest.mark.parametrize("held_out", [99, 150, 400])
def test_without_memorization_a_hundredth_counts_whatever_the_number_of_held_out_images(
    held_out: int, rng: np.random.Generator
):
    found = [memorized_fraction(rng.uniform(size=4000), rng.uniform(size=held_out)) for _ in range(4000)]
    error = np.std(found) / len(found) ** 0.5
    assert np.mean(found) == pytest.approx(0.01, abs=4 * error)
    assert error < 0.0003
