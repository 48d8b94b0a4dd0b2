"""Images are uint8 [n, c, h, w] from the data set to the PNG: c = 1 grey or 3 RGB. Here their other forms."""

import io
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ddpm.utils.errors import DamagedFile, MissingFile
from ddpm.utils.files import atomic_path


def tile(images: np.ndarray, columns: int, gap: int = 2, background: int = 0) -> np.ndarray:
    """Lay images [n, c, h, w] out row by row with ``gap`` pixels between them: one uint8 image [c, H, W]."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    grid = np.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), background, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        grid[:, top : top + height, left : left + width] = image
    return grid


def enlarge(images: np.ndarray, scale: int) -> np.ndarray:
    """Repeat every pixel of [..., h, w] ``scale`` times both ways: crisp at any size."""
    return images.repeat(scale, -2).repeat(scale, -1)


def to_pil(image: np.ndarray) -> Image.Image:
    """One uint8 image [c, h, w] as Pillow's: mode L for one channel, RGB for three."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Images [n, c, h, w] with three channels, grey repeated: a view where it can be."""
    return np.broadcast_to(images, (len(images), 3, *images.shape[2:]))


def to_grey(images: np.ndarray) -> np.ndarray:
    """Images [n, c, h, w] with one channel: grey keeps its value exactly, colours become luma (ITU-R 601)."""
    if (images == images[:, :1]).all():
        return images[:, :1]
    return np.stack([np.asarray(to_pil(image).convert("L"))[None] for image in images])


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Images [n, c, h, w] at ``size`` × ``size`` pixels, resampled bicubically where that is not their own size."""
    if images.shape[2:] == (size, size):
        return images
    shape = (len(images), images.shape[1], size, size)
    planes = [Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC) for plane in _planes(images)]
    return np.stack([np.asarray(plane) for plane in planes]).reshape(shape)


def write_png(path: Path, image: np.ndarray) -> None:
    """Write one uint8 image [c, h, w] atomically. Raises OSError."""
    with atomic_path(path) as temporary:
        to_pil(image).save(temporary, format="PNG")


def png_name(number: int, count: int) -> str:
    """The file name of image ``number`` (from 1) of ``count``: five digits, more where count needs them."""
    return f"{number:0{max(5, len(str(count)))}d}.png"


def write_rgb_pngs(folder: Path, images: np.ndarray, first: int, count: int, size: int | None = None) -> None:
    """Write images [n, c, h, w] as RGB PNGs numbered ``first``, ``first`` + 1, … of ``count`` into ``folder``.

    size: pixels a side, resized bicubically where it is not the images' own. Raises OSError.
    """
    for number, image in enumerate(images if size is None else resize(images, size), first):
        to_pil(image).convert("RGB").save(folder / png_name(number, count), format="PNG", compress_level=1)


def png_paths(folder: Path) -> list[Path]:
    """The PNG files of ``folder``, in the order of their names."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == ".png")


def read_pngs(folder: Path, workers: int) -> np.ndarray:
    """Read every PNG of ``folder`` in the order of the names: uint8 [n, c, h, w], c = 1 where all of them are grey.

    16-bit grey is rounded to 8 bits; an alpha channel may be there if it is opaque everywhere: what is behind a
    transparent pixel nobody knows. Raises MissingFile when there are no PNGs, DamagedFile when one is broken, another
    format by its content, transparent, an animation or of another size than the first.
    """
    paths = png_paths(folder)
    if not paths:
        raise MissingFile(f"{folder} holds no PNG files")
    with ThreadPoolExecutor(workers) as pool:
        images = list(pool.map(_read_png, paths))
    for path, image in zip(paths, images, strict=True):
        if image.shape[1:] != images[0].shape[1:]:
            raise DamagedFile(f"{path} is {image.shape[2]} × {image.shape[1]} pixels where {paths[0].name} is not")
    if all(len(image) == 1 for image in images):
        return np.stack(images)
    return np.stack([to_rgb(image[None])[0] for image in images])


def _planes(images: np.ndarray) -> Iterable[np.ndarray]:
    return images.reshape(-1, *images.shape[2:])


def _read_png(path: Path) -> np.ndarray:
    """One PNG as uint8 [c, h, w], c = 1 where it is grey, in whatever mode it was written."""
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
            return ((np.asarray(image, np.uint32) + 128) // 257).astype(np.uint8)[None]
        rgb = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        return rgb[:1] if (rgb == rgb[:1]).all() else rgb
    except (DamagedFile, PermissionError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise DamagedFile(f"{path} is no PNG image") from error
    except Exception as error:  # Pillow, zlib and struct raise half a dozen types for a damaged image
        raise DamagedFile(f"{path} is no readable image ({error})") from error
