from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data.image_set import ImageSet, denormalize, normalize
from ddpm.utils.errors import DamagedFile, MissingFile
from ddpm.utils.images import (
    enlarge,
    png_name,
    read_pngs,
    resize,
    tile,
    to_grey,
    to_pil,
    to_rgb,
    write_png,
    write_rgb_pngs,
)


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def images(request: pytest.FixtureRequest, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(256, size=(12, request.param, 10, 10), dtype=np.uint8)


def test_every_pixel_value_survives_model_space():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x_0 = normalize(pixels)
    assert x_0.dtype == torch.float32
    assert (x_0.shape, x_0.min(), x_0.max()) == (pixels.shape, -1, 1)
    assert np.array_equal(denormalize(x_0), pixels.numpy())


@pytest.mark.parametrize(
    ("value", "pixel"),
    [(-1.0, 0), (1.0, 255), (-7.0, 0), (7.0, 255), (0.0, 128), (-1 + 0.49 / 127.5, 0), (-1 + 0.51 / 127.5, 1)],
)
def test_model_space_is_rounded_to_the_nearest_pixel_and_clipped(value: float, pixel: int):
    found = denormalize(torch.full((1, 3, 2, 2), value))
    assert found.dtype == np.uint8
    assert found.shape == (1, 3, 2, 2)
    assert (found == pixel).all()


def test_pngs_are_numbered_and_rgb(images: np.ndarray, tmp_path: Path):
    write_rgb_pngs(tmp_path, images[:3], 9, 10_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00009.png", "00010.png", "00011.png"]
    with Image.open(tmp_path / "00010.png") as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        assert image.size == (10, 10)


def test_pixels_survive_the_files_in_the_order_of_the_numbers(images: np.ndarray, tmp_path: Path):
    write_rgb_pngs(tmp_path, images[5:], 6, 12)
    write_rgb_pngs(tmp_path, images[:5], 1, 12)
    (tmp_path / "notes.txt").write_text("not an image")
    found = read_pngs(tmp_path, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, images)


def test_a_name_in_capitals_is_a_png_too(tmp_path: Path, images: np.ndarray):
    write_rgb_pngs(tmp_path, images[:2], 1, 2)
    (tmp_path / "00002.png").rename(tmp_path / "00002.PNG")
    assert len(read_pngs(tmp_path, 1)) == 2


def test_one_image_in_colour_makes_all_of_a_folder_colour(tmp_path: Path, rng: np.random.Generator):
    grey, colour = (rng.integers(256, size=(2, channels, 6, 6), dtype=np.uint8) for channels in (1, 3))
    write_rgb_pngs(tmp_path, grey, 1, 3)
    write_rgb_pngs(tmp_path, colour[:1], 3, 3)
    found = read_pngs(tmp_path, 2)
    assert found.shape == (3, 3, 6, 6)
    assert np.array_equal(found[:2], np.repeat(grey, 3, 1))
    assert np.array_equal(found[2], colour[0])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "1"])
def test_a_grey_png_of_any_mode_is_grey(tmp_path: Path, mode: str):
    pixels = np.array([[0, 255], [255, 0]], np.uint8)
    wide = Image.fromarray(pixels.astype(np.uint16) * 257)
    (wide if mode == "I;16" else Image.fromarray(pixels).convert(mode)).save(tmp_path / "a.png")
    assert np.array_equal(read_pngs(tmp_path, 1), pixels[None, None])


def test_transparent_pixels_and_animations_are_refused(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (4, 4), (9, 9, 9, 254)).save(path)
    with pytest.raises(DamagedFile, match=r"a\.png has transparent pixels"):
        read_pngs(tmp_path, 1)
    frames = [Image.new("L", (4, 4), grey) for grey in (0, 99)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(DamagedFile, match=r"a\.png is an animation"):
        read_pngs(tmp_path, 1)


def test_equal_images_are_equal_files(images: np.ndarray, tmp_path: Path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_rgb_pngs(folder, images[:2], 1, 2)
    assert (tmp_path / "a" / "00002.png").read_bytes() == (tmp_path / "b" / "00002.png").read_bytes()


@pytest.mark.parametrize(
    ("number", "count", "name"),
    [(1, 10_000, "00001.png"), (10_000, 10_000, "10000.png"), (1, 7, "00001.png"), (42, 100_000, "000042.png")],
)
def test_names_sort_like_their_numbers(number: int, count: int, name: str):
    assert png_name(number, count) == name


@pytest.mark.parametrize("size", [16, 28, 64])
def test_output_size_resizes(digits: ImageSet, tmp_path: Path, size: int):
    write_rgb_pngs(tmp_path, digits.images[:2], 1, 2, size)
    found = read_pngs(tmp_path, 1)
    assert found.shape == (2, 1, size, size)
    assert found[0].mean() == pytest.approx(digits.images[0].mean(), rel=0.05)


def test_a_folder_without_pngs_is_named(tmp_path: Path):
    with pytest.raises(MissingFile, match=f"{tmp_path} holds no PNG files"):
        read_pngs(tmp_path, 1)
    with pytest.raises(MissingFile, match="nowhere holds no PNG files"):
        read_pngs(tmp_path / "nowhere", 1)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_a_cut_png_is_damaged(digits: ImageSet, tmp_path: Path, share: float):
    write_rgb_pngs(tmp_path, digits.images[:3], 1, 3)
    content = (tmp_path / "00002.png").read_bytes()
    (tmp_path / "00002.png").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DamagedFile, match=r"00002\.png"):
        read_pngs(tmp_path, 2)


@pytest.mark.parametrize("place", range(0, 33, 4))
def test_a_png_with_a_flipped_byte_in_its_header_is_damaged(digits: ImageSet, tmp_path: Path, place: int):
    write_rgb_pngs(tmp_path, digits.images[:1], 1, 1)
    content = bytearray((tmp_path / "00001.png").read_bytes())
    content[place] ^= 0xFF
    (tmp_path / "00001.png").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"00001\.png"):
        read_pngs(tmp_path, 1)


def test_no_flipped_byte_shows_another_picture(tmp_path: Path, rng: np.random.Generator):
    pixels = rng.integers(256, size=(1, 1, 8, 8), dtype=np.uint8)
    write_rgb_pngs(tmp_path, pixels, 1, 1)
    path = tmp_path / "00001.png"
    content = path.read_bytes()
    refused = []
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :])
        try:
            assert np.array_equal(read_pngs(tmp_path, 1), pixels)
        except DamagedFile as error:
            refused.append(str(error))
    assert len(refused) > 0.9 * len(content)
    assert all("00001.png" in message for message in refused)


def test_images_of_mixed_sizes_are_damaged(digits: ImageSet, tmp_path: Path):
    write_rgb_pngs(tmp_path, digits.images[:2], 1, 3)
    write_rgb_pngs(tmp_path, digits.images[2:3], 3, 3, 32)
    with pytest.raises(DamagedFile, match=r"00003\.png is 32 × 32 pixels where 00001\.png is not"):
        read_pngs(tmp_path, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_stand_row_by_row_with_gaps_of_background(channels: int):
    images = np.broadcast_to(np.arange(1, 6, dtype=np.uint8)[:, None, None, None], (5, channels, 2, 3))
    expected = np.full((channels, 5, 11), 9, np.uint8)
    for i in range(5):
        row, column = divmod(i, 3)
        expected[:, 3 * row : 3 * row + 2, 4 * column : 4 * column + 3] = i + 1
    assert np.array_equal(tile(images, 3, gap=1, background=9), expected)


def test_enlarging_repeats_pixels_both_ways():
    found = enlarge(np.array([[[1, 2], [3, 4]]], np.uint8), 2)
    assert found.tolist() == [[[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]]


def test_a_single_image_survives_its_file(tmp_path: Path, images: np.ndarray):
    image = images[0, :, :4, :6]
    write_png(tmp_path / "deep" / "one.png", image)
    with Image.open(tmp_path / "deep" / "one.png") as found:
        assert found.size == (6, 4)
        assert found.tobytes() == to_pil(image).tobytes()
    found = read_pngs(tmp_path / "deep", 1)
    assert np.array_equal(found[0], image)


def test_grey_and_colour_are_turned_into_each_other(images: np.ndarray):
    grey, colour = to_grey(images), to_rgb(images)
    assert grey.shape == (12, 1, 10, 10)
    assert colour.shape == (12, 3, 10, 10)
    assert np.array_equal(to_grey(to_rgb(grey)), grey)
    if images.shape[1] == 3:
        assert np.array_equal(colour, images)
        luma = (images * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdims=True)
        assert np.abs(grey - luma).max() <= 1
    else:
        assert np.array_equal(grey, images)


def test_resizing_acts_on_every_channel_alone(images: np.ndarray):
    assert resize(images, 10) is images
    found = resize(images, 17)
    assert found.shape == (12, images.shape[1], 17, 17)
    assert np.array_equal(found[:, :1], resize(images[:, :1], 17))
