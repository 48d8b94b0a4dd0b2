import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel
from torch_fidelity.metric_kid import mmd2

from ddpm.evaluation import kernel
from ddpm.evaluation.kernel import SUBSETS, kernel_distances, kernel_interval, subset_size


def test_a_distance_is_the_one_of_torch_fidelity(rng: np.random.Generator):
    x, y = rng.normal(size=(200, 16)).astype(np.float32), rng.normal(0.3, 1.2, size=(200, 16)).astype(np.float32)
    same, expected = np.random.default_rng(1), []
    for _ in range(SUBSETS):
        a, b = (part[same.permutation(200)[:50]].astype(np.float64) for part in (x, y))
        expected.append(mmd2(*(polynomial_kernel(*pair) for pair in ((a, a), (a, b), (b, b)))))
    np.testing.assert_allclose(kernel_distances(x, y, np.random.default_rng(1)), expected, rtol=1e-9)


def test_it_is_unbiased(rng: np.random.Generator):
    x, y = rng.normal(size=(2, 3000, 8))
    found = kernel_distances(x, y, rng)
    assert found.min() < 0 < found.max()
    assert abs(found.mean()) < 0.02
    assert kernel_distances(x, y + 0.5, rng).min() > 0.1


@pytest.mark.parametrize("count", [40, 1000, 1100, 10_000])
def test_subsets_are_clearly_smaller_than_the_set(count: int):
    assert 2 <= subset_size(count, 60_000) <= count / 4
    assert subset_size(60_000, count) == subset_size(count, 60_000)


def true_distance(shift: float, d: int = 2) -> float:
    """Squared maximum mean discrepancy of N(a, I) from N(0, I), a = (shift, …), from the moments of x·y."""

    def expected(a: np.ndarray, b: np.ndarray) -> float:
        ab, aa, bb = a @ b, a @ a, b @ b
        second = d + aa + bb + ab**2
        third = ab**3 + 3 * ab * bb + 3 * ab * (aa + d + 2)
        return float(1 + 3 * ab / d + 3 * second / d**2 + third / d**3)

    a, b = np.full(d, shift), np.zeros(d)
    return expected(a, a) + expected(b, b) - 2 * expected(a, b)


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("count", [60, 220])
def test_the_interval_covers_the_true_distance(monkeypatch: pytest.MonkeyPatch, count: int, shift: float):
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 50)
    rng = np.random.default_rng(3)
    found = []
    for _ in range(200):
        distances = kernel_distances(rng.normal(shift, 1, (count, 2)), rng.normal(0, 1, (count, 2)), rng)
        found.append((distances.mean(), *kernel_interval(distances, count, count)))
    means, lows, highs = np.array(found).T
    truth = true_distance(shift)
    assert means.mean() == pytest.approx(truth, abs=4 * means.std() / 200**0.5)
    assert ((lows <= truth) & (truth <= highs)).mean() >= 0.9
    # Nor needlessly wide: a difference can be seen.
    assert (highs - lows).mean() < 2.5 * 2 * 1.96 * means.std()
