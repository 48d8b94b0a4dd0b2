from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage

from ddpm.data.image_set import ImageSet
from ddpm.evaluation import measure, patches
from ddpm.evaluation.measure import measure_patches
from ddpm.evaluation.patches import (
    DIRECTIONS,
    PATCH,
    PATCHES,
    compare_patches,
    descriptors,
    influences,
    laplacian_pyramid,
    level_sizes,
    random_directions,
    sliced_wasserstein,
)
from ddpm.utils.seeds import numpy_generator

STREAM = partial(numpy_generator, 7)


def pictures(count: int, seed: int, size: int = 32, channels: int = 3) -> np.ndarray:
    """Smooth random fields, brighter towards the bottom: uint8 [count, channels, size, size]."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(count, channels, size, size)), (0, 0, 2, 2)) * 300
    shades = rng.normal(0, 12, (count, 1, 1, 1)) + np.linspace(-20, 20, size)[:, None]
    return (120 + fields + shades).clip(0, 255).astype(np.uint8)


def plain_pyramid(image: np.ndarray, levels: int) -> list[np.ndarray]:
    """One image [h, w] by the filters of the paper, in float64, as its code has them."""
    row = np.array([1, 4, 6, 4, 1]) / 16
    binomial = np.outer(row, row)
    found = [image.astype(np.float64)]
    for _ in range(levels - 1):
        found.append(ndimage.convolve(found[-1], binomial, mode="mirror")[::2, ::2])
        spread = np.zeros_like(found[-2])
        spread[::2, ::2] = found[-1]
        found[-2] -= ndimage.convolve(spread, 4 * binomial, mode="mirror")
    return found


def plain_distance(a: np.ndarray, b: np.ndarray, level: int, levels: int, seed: int) -> float:
    """The sliced distance of one level from the paper's description, patch by patch and direction by direction."""
    rng = np.random.default_rng(seed)
    sides = []
    for images in (a, b):
        found = []
        for image in images:
            planes = np.stack([plain_pyramid(plane, levels)[level] for plane in image])
            for _ in range(PATCHES):
                top, left = rng.integers(planes.shape[1] - 6, size=2)
                found.append(planes[:, top : top + 7, left : left + 7])
        stack = np.stack(found)
        stack -= stack.mean((0, 2, 3), keepdims=True)
        sides.append((stack / stack.std((0, 2, 3), keepdims=True)).reshape(len(stack), -1))
    distances = []
    for _ in range(200):
        direction = rng.normal(size=sides[0].shape[1])
        direction /= np.sqrt((direction**2).sum())
        x, y = (sorted(side @ direction) for side in sides)
        distances.append(np.mean([abs(p - q) for p, q in zip(x, y, strict=True)]))
    return float(np.mean(distances))


@pytest.mark.parametrize(
    ("size", "levels"),
    [(8, [8]), (16, [16]), (28, [28, 14]), (32, [32, 16]), (64, [64, 32, 16]), (75, [75, 38, 19])],
)
def test_levels_are_halved_while_two_patches_fit(size: int, levels: list[int]):
    assert level_sizes(size) == levels
    assert [level.shape[-1] for level in laplacian_pyramid(np.zeros((2, 1, size, size), np.uint8))] == levels


@pytest.mark.parametrize("size", [28, 32, 75])
def test_the_pyramid_is_that_of_plain_filters_and_adds_up_to_the_image(size: int):
    images = pictures(2, 1, size)
    found = laplacian_pyramid(images)
    for i, image in enumerate(images):
        for c, plane in enumerate(image):
            for level, expected in zip(found, plain_pyramid(plane, len(found)), strict=True):
                np.testing.assert_allclose(level[i, c].numpy(), expected, atol=1e-3)
    image = found[-1]
    for level in reversed(found[:-1]):
        spread = torch.zeros_like(level)
        spread[..., ::2, ::2] = image
        image = level + 4 * patches._blur(spread)
    np.testing.assert_allclose(image.numpy(), images, atol=1e-3)


def test_descriptors_are_patches_of_their_image_normalized_over_the_set():
    # Every pixel says which image it belongs to and where it is.
    levels = (torch.arange(3)[:, None, None, None] * 256 + torch.arange(256.0).view(1, 1, 16, 16)).repeat(1, 2, 1, 1)
    levels[:, 1] *= -3
    found = descriptors(levels.clone(), np.random.default_rng(0)).view(3, PATCHES, 2, PATCH, PATCH)
    flat = found.double().transpose(0, 2).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(flat.std(1, correction=0), torch.ones(2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, :, 0], -found[:, :, 1], atol=1e-5, rtol=0)
    values = found[:, :, 0] * _spread(levels[:, :1], np.random.default_rng(0))
    steps = values[..., 1:] - values[..., :-1], values[..., 1:, :] - values[..., :-1, :]
    torch.testing.assert_close(steps[0], torch.ones_like(steps[0]), atol=1e-2, rtol=0)
    torch.testing.assert_close(steps[1], torch.full_like(steps[1], 16.0), atol=1e-2, rtol=0)
    assert len(set(values[0, :, 0, 0].round().flatten().tolist())) > 60  # of the 100 places


def _spread(levels: torch.Tensor, generator: np.random.Generator) -> float:
    tops, lefts = generator.integers(10, size=(2, len(levels), PATCHES))
    rows = [
        levels[i, 0, t : t + 7, x : x + 7] for i in range(len(levels)) for t, x in zip(tops[i], lefts[i], strict=True)
    ]
    return float(torch.stack(rows).double().std(correction=0))


def test_identical_sets_have_no_distance():
    images = pictures(20, 1)
    assert compare_patches(images, images, STREAM)[0] == [0.0, 0.0]


def test_the_distance_is_symmetric_and_positive():
    a, b = pictures(20, 1), pictures(20, 2)
    there, back = (compare_patches(*pair, STREAM)[0] for pair in ((a, b), (b, a)))
    assert there == back
    assert min(there) > 0


def test_a_shift_moves_every_projection_by_its_part_and_a_scale_multiplies_the_distance():
    rng = np.random.default_rng(3)
    points, others = (torch.from_numpy(rng.normal(size=(500, 49))).float() for _ in range(2))
    directions = random_directions(49, rng)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(DIRECTIONS))
    shift = torch.from_numpy(rng.normal(size=49)).float()
    expected = (shift @ directions).abs().numpy()
    np.testing.assert_allclose(sliced_wasserstein(points + shift, points, directions), expected, atol=1e-5)
    single, double = (sliced_wasserstein(x * points, x * others, directions) for x in (1, 2))
    np.testing.assert_allclose(double, 2 * single, rtol=1e-5)
    # Of normal variables N(0, s²) and N(0, 1) the distance is |s − 1| E|N(0, 1)|.
    many, more = (torch.from_numpy(rng.normal(size=(40_000, 4))).float() for _ in range(2))
    wider = sliced_wasserstein(1.5 * many, more, random_directions(4, rng)[:, :20]).mean()
    assert wider == pytest.approx(0.5 * (2 / np.pi) ** 0.5, rel=0.05)


def test_brightness_and_contrast_of_a_whole_set_do_not_count():
    images = pictures(20, 1) // 2
    levels, brighter, stronger = (laplacian_pyramid(part) for part in (images, images + 40, images * 2))
    for plain, *others in zip(levels, brighter, stronger, strict=True):
        first, *rest = (descriptors(level, np.random.default_rng(5)) for level in (plain, *others))
        for other in rest:
            torch.testing.assert_close(other, first, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3)])
def test_it_agrees_with_a_plain_implementation_of_the_papers_description(size: int, channels: int):
    a, b = pictures(40, 1, size, channels), np.flip(pictures(40, 2, size, channels), 2).copy()
    a = np.where(np.arange(size) % 4 == 0, a // 2, a)  # stripes: something to see on the finest level
    found = compare_patches(a, b, STREAM)[0]
    for level, distance in enumerate(found):
        # Other patches and other directions: a Monte Carlo error of a few per cent.
        expected = np.mean([plain_distance(a, b, level, len(found), seed) for seed in range(2)])
        assert distance == pytest.approx(expected, rel=0.1)


def test_influences_predict_how_the_distance_of_other_sets_scatters():
    real, count = pictures(150, 0, 16), 150
    everything = pictures(40 * count, 5, 16)
    everything[:, :, ::3] //= 2
    directions = random_directions(3 * PATCH**2, np.random.default_rng(1))[:, :32]

    def described(images: np.ndarray) -> torch.Tensor:
        return descriptors(laplacian_pyramid(images)[0], np.random.default_rng(2))

    others = described(real)
    sets = [described(part) for part in np.split(everything, 40)]
    observed = np.std([sliced_wasserstein(part, others, directions).mean() for part in sets], ddof=1)
    moved = [influences(part, others, directions, 3) for part in sets[:4]]
    predicted = np.mean([part.std() / count**0.5 for part in moved])
    assert all(abs(part.mean()) < 1e-12 for part in moved)
    assert predicted == pytest.approx(observed, rel=0.3)


def test_influences_are_the_derivative_by_the_weights_of_the_images():
    a, b = pictures(60, 1, 16), pictures(60, 2, 16)
    a[:, :, ::3] //= 2
    directions = random_directions(3 * PATCH**2, np.random.default_rng(1))[:, :16]
    # Each image thrice beside three times the others: one more and one less of it changes its weight a little.
    times = 8
    x, y = (np.repeat(part, times, 0) for part in (a, b))

    def distance(images: np.ndarray) -> tuple[float, torch.Tensor, torch.Tensor]:
        level = [laplacian_pyramid(part)[0] for part in (images, y)]
        one, two = (_same_places(part) for part in level)
        return float(sliced_wasserstein(one, two, directions).mean()), one, two

    base, one, two = distance(x)
    moved = influences(one, two, directions, 3).reshape(60, times).mean(1)
    order = np.argsort(moved)
    low, high = order[:5], order[-5:]
    more = x.copy()
    more[low * times] = a[high]  # five images lose an eighth of their weight to five others
    expected = (moved[high] - moved[low]).sum() / (60 * times)
    assert distance(more)[0] - base == pytest.approx(expected, rel=0.1)


def _same_places(level: torch.Tensor) -> torch.Tensor:
    """Descriptors whose places are the same in every image: equal images have equal ones."""

    class Places:
        def integers(self, high: int, size: tuple[int, int, int]) -> np.ndarray:
            two, count, each = size
            return np.broadcast_to(
                np.random.default_rng(3).integers(high, size=(two, 1, each)), (two, count, each)
            ).copy()

    return descriptors(level, Places())  # type: ignore[arg-type]


def image_set(images: np.ndarray) -> ImageSet:
    return ImageSet(images, np.zeros(len(images), np.int64), np.arange(len(images)), 0, "fields")


def test_real_images_score_at_the_floor_and_noise_far_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "IMAGES", 80)
    train, test = image_set(pictures(600, 1)), image_set(pictures(250, 2))
    fresh = measure_patches(pictures(300, 3), train, test, 50, STREAM, False)
    noise = np.random.default_rng(4).integers(256, size=(300, 3, 32, 32), dtype=np.uint8)
    far = measure_patches(noise, train, test, 0, STREAM, False)
    for key in ("swd_32", "swd_16", "swd"):
        assert fresh[f"{key}_low"] <= fresh[key] <= fresh[f"{key}_high"]
        assert fresh[key] == pytest.approx(fresh[f"{key}_real"], rel=0.5)
        assert fresh[f"{key}_over_floor"] == pytest.approx(1, abs=0.5)
        assert fresh[f"{key}_over_floor"] == fresh[key] / fresh[f"{key}_floor"]
        assert far[f"{key}_over_floor"] > 3  # of 80 images, whose floor is high
    assert fresh["swd"] == pytest.approx((fresh["swd_32"] + fresh["swd_16"]) / 2)
    assert {key: far[key] for key in far if "real" in key} == {key: fresh[key] for key in fresh if "real" in key}


def test_fewer_test_images_are_not_compared_with():
    train, test = image_set(pictures(60, 1, 16, 1)), image_set(pictures(19, 2, 16, 1))
    few, as_many = (measure_patches(pictures(count, 3, 16, 1), train, test, 0, STREAM, False) for count in (20, 19))
    assert {"swd_real", "swd_16_real", "swd_floor"} <= set(as_many)
    assert set(as_many) - set(few) == {"swd_real", "swd_16_real"}


def test_alone_there_is_the_number_and_nothing_beside_it():
    train, test = image_set(pictures(60, 1, 16, 1)), image_set(pictures(20, 2, 16, 1))
    images = pictures(20, 3, 16, 1)
    alone, together = (measure_patches(images, train, test, 5, STREAM, value) for value in (True, False))
    assert alone == {
        key: together[key] for key in ("swd_16", "swd_16_low", "swd_16_high", "swd", "swd_low", "swd_high")
    }


def test_images_are_compared_at_the_size_and_in_the_channels_of_the_data_set():
    train, test = image_set(pictures(60, 1, 16, 1)), image_set(pictures(20, 2, 16, 1))
    images = pictures(20, 3, 16, 1)
    grey, colour, large = (
        measure_patches(part, train, test, 0, STREAM, True)["swd"]
        for part in (images, images.repeat(3, 1), images.repeat(2, 2).repeat(2, 3))
    )
    assert grey == colour
    assert large != grey
