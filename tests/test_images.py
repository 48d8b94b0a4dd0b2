from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data.split import ImageSet
from ddpm.diffusion.process import normalize
from ddpm.errors import DamagedFile, MissingFile
from ddpm.images import enlarge, png_name, read_pngs, tile, to_uint8, write_png, write_rgb_pngs


def test_every_pixel_value_survives_model_space():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert np.array_equal(to_uint8(normalize(pixels)), pixels.numpy())


@pytest.mark.parametrize(
    ("value", "pixel"),
    [(-1.0, 0), (1.0, 255), (-7.0, 0), (7.0, 255), (0.0, 128), (-1 + 0.49 / 127.5, 0), (-1 + 0.51 / 127.5, 1)],
)
def test_model_space_is_rounded_to_the_nearest_pixel_and_clipped(value: float, pixel: int):
    found = to_uint8(torch.full((1, 1, 2, 2), value))
    assert found.dtype == np.uint8
    assert found.shape == (1, 2, 2)
    assert (found == pixel).all()


def test_pngs_are_numbered_rgb_and_28_pixels_wide(digits: ImageSet, tmp_path: Path):
    write_rgb_pngs(tmp_path, digits.images[:3], 9, 10_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00009.png", "00010.png", "00011.png"]
    with Image.open(tmp_path / "00010.png") as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        assert image.size == (28, 28)


def test_pixels_survive_the_files_in_the_order_of_the_numbers(digits: ImageSet, tmp_path: Path):
    images = digits.images[:120]
    write_rgb_pngs(tmp_path, images[50:], 51, 120)
    write_rgb_pngs(tmp_path, images[:50], 1, 120)
    (tmp_path / "notes.txt").write_text("not an image")
    found = read_pngs(tmp_path, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.repeat(images[..., None], 3, -1))


def test_equal_images_are_equal_files(digits: ImageSet, tmp_path: Path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_rgb_pngs(folder, digits.images[:2], 1, 2)
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
    assert found.shape == (2, size, size, 3)
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
    pixels = rng.integers(256, size=(8, 8), dtype=np.uint8)
    write_rgb_pngs(tmp_path, pixels[None], 1, 1)
    path = tmp_path / "00001.png"
    content = path.read_bytes()
    refused = []
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :])
        try:
            assert np.array_equal(read_pngs(tmp_path, 1)[0, ..., 0], pixels)
        except DamagedFile as error:
            refused.append(str(error))
    assert len(refused) > 0.9 * len(content)
    assert all("00001.png" in message for message in refused)


def test_images_of_mixed_sizes_are_damaged(digits: ImageSet, tmp_path: Path):
    write_rgb_pngs(tmp_path, digits.images[:2], 1, 3)
    write_rgb_pngs(tmp_path, digits.images[2:3], 3, 3, 32)
    with pytest.raises(DamagedFile, match=r"00003\.png is 32 × 32 pixels where 00001\.png is not"):
        read_pngs(tmp_path, 2)


def test_tiles_stand_row_by_row_with_gaps_of_background():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(3, 2)
    expected = np.full((5, 11), 9, np.uint8)
    for i in range(5):
        row, column = divmod(i, 3)
        expected[3 * row : 3 * row + 2, 4 * column : 4 * column + 3] = i + 1
    assert np.array_equal(tile(images, 3, gap=1, background=9), expected)


def test_enlarging_repeats_pixels_both_ways():
    found = enlarge(np.array([[[1, 2], [3, 4]]], np.uint8), 2)
    assert found.tolist() == [[[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]]


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3)])
def test_a_single_image_survives_its_file(tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...]):
    pixels = rng.integers(256, size=shape, dtype=np.uint8)
    write_png(tmp_path / "deep" / "one.png", pixels)
    with Image.open(tmp_path / "deep" / "one.png") as image:
        assert np.array_equal(np.asarray(image), pixels)
