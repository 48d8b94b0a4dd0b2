"""Between model space and pixels, and between pixels and PNG files."""

import io
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
    for number, pixels in enumerate(images if size is None else resize(images, size), first):
        image = Image.fromarray(pixels).convert("RGB")
        image.save(folder / png_name(number, count), format="PNG", compress_level=1)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 images [n, h, w] at ``size`` × ``size`` pixels, resampled bicubically where that is not their own size."""
    if images.shape[1:] == (size, size):
        return images
    resized = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in resized])


def read_pngs(folder: Path, workers: int) -> np.ndarray:
    """Read every PNG of ``folder`` in the order of the names: uint8 [n, h, w, 3].

    16-bit grey is rounded to 8 bits; an alpha channel may be there if it is opaque everywhere: what is behind a
    transparent pixel nobody knows. Raises MissingFile when there are no PNGs, DamagedFile when one is broken, another
    format by its content, transparent, an animation or of another size than the first.
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
        content = path.read_bytes()
        # Pillow itself compares no checksum of the pixels: a flipped bit would be another picture.
        Image.open(io.BytesIO(content), formats=["PNG"]).verify()
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        if getattr(image, "is_animated", False):
            raise DamagedFile(f"{path} is an animation; one image is wanted")
        deep = image.mode.startswith("I")  # 16-bit grey, which Pillow's own conversions clip to 255
        if image.has_transparency_data and (deep or image.convert("RGBA").getchannel("A").getextrema() != (255, 255)):
            raise DamagedFile(f"{path} has transparent pixels; lay it on its background first")
        if deep:
            grey = (np.asarray(image, np.uint32) + 128) // 257
            return np.repeat(grey.astype(np.uint8)[..., None], 3, -1)
        return np.asarray(image.convert("RGB"))
    except (DamagedFile, PermissionError):
        raise
    except UnidentifiedImageError as error:
        raise DamagedFile(f"{path} is no PNG image") from error
    except Exception as error:  # Pillow, zlib and struct raise half a dozen types for a damaged image
        raise DamagedFile(f"{path} is no readable image ({error})") from error
