"""Between model space and pixels, and between pixels and PNG files."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ddpm.errors import DamagedFile, MissingFile
from ddpm.files import atomic_path


def to_uint8(x: Tensor) -> np.ndarray:
    """Images [n, 1, h, w] in [-1, 1] (values outside are clipped) to uint8 pixels [n, h, w], rounded to nearest."""
    pixels = ((x[:, 0].float() + 1.0) * 127.5).round().clamp(0, 255)
    return pixels.cpu().numpy().astype(np.uint8)


def tile(images: np.ndarray, columns: int, gap: int = 2, background: int = 0) -> np.ndarray:
    """Lay uint8 images [n, h, w] out row by row with a gap between them; returns one uint8 image [H, W]."""
    count, height, width = images.shape
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), background, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def enlarge(images: np.ndarray, scale: int) -> np.ndarray:
    """Repeat every pixel of [..., h, w] ``scale`` times both ways: crisp at any size."""
    return images.repeat(scale, -2).repeat(scale, -1)


def write_png(path: Path, image: np.ndarray) -> None:
    """Write one uint8 image [h, w] (grey) or [h, w, 3] atomically. Raises OSError."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def png_name(number: int, count: int) -> str:
    """The file name of image ``number`` (from 1) of ``count``: five digits, more where count needs them."""
    return f"{number:0{max(5, len(str(count)))}d}.png"


def write_rgb_pngs(folder: Path, images: np.ndarray, first: int, count: int, size: int | None = None) -> None:
    """Write uint8 images [n, h, w] as RGB PNGs numbered ``first``, ``first`` + 1, … of ``count`` into ``folder``.

    size: pixels a side, resized bicubically where it is not the images' own. Raises OSError.
    """
    for number, pixels in enumerate(images, first):
        image = Image.fromarray(pixels)
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        image.convert("RGB").save(folder / png_name(number, count), format="PNG", compress_level=1)


def read_pngs(folder: Path, workers: int) -> np.ndarray:
    """Read every PNG of ``folder`` in the order of the names: uint8 [n, h, w, 3].

    Raises MissingFile when there are none, DamagedFile when one is broken or of another size than the first.
    """
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise MissingFile(f"{folder} holds no PNG files")
    with ThreadPoolExecutor(workers) as pool:
        images = list(pool.map(_read_rgb, paths))
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise DamagedFile(f"{path} is {image.shape[1]} × {image.shape[0]} pixels where {paths[0].name} is not")
    return np.stack(images)


def _read_rgb(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise DamagedFile(f"{path} is no readable image ({error})") from error
