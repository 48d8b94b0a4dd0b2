from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ddpm.figures.curves import loss_curves
from ddpm.figures.digits import closest_pairs, reverse_gif, reverse_strip, sample_sheet, side_by_side

CAPTION = 15 + 8


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(256, size=(30, 28, 28), dtype=np.uint8)


@pytest.fixture
def way(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(256, size=(21, 9, 28, 28), dtype=np.uint8)


@pytest.fixture
def log() -> pd.DataFrame:
    steps = np.arange(1, 41) * 20
    return pd.DataFrame({"step": steps, "loss": 1 / steps, "lr": 0.1})


@pytest.fixture
def validation() -> pd.DataFrame:
    quarters = {f"val_mse_t{i}of4": [0.4 / i, 0.3 / i] for i in range(1, 5)}
    return pd.DataFrame({"step": [400, 800], "val_loss": [0.3, 0.2]} | quarters)


@pytest.mark.parametrize(("columns", "scale", "rows"), [(5, 2, 5), (4, 1, 4), (16, 3, 2)])
def test_a_sheet_shows_the_first_images_enlarged(
    images: np.ndarray, tmp_path: Path, columns: int, scale: int, rows: int
):
    sample_sheet(tmp_path / "sheet.png", images, columns, scale)
    sheet = pixels(tmp_path / "sheet.png")
    assert sheet.shape == (scale * (rows * 30 - 2), scale * (columns * 30 - 2))
    assert np.array_equal(sheet[: 28 * scale : scale, : 28 * scale : scale], images[0])
    second_row = 30 * scale
    assert np.array_equal(sheet[second_row : second_row + 28 * scale : scale, : 28 * scale : scale], images[columns])


def test_real_and_generated_stand_side_by_side_under_captions(images: np.ndarray, tmp_path: Path):
    side_by_side(tmp_path / "both.png", images[:9], images[9:18], 3, 2)
    both = pixels(tmp_path / "both.png")
    side = 2 * (3 * 30 - 2)
    assert both.shape == (side + CAPTION, 2 * side + 24)
    assert np.array_equal(both[CAPTION:, :side][:56:2, :56:2], images[0])
    assert np.array_equal(both[CAPTION:, side + 24 :][:56:2, :56:2], images[9])
    captions = both[:CAPTION, :side], both[:CAPTION, side + 24 :]
    assert all((caption < 128).any() for caption in captions)
    assert not np.array_equal(*captions)


def test_the_strip_shows_moments_from_noise_to_digit_under_their_times(way: np.ndarray, tmp_path: Path):
    t = [*range(950, -50, -50), -1]
    reverse_strip(tmp_path / "strip.png", way, t, 5, 3, 2)
    strip = pixels(tmp_path / "strip.png")
    width, step = 2 * 28, 2 * 28 + 6
    assert strip.shape == (CAPTION + 2 * (3 * 30 - 2), 5 * width + 4 * 6)
    for column, frame in enumerate((0, 5, 10, 15, 20)):
        left = column * step
        assert np.array_equal(strip[CAPTION : CAPTION + 56 : 2, left : left + 56 : 2], way[frame, 0])
        assert (strip[:CAPTION, left : left + width] < 128).any()


def test_a_strip_of_a_short_way_shows_every_moment_once(way: np.ndarray, tmp_path: Path):
    reverse_strip(tmp_path / "strip.png", way[:3], [99, 0, -1], 8, 6, 1)
    assert pixels(tmp_path / "strip.png").shape[1] == 3 * 28 + 2 * 3


@pytest.mark.parametrize(("seconds", "frames"), [(4.0, 21), (0.4, 10), (0.08, 2)])
def test_the_animation_has_as_many_frames_as_its_time_allows_and_holds_the_last(
    way: np.ndarray, tmp_path: Path, seconds: float, frames: int
):
    reverse_gif(tmp_path / "way.gif", way, seconds, 2)
    with Image.open(tmp_path / "way.gif") as gif:
        assert gif.n_frames == frames
        assert gif.info["loop"] == 0
        assert gif.size == (2 * (3 * 30 - 2),) * 2
        durations = []
        for frame in range(frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
        # A GIF is drawn in 16 greys, 17 apart, so that it stays small.
        held = np.asarray(gif.convert("L"))[:56:2, :56:2].astype(int)
        assert np.abs(held - way[-1, 0]).max() <= 8
    assert sum(durations) / 1000 == pytest.approx(seconds + 1.5, abs=0.005 * frames + 0.01)
    assert durations[-1] >= 1500
    assert len(set(durations[:-1])) == 1


def test_the_animation_of_a_single_image_is_that_image(way: np.ndarray, tmp_path: Path):
    reverse_gif(tmp_path / "way.gif", way[:, :1], 1.0, 1)
    with Image.open(tmp_path / "way.gif") as gif:
        assert gif.size == (28, 28)


def test_the_curves_are_a_picture_of_the_numbers(log: pd.DataFrame, validation: pd.DataFrame, tmp_path: Path):
    loss_curves(tmp_path / "a.png", log, validation)
    loss_curves(tmp_path / "b.png", log.assign(loss=log["loss"] * np.linspace(1, 3, 40)), validation)
    assert pixels(tmp_path / "a.png").shape == (480, 1200)
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_curves_are_drawn_without_some_quarters_and_with_a_single_row(
    log: pd.DataFrame, validation: pd.DataFrame, tmp_path: Path
):
    some = validation.drop(columns=["val_mse_t2of4", "val_mse_t4of4"])
    loss_curves(tmp_path / "some.png", log[:1], some[:1])
    loss_curves(tmp_path / "one.png", log[:1], some.drop(columns=["val_mse_t3of4"])[:1])
    assert pixels(tmp_path / "some.png").shape == pixels(tmp_path / "one.png").shape == (480, 1200)


def test_equal_numbers_are_equal_files(
    images: np.ndarray, way: np.ndarray, log: pd.DataFrame, validation: pd.DataFrame, tmp_path: Path
):
    for folder in (tmp_path / "a", tmp_path / "b"):
        sample_sheet(folder / "sheet.png", images, 4, 2)
        side_by_side(folder / "both.png", images, images, 3, 2)
        reverse_strip(folder / "strip.png", way, [*range(20, 0, -1), -1], 8, 6, 4)
        reverse_gif(folder / "way.gif", way, 1.0, 2)
        loss_curves(folder / "loss.png", log, validation)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 5
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_pairs_stand_side_by_side(tmp_path: Path, images: np.ndarray):
    closest_pairs(tmp_path / "pairs.png", images[:6], images[6:12], 3, 1)
    sheet = pixels(tmp_path / "pairs.png")[CAPTION:]
    assert np.array_equal(sheet[:28, :28], images[0])
    assert np.array_equal(sheet[:28, 28:56], images[6])
    assert np.array_equal(sheet[34:62, 62:90], images[4])
    assert np.array_equal(sheet[34:62, 90:118], images[10])


def test_pairs_of_larger_images_are_of_one_size(tmp_path: Path, images: np.ndarray):
    closest_pairs(tmp_path / "pairs.png", images[:2].repeat(2, 1).repeat(2, 2), images[6:8], 2, 1)
    sheet = pixels(tmp_path / "pairs.png")[CAPTION:]
    assert sheet.shape == (56, 4 * 56 + 6)
