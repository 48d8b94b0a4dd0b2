import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.training.validation import BUCKETS, FixedGrid


@pytest.fixture
def images() -> Tensor:
    # Every image has a value of its own, to tell which were chosen.
    return torch.arange(100, dtype=torch.uint8)[:, None, None, None].expand(100, 2, 4, 4).contiguous()


def test_the_grid_is_the_same_whenever_and_wherever_it_is_made(images: Tensor):
    first = FixedGrid(images, None, 1000, 30, 3407)
    torch.manual_seed(99)
    torch.randn(1000)
    second = FixedGrid(images, None, 1000, 30, 3407)
    for name in ("images", "t", "eps"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_making_a_grid_takes_nothing_from_other_streams(images: Tensor):
    torch.manual_seed(5)
    expected = torch.randn(4)
    torch.manual_seed(5)
    FixedGrid(images, None, 1000, 30, 3407)
    assert torch.equal(torch.randn(4), expected)


def test_another_seed_is_another_grid(images: Tensor):
    first, second = (FixedGrid(images, None, 1000, 30, seed) for seed in (1, 2))
    assert not torch.equal(first.images, second.images)
    assert not torch.equal(first.eps, second.eps)


def test_images_are_chosen_once_each_and_times_cover_the_process_evenly(images: Tensor):
    grid = FixedGrid(images, None, 1000, 40, 3407)
    assert len(grid.images[:, 0, 0, 0].unique()) == 40
    assert grid.t.tolist() == [25 * i for i in range(40)]
    assert grid.eps.shape == (40, 2, 4, 4)


def test_of_fewer_images_all_are_taken(images: Tensor):
    everything, more = (FixedGrid(images, None, 1000, count, 3407) for count in (100, 2000))
    assert len(more.t) == 100
    for part in ("images", "t", "eps"):
        assert torch.equal(getattr(more, part), getattr(everything, part))


@pytest.mark.parametrize("size", [1, 7, 30, 64])
def test_batches_have_one_size_and_the_last_wraps_round(images: Tensor, size: int):
    grid = FixedGrid(images, images[:, 0, 0, 0].long(), 1000, 30, 3407)
    batches = grid.batches(size)
    assert len(batches) == -(-30 // size)
    for batch in batches:
        assert [0 if part is None else len(part) for part in batch] == [size] * 4
    wrapped = np.arange(len(batches) * size) % 30
    for parts, whole in zip(
        zip(*batches, strict=True), (grid.images, grid.t, grid.eps, grid.images[:, 0, 0, 0]), strict=True
    ):
        assert torch.equal(torch.cat(parts), whole[wrapped])


def test_averages_over_the_grid_and_its_quarters_agree_with_numpy(images: Tensor, rng: np.random.Generator):
    grid = FixedGrid(images, None, 10, 37, 3407)
    errors = rng.exponential(size=50).astype(np.float32)
    weights = rng.uniform(0.1, 2.0, size=10)
    found = grid.summarize(torch.from_numpy(errors), torch.from_numpy(weights))
    kept = errors[:37].astype(np.float64)
    assert found["val_mse"] == pytest.approx(kept.mean(), rel=1e-12)
    assert found["val_loss"] == pytest.approx((kept * weights[np.arange(37) * 10 // 37]).mean(), rel=1e-12)
    quarters = np.arange(37) * 10 // 37 * 4 // 10
    for i in range(BUCKETS):
        assert found[f"val_mse_t{i + 1}of4"] == pytest.approx(kept[quarters == i].mean(), rel=1e-12)
    assert len(found) == 6


def test_quarters_without_a_time_are_left_out(images: Tensor):
    grid = FixedGrid(images, None, 2, 10, 3407)
    found = grid.summarize(torch.ones(10), torch.full((2,), 0.5))
    assert found == {"val_loss": 0.5, "val_mse": 1.0, "val_mse_t1of4": 1.0, "val_mse_t3of4": 1.0}
