import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel
from torch_fidelity.metric_kid import mmd2

from ddpm.evaluation import kernel
from ddpm.evaluation.kernel import kernel_distances, kernel_interval


def test_a_distance_is_the_one_of_torch_fidelity(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "SUBSETS", 3)
    x, y = rng.normal(size=(200, 16)).astype(np.float32), rng.normal(0.3, 1.2, size=(200, 16)).astype(np.float32)
    # Subsets of all images: only their order is random, and does not matter.
    kernels = [polynomial_kernel(a.astype(np.float64), b.astype(np.float64)) for a, b in ((x, x), (x, y), (y, y))]
    expected = mmd2(*kernels)
    np.testing.assert_allclose(kernel_distances(x, y, 1, "test"), expected, rtol=1e-9)


def test_it_is_unbiased_and_follows_from_the_seed(rng: np.random.Generator):
    x, y = rng.normal(size=(2, 3000, 8))
    found = kernel_distances(x, y, 1, "test")
    assert np.array_equal(found, kernel_distances(x, y, 1, "test"))
    assert not np.array_equal(found, kernel_distances(x, y, 2, "test"))
    assert found.min() < 0 < found.max()
    assert abs(found.mean()) < 0.02
    assert kernel_distances(x, y + 0.5, 1, "test").min() > 0.1


def test_the_interval_is_as_wide_as_fresh_samples_scatter(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 100)
    real = rng.normal(size=(1000, 4))
    fresh = [kernel_distances(rng.normal(0.5, 1, (1000, 4)), real, i, "test") for i in range(30)]
    widths = [high - low for low, high in (kernel_interval(each, 1000) for each in fresh)]
    assert 0.6 < np.mean(widths) / (2 * 1.96 * np.std([each.mean() for each in fresh])) < 2.0
