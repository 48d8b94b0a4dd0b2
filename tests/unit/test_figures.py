from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import stages.visualize
from ddpm.data.image_set import ImageSet, write_image_set
from ddpm.figures.curves import loss_curves, write_loss_curves
from ddpm.figures.grids import closest_pairs, numbered, real_and_generated, reverse_gif, reverse_strip, sample_grid
from ddpm.utils.files import save_arrays
from ddpm.utils.images import enlarge, write_rgb_pngs

GREY, COLOUR = (1, 28), (3, 20)  # channels, size
LINE = 23  # pixels a line of a caption takes


def read(path: Path) -> np.ndarray:
    """A picture as uint8 [c, h, w]."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def shows(picture: np.ndarray, image: np.ndarray, top: int, left: int, scale: int) -> bool:
    """Whether ``image`` stands at a place of the picture, enlarged."""
    height, width = (scale * side for side in image.shape[1:])
    return np.array_equal(picture[:, top : top + height, left : left + width], enlarge(image, scale))


def has_ink(part: np.ndarray) -> bool:
    return bool(part.size) and bool((part < 128).any())


@pytest.fixture(params=[GREY, COLOUR], ids=["grey", "colour"])
def images(request: pytest.FixtureRequest, rng: np.random.Generator) -> np.ndarray:
    channels, size = request.param
    return rng.integers(256, size=(30, channels, size, size), dtype=np.uint8)


@pytest.fixture(params=[GREY, COLOUR], ids=["grey", "colour"])
def x_t(request: pytest.FixtureRequest, rng: np.random.Generator) -> np.ndarray:
    channels, size = request.param
    return rng.integers(256, size=(21, 9, channels, size, size), dtype=np.uint8)


@pytest.fixture
def log() -> pd.DataFrame:
    steps = np.arange(1, 81) * 20
    return pd.DataFrame({"step": steps, "loss": 1 / steps})


@pytest.fixture
def validation() -> pd.DataFrame:
    quarters = {f"val_mse_t{i}of4": [0.2 / i, 0.18 / i] for i in range(1, 5)}
    return pd.DataFrame({"step": [800, 1600], "val_loss": [0.3, 0.2]} | quarters)


def training_set(images: np.ndarray, labels: list[int], classes: int) -> ImageSet:
    return ImageSet(images[: len(labels)], np.array(labels), np.arange(len(labels)), classes)


def table(*rows: tuple[int, int, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["image", "feature_index", "feature_distance"])


@pytest.mark.parametrize("columns", [7, 30, 40])
def test_all_images_of_a_numbered_page_stand_row_by_row_right_of_and_below_their_numbers(
    images: np.ndarray, tmp_path: Path, columns: int
):
    numbered(tmp_path / "page.png", images, 201, columns, 3)
    page = read(tmp_path / "page.png")
    pitch, shown = 3 * (images.shape[-1] + 2), min(columns, 30)
    left = page.shape[2] - (shown * pitch - 6)
    assert page.shape[1] == LINE + (30 - 1) // columns * pitch + pitch - 6
    for number, image in enumerate(images):
        assert shows(page, image, LINE + number // columns * pitch, left + number % columns * pitch, 3)
    assert all(has_ink(page[:, :LINE, left + column * pitch :][:, :, : pitch - 6]) for column in range(shown))
    assert all(has_ink(page[:, LINE + row * pitch :, :left][:, : pitch - 6]) for row in range((30 - 1) // columns + 1))


@pytest.mark.parametrize(("columns", "scale", "rows"), [(5, 2, 5), (4, 1, 4), (16, 3, 2)])
def test_a_grid_shows_the_first_images_enlarged(
    images: np.ndarray, tmp_path: Path, columns: int, scale: int, rows: int
):
    sample_grid(tmp_path / "grid.png", images, columns, scale)
    grid = read(tmp_path / "grid.png")
    channels, size = images.shape[1:3]
    assert grid.shape == (channels, scale * (rows * (size + 2) - 2), scale * (columns * (size + 2) - 2))
    assert shows(grid, images[0], 0, 0, scale)
    assert shows(grid, images[columns], scale * (size + 2), 0, scale)
    assert shows(grid, images[1], 0, scale * (size + 2), scale)


def test_real_images_stand_left_of_generated_ones_under_captions(images: np.ndarray, tmp_path: Path):
    real_and_generated(tmp_path / "both.png", images[:9], images[9:18], 3, 2)
    both = read(tmp_path / "both.png")
    channels, size = images.shape[1:3]
    side = 2 * (3 * (size + 2) - 2)
    assert both.shape == (channels, side + LINE, 2 * side + 24)
    assert shows(both, images[0], LINE, 0, 2)
    assert shows(both, images[9], LINE, side + 24, 2)
    captions = both[:, :LINE, :side], both[:, :LINE, side + 24 :]
    assert all(map(has_ink, captions))
    assert not np.array_equal(*captions)


def test_real_images_are_from_all_of_a_set_that_is_in_order_of_its_classes(tmp_path: Path):
    real = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((40, 40), np.uint8)
    real_and_generated(tmp_path / "both.png", real, real, 2, 1)
    both = read(tmp_path / "both.png")
    for number, (top, left) in {0: (0, 0), 33: (0, 42), 66: (42, 0), 99: (42, 42)}.items():
        assert shows(both, real[number], LINE + top, left, 1)


def test_real_images_take_the_size_and_the_channels_of_the_generated_ones(rng: np.random.Generator, tmp_path: Path):
    colour = rng.integers(256, size=(4, 3, 20, 20), dtype=np.uint8)
    grey = rng.integers(256, size=(4, 1, 40, 40), dtype=np.uint8)
    real_and_generated(tmp_path / "both.png", colour, grey, 2, 1)
    both = read(tmp_path / "both.png")
    assert both.shape == (3, 82 + LINE, 2 * 82 + 12)
    assert shows(both, np.repeat(grey[0], 3, 0), LINE, 82 + 12, 1)


def test_pairs_stand_in_the_row_of_their_class_closest_first(images: np.ndarray, tmp_path: Path):
    training = training_set(images[10:], [2, 0, 2, 2], 3)
    nearest = table((1, 0, 0.3), (2, 1, 0.9), (3, 2, 0.1), (4, 3, 0.2), (5, 0, 0.4))
    scale, (channels, size, _) = 2, images.shape[1:]
    closest_pairs(tmp_path / "pairs.png", images[:5], training, nearest, 3, scale, "feature")
    page = read(tmp_path / "pairs.png")[:, 2 * LINE :]
    pair, step = scale * (2 * size + 1), (scale * (2 * size + 7), scale * (size + 6))
    assert page.shape[:2] == (channels, 3 * step[1] - 6 * scale)
    width = 3 * step[0] - 6 * scale
    # A caption wider than the pairs widens the page; they stay in its middle. The row labels stand at its left.
    left = next(x for x in range(page.shape[2]) if shows(page, images[1], 0, x, scale))
    assert left + width <= page.shape[2]
    for row, column, generated, real in [(0, 0, 1, 1), (2, 0, 2, 2), (2, 1, 3, 3), (2, 2, 0, 0)]:
        place = left + column * step[0]
        assert shows(page, images[generated], row * step[1], place, scale)
        assert shows(page, training.images[real], row * step[1], place + scale * (size + 1), scale)
    for row, column in [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]:
        place = left + column * step[0]
        cell = page[:, row * step[1] : row * step[1] + scale * size, place : place + pair]
        assert cell.shape[2] == pair
        assert len(np.unique(cell)) == 1
    labels = [page[:, row * step[1] : row * step[1] + scale * size, :left] for row in range(3)]
    assert all(map(has_ink, labels))
    assert len({label.tobytes() for label in labels}) == 3


def test_names_of_classes_are_written_in_their_letters(images: np.ndarray, tmp_path: Path):
    labels = []
    for name in ("öß", "éą", "жя"):
        training = replace(training_set(images, [0], 1), class_names=(name,))
        closest_pairs(tmp_path / "pairs.png", images[:1], training, table((1, 0, 0.1)), 1, 4, "feature")
        labels.append(read(tmp_path / "pairs.png").tobytes())
    assert len(set(labels)) == 3


def test_the_caption_of_the_pairs_names_the_distance(images: np.ndarray, tmp_path: Path):
    training, nearest = training_set(images, [0], 1), table((1, 0, 0.1))
    by_pixel = nearest.rename(columns=lambda name: name.replace("feature", "pixel"))
    closest_pairs(tmp_path / "a.png", images[:1], training, nearest, 1, 1, "feature")
    closest_pairs(tmp_path / "b.png", images[:1], training, by_pixel, 1, 1, "pixel")
    assert not np.array_equal(*(read(tmp_path / f"{name}.png") for name in "ab"))


def test_pairs_without_classes_stand_in_one_row_without_a_label(images: np.ndarray, tmp_path: Path):
    training = training_set(images[5:], [0, 0, 0], 0)
    closest_pairs(tmp_path / "pairs.png", images, training, table((1, 2, 0.5), (2, 0, 0.1)), 9, 2, "feature")
    page = read(tmp_path / "pairs.png")[:, 2 * LINE :]
    size = images.shape[-1]
    assert page.shape == (images.shape[1], 2 * size, 2 * (9 * (2 * size + 7) - 6))
    assert shows(page, images[1], 0, 0, 2)
    assert shows(page, images[0], 0, 2 * (2 * size + 7), 2)


def test_pairs_of_other_sizes_and_channels_are_made_alike(rng: np.random.Generator, tmp_path: Path):
    generated = rng.integers(256, size=(2, 1, 40, 40), dtype=np.uint8)
    training = training_set(rng.integers(256, size=(1, 3, 20, 20), dtype=np.uint8), [0], 0)
    closest_pairs(tmp_path / "pairs.png", generated, training, table((1, 0, 0.5), (2, 0, 0.6)), 9, 1, "feature")
    page = read(tmp_path / "pairs.png")[:, 2 * LINE :]
    assert page.shape == (3, 40, 9 * 87 - 6)
    assert shows(page, np.repeat(generated[0], 3, 0), 0, 0, 1)


def test_the_strip_shows_steps_from_noise_to_sample_under_their_times(x_t: np.ndarray, tmp_path: Path):
    reverse_strip(tmp_path / "strip.png", x_t, [*range(950, -50, -50), -1], 5, 3, 4)
    strip = read(tmp_path / "strip.png")
    channels, size = x_t.shape[2:4]
    width, step = 4 * size, 4 * size + 12
    assert strip.shape == (channels, LINE + 4 * (3 * (size + 2) - 2), 5 * width + 4 * 12)
    for column, frame in enumerate((0, 5, 10, 15, 20)):
        assert shows(strip, x_t[frame, 0], LINE, column * step, 4)
        assert shows(strip, x_t[frame, 2], LINE + 8 * (size + 2), column * step, 4)
        assert has_ink(strip[:, :LINE, column * step : column * step + width])


def test_a_strip_of_few_frames_shows_each_once_and_captions_of_small_images_fit(x_t: np.ndarray, tmp_path: Path):
    reverse_strip(tmp_path / "strip.png", x_t[:3], [99, 0, -1], 8, 6, 1)
    strip = read(tmp_path / "strip.png")
    size = x_t.shape[-1]
    found = [x for x in range(strip.shape[2]) for frame in range(3) if shows(strip, x_t[frame, 0], LINE, x, 1)]
    assert len(found) == 3
    assert strip.shape[2] > 3 * size + 2 * 3
    assert not has_ink(strip[:, :LINE, [0, -1]])


@pytest.mark.parametrize(("seconds", "frames"), [(4.0, 21), (0.4, 10), (0.08, 2)])
def test_the_animation_has_as_many_frames_as_its_time_allows_and_holds_the_last(
    x_t: np.ndarray, tmp_path: Path, seconds: float, frames: int
):
    reverse_gif(tmp_path / "reverse.gif", x_t, seconds, 2)
    size = x_t.shape[-1]
    with Image.open(tmp_path / "reverse.gif") as gif:
        assert gif.n_frames == frames
        assert gif.info["loop"] == 0
        assert gif.size == (2 * (3 * (size + 2) - 2),) * 2
        durations = []
        for frame in range(frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
        last = np.asarray(gif.convert("RGB")).transpose(2, 0, 1)[:, : 2 * size : 2, : 2 * size : 2]
    # Few colours: 16 greys, which are 17 apart, or as many as a palette has.
    error = np.abs(last.astype(int) - x_t[-1, 0])
    assert error.max() <= 8 if x_t.shape[2] == 1 else error.mean() < 40
    assert sum(durations) / 1000 == pytest.approx(seconds + 1.5, abs=0.005 * frames + 0.01)
    assert durations[-1] >= 1500
    assert len(set(durations[:-1])) == 1


def test_the_animation_keeps_few_colours_as_they_are(tmp_path: Path, rng: np.random.Generator):
    colours = np.array([[255, 0, 0], [0, 0, 255], [255, 255, 0], [20, 90, 40]], np.uint8)
    x_t = colours[rng.integers(4, size=(5, 4, 8, 8))].transpose(0, 1, 4, 2, 3)
    reverse_gif(tmp_path / "reverse.gif", x_t, 1.0, 3)
    with Image.open(tmp_path / "reverse.gif") as gif:
        gif.seek(4)
        last = np.asarray(gif.convert("RGB")).transpose(2, 0, 1)
    assert shows(last, x_t[-1, 0], 0, 0, 3)
    assert shows(last, x_t[-1, 3], 30, 30, 3)


def test_the_animation_of_a_single_image_is_that_image(x_t: np.ndarray, tmp_path: Path):
    reverse_gif(tmp_path / "reverse.gif", x_t[:, :1], 1.0, 1)
    with Image.open(tmp_path / "reverse.gif") as gif:
        assert gif.size == (x_t.shape[-1],) * 2


def test_the_running_mean_neither_lags_nor_leads(validation: pd.DataFrame):
    step, falling = np.arange(1, 201) * 20, 3.0 - 0.01 * np.arange(200)
    for noise in (0, 0.1 * (-1) ** np.arange(200)):
        smooth = loss_curves(pd.DataFrame({"step": step, "loss": falling + noise}), validation).axes[0].lines[1]
        there = np.isfinite(smooth.get_ydata())
        assert there.sum() == 200 - 2 * 5
        assert smooth.get_ydata()[there] == pytest.approx(falling[there], abs=0.01)


def test_a_training_loss_is_placed_at_the_middle_of_its_steps(validation: pd.DataFrame):
    steps = np.array([20, 40, 60, 65])
    log = pd.DataFrame({"step": steps, "loss": 0.5})
    axes = loss_curves(log, validation).axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines[:2]] == [[10, 30, 50, 62.5]] * 2
    assert axes.lines[2].get_xdata().tolist() == [800, 1600]


@pytest.mark.parametrize("low", [0.06, 0.088, 1e-5])
def test_both_axes_have_several_plain_decimal_labels(log: pd.DataFrame, validation: pd.DataFrame, low: float):
    for column in validation.columns[1:]:
        validation[column] = np.geomspace(low, 0.2, 2) if low < 0.08 else [low, low * 1.05]
    figure = loss_curves(log.assign(loss=np.geomspace(1, low, len(log))), validation)
    figure.draw_without_rendering()
    for axes in figure.axes:
        bottom, top = axes.get_ylim()
        ticks = zip(axes.yaxis.get_majorticklocs(), axes.yaxis.get_majorticklabels(), strict=True)
        shown = [(place, label.get_text()) for place, label in ticks if bottom <= place <= top]
        assert len(shown) >= 3
        assert all(
            text.strip("0123456789") in ("", ".") and float(text) == pytest.approx(place, rel=1e-3)
            for place, text in shown
        )


def test_no_legend_covers_a_curve_or_a_label(log: pd.DataFrame, validation: pd.DataFrame):
    figure = loss_curves(log, validation)
    figure.draw_without_rendering()
    for part, axes, entries in zip(figure.subfigs, figure.axes, (3, 4), strict=True):
        (legend,) = part.legends
        assert len(legend.get_texts()) == entries
        assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
        inside = figure.bbox.intersection(figure.bbox, legend.get_window_extent())
        assert inside.bounds == pytest.approx(legend.get_window_extent().bounds)


def test_curves_can_be_of_a_single_row_and_of_some_quarters(
    log: pd.DataFrame, validation: pd.DataFrame, tmp_path: Path
):
    some = validation.drop(columns=["val_mse_t2of4", "val_mse_t4of4"])
    write_loss_curves(tmp_path / "some.png", log[:1], some[:1])
    assert read(tmp_path / "some.png").shape[1:] == (480, 1200)


def test_equal_numbers_are_equal_files(images: np.ndarray, log: pd.DataFrame, validation: pd.DataFrame, tmp_path: Path):
    x_t = images.reshape(5, 6, *images.shape[1:])
    training = training_set(images, [0, 1], 2)
    for folder in (tmp_path / "a", tmp_path / "b"):
        sample_grid(folder / "grid.png", images, 4, 2)
        real_and_generated(folder / "both.png", images, images, 3, 2)
        closest_pairs(folder / "pairs.png", images, training, table((1, 0, 0.1), (2, 1, 0.1)), 5, 2, "feature")
        reverse_strip(folder / "strip.png", x_t, [30, 20, 10, 0, -1], 8, 6, 4)
        reverse_gif(folder / "reverse.gif", x_t, 1.0, 2)
        write_loss_curves(folder / "loss.png", log, validation)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 6
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_stage_makes_all_figures_from_the_files_of_the_others(
    images: np.ndarray,
    log: pd.DataFrame,
    validation: pd.DataFrame,
    rng: np.random.Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    training = training_set(images, [0, 1, 1, 0, 2], 3)
    source = SimpleNamespace(load=lambda folder, part: {"train": training}[part])
    monkeypatch.setattr(stages.visualize, "SOURCES", {"toy": source})
    monkeypatch.chdir(tmp_path)
    for folder in ("data/generated", "data/model", "data/evaluation"):
        Path(folder).mkdir(parents=True)
    write_rgb_pngs(Path("data/generated"), images[:10], 1, 10)
    write_image_set(Path("data/split/test.npz"), training)
    frames = rng.integers(256, size=(4, 2, *images.shape[1:]), dtype=np.uint8)
    save_arrays(Path("data/trajectory.npz"), x_t=frames, x_0=frames, t=np.array([30, 20, 10, -1]))
    log.to_csv("data/model/log.csv", index=False)
    validation.to_csv("data/model/validation.csv", index=False)
    table((10, 4, 0.2), (1, 0, 0.1)).to_csv("data/evaluation/nearest.csv", index=False)
    settings = SimpleNamespace(grid_columns=2, snapshots=3, gif_seconds=0.5, scale=2)
    stages.visualize.visualize(
        SimpleNamespace(visualize=settings, data=SimpleNamespace(name="toy"), runtime=SimpleNamespace(workers=1))
    )
    assert sorted(path.name for path in Path("data/figures").iterdir()) == [
        "closest_pairs.png",
        "loss.png",
        "predicted_x_0.png",
        "real_and_generated.png",
        "reverse_process.gif",
        "reverse_process.png",
        "samples.png",
    ]
    size = images.shape[-1]
    assert read(Path("data/figures/samples.png")).shape == (images.shape[1], *(2 * (2 * size + 2),) * 2)
    assert read(Path("data/figures/reverse_process.png")).shape[1] == LINE + 4 * (2 * size + 2)
