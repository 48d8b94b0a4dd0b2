"""One image file of any kind as pixels of one size."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from ddpm.utils.errors import DamagedFile, DdpmError
from ddpm.utils.registry import Registry

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
_ORIENTATION = 0x0112  # of EXIF; from 5 on, width and height are exchanged
_RESAMPLING = Image.Resampling.BICUBIC

Colour = tuple[int, int, int]

# An entry is called with an RGB image, the side in pixels and the background; it returns a square image.
RESIZINGS: Registry[Callable[[Image.Image, int, Colour], Image.Image]] = Registry("way to make images square")


@RESIZINGS.register("crop")
def crop(image: Image.Image, size: int, background: Colour) -> Image.Image:  # noqa: ARG001
    """The largest square in the middle."""
    return ImageOps.fit(image, (size, size), _RESAMPLING)


@RESIZINGS.register("pad")
def pad(image: Image.Image, size: int, background: Colour) -> Image.Image:
    """The whole image in the middle of the background."""
    return ImageOps.pad(image, (size, size), _RESAMPLING, color=background)


@RESIZINGS.register("stretch")
def stretch(image: Image.Image, size: int, background: Colour) -> Image.Image:  # noqa: ARG001
    """The whole image, its proportions changed."""
    return image.resize((size, size), _RESAMPLING)


def parse_colour(name: str) -> Colour:
    """A colour by name or as #rrggbb. Raises DdpmError."""
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise DdpmError(f'data.background={name} is no colour: take one such as white, or "#ff8000".') from error
    return red, green, blue


def decode(path: Path, size: int, resize: str, background: Colour) -> tuple[np.ndarray, tuple[int, int]]:
    """A PNG, JPEG or WebP file as uint8 [3, size, size], and its own (width, height), upright.

    Told by its content, not by its name. An EXIF orientation is applied; of the pictures that a camera keeps in one
    JPEG (MPO) the first is read; 16-bit grey is rounded to 8 bits, of 16-bit colours Pillow keeps the upper 8;
    palettes, CMYK and grey become RGB; what is transparent shows the background. Raises DamagedFile, which names no
    file, for what is none of these, broken or an animation; OSError.
    """
    content = path.read_bytes()
    try:
        if content.startswith(b"\x89PNG"):
            # Pillow itself compares no checksum of the pixels: a flipped bit would be another picture.
            Image.open(io.BytesIO(content), formats=["PNG"]).verify()
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        # Pillow tells a JPEG of several pictures by the format MPO: a photograph and its preview or other eye.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise DamagedFile("an animation")
        width, height = image.size if image.getexif().get(_ORIENTATION, 1) < 5 else image.size[::-1]
        # A JPEG file is decoded at a half, quarter or eighth where that is plenty.
        image.draft("RGB", (2 * size, 2 * size))
        square = RESIZINGS[resize](as_rgb(ImageOps.exif_transpose(image), background), size, background)
        return np.asarray(square).transpose(2, 0, 1), (width, height)
    except (DamagedFile, MemoryError):
        raise
    except UnidentifiedImageError as error:  # Pillow's words have an address in memory, another one in every run
        raise DamagedFile("cannot identify image file: it is no PNG, JPEG or WebP image") from error
    except Exception as error:  # Pillow, zlib and struct raise half a dozen types for a damaged image
        raise DamagedFile(" ".join(str(error).split()) or type(error).__name__) from error


def as_rgb(image: Image.Image, background: Colour) -> Image.Image:
    """An image of any mode in RGB: grey of 16 bits rounded to 8, what is transparent laid on the background.

    Mode I, of 32 bits, is taken for 16: Pillow reads files of 16 bits into it, such as PGM.
    """
    if image.mode.startswith("I"):  # which Pillow's own conversions clip to 255
        deep, clear = np.asarray(image, np.int64).clip(0, 65535), image.info.get("transparency")
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
        if clear is not None:  # the one grey that is transparent, of 16 bits as well
            image.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    if not image.has_transparency_data:
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
