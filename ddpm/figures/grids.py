"""Grids, strips and animations of uint8 images [n, c, h, w], grey or RGB of any size, every pixel crisp."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from ddpm.data.image_set import ImageSet
from ddpm.utils.files import atomic_path
from ddpm.utils.images import enlarge, resize, tile, to_pil, to_rgb, write_png

_GAP, _GRID = 2, 64  # between images: pixels of theirs, and their grey
_EMPTY = 235  # the grey of a cell without images
_FONT = ImageFont.load_default(15)
# Pillow's has no letters but those of English; matplotlib's has those of Latin, Greek and Cyrillic.
_LETTERS = ImageFont.truetype(get_data_path() + "/fonts/ttf/DejaVuSans.ttf", 13)
_LINE, _MARGIN = 23, 8  # pixels a line of text takes; beside texts
_HOLD_SECONDS, _FRAME_SECONDS = 1.5, 0.04
_GREYS, _COLOURS = 16, 128  # of the animation: noise does not compress, and the eye needs no more


def sample_grid(path: Path, images: np.ndarray, columns: int, scale: int) -> None:
    """The first ``columns``² images, or as many as there are. Raises OSError."""
    write_png(path, _grid(images[: columns**2], columns, scale))


def numbered(path: Path, images: np.ndarray, first: int, columns: int, scale: int) -> None:
    """All images, row by row, with their numbers: left of a row that of its first image, above a column what to add.

    first: the number of the first image of all. Raises OSError.
    """
    rows = [f"{number}" for number in range(first, first + len(images), columns)]
    panels = [_grid(images[column::columns], 1, scale) for column in range(min(columns, len(images)))]
    heads = [f"+{column}" for column in range(len(panels))]
    _write_page(path, panels, heads, _GAP * scale, labels=rows, label_gap=_GAP * scale)


def real_and_generated(path: Path, real: np.ndarray, generated: np.ndarray, columns: int, scale: int) -> None:
    """``columns``² of either, real ones left: evenly from among these, which may be in order of their classes.

    Generated ones from the first on. Raises OSError.
    """
    rows = np.linspace(0, len(real) - 1, min(len(real), columns**2)).astype(int)
    parts = _alike(real[rows], generated[: columns**2])
    _write_page(path, [_grid(part, columns, scale) for part in parts], ["real", "generated"], 12 * scale)


def closest_pairs(
    path: Path, generated: np.ndarray, training: ImageSet, nearest: pd.DataFrame, columns: int, scale: int, space: str
) -> None:
    """The generated images nearest to a training image, each left of it: ``columns`` pairs a class, one class a row.

    A pair belongs to the class of its training image; a class with fewer pairs has empty cells. nearest: columns image
    (from 1, of ``generated``), SPACE_index (from 0, of ``training``) and SPACE_distance. space: "feature" or "pixel".
    Raises OSError.
    """
    pairs = nearest.sort_values(f"{space}_distance", kind="stable")
    index = pairs[f"{space}_index"]
    row = pd.Series(training.labels[index], pairs.index)
    column = row.groupby(row).cumcount()
    shown = column < columns
    pairs, index, cell = pairs[shown], index[shown], (row * columns + column)[shown]
    real, sampled = _alike(training.images[index], generated[pairs["image"] - 1])
    side_by_side = np.concatenate([sampled, np.full_like(sampled[..., :1], 255), real], 3)
    cells = np.full((max(1, training.classes) * columns, *side_by_side.shape[1:]), _EMPTY, np.uint8)
    cells[cell] = side_by_side
    grid = enlarge(tile(cells, columns, 3 * _GAP, background=255), scale)
    labelled = "; rows: its class label" if training.classes else ""
    caption = f"closest pairs by {space} distance\nleft: generated, right: nearest training image{labelled}"
    _write_page(path, [grid], [caption], labels=training.class_names, label_gap=3 * _GAP * scale)


def reverse_strip(path: Path, x_t: np.ndarray, t: Sequence[int], snapshots: int, rows: int, scale: int) -> None:
    """``snapshots`` steps of the reverse process, left to right under their times, one image a row.

    x_t: uint8 [frames, n, c, h, w]; t: the time of each frame, −1 for the finished images. Raises OSError.
    """
    chosen = np.linspace(0, len(x_t) - 1, min(snapshots, len(x_t))).round().astype(int)
    captions = ["sample" if t[frame] < 0 else f"t = {t[frame]}" for frame in chosen]
    _write_page(path, [_grid(x_t[frame, :rows], 1, scale) for frame in chosen], captions, 3 * scale)


def reverse_gif(path: Path, x_t: np.ndarray, seconds: float, scale: int) -> None:
    """The reverse process, uint8 x_t [frames, n, c, h, w], as an endless animation, the samples held. Raises OSError.

    seconds: how long the process takes; frames are left out where there are more than a viewer can show in that time.
    """
    count = max(2, min(len(x_t), round(seconds / _FRAME_SECONDS)))
    chosen = np.linspace(0, len(x_t) - 1, count).round().astype(int)
    columns = math.isqrt(x_t.shape[1] - 1) + 1
    frames = _few_colours([tile(x_t[frame], columns, _GAP, _GRID) for frame in chosen])
    size = frames[0].width * scale, frames[0].height * scale
    first, *others = (frame.resize(size, Image.Resampling.NEAREST) for frame in frames)
    durations = [round(1000 * seconds / count)] * (count - 1) + [round(1000 * (seconds / count + _HOLD_SECONDS))]
    with atomic_path(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def _grid(images: np.ndarray, columns: int, scale: int) -> np.ndarray:
    return enlarge(tile(images, columns, _GAP, _GRID), scale)


def _alike(real: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with the size of the generated images, and in colour where either is."""
    real = resize(real, generated.shape[-1])
    return (real, generated) if real.shape[1] == generated.shape[1] else (to_rgb(real), to_rgb(generated))


def _few_colours(frames: list[np.ndarray]) -> list[Image.Image]:
    """Images [c, h, w] in the same few colours: evenly spaced greys, or a palette made for all frames together."""
    if len(frames[0]) == 1:
        step = 255 // (_GREYS - 1)
        return [to_pil(((frame.astype(np.uint16) + step // 2) // step * step).astype(np.uint8)) for frame in frames]
    palette = to_pil(np.concatenate(frames, 1)).quantize(_COLOURS, Image.Quantize.MEDIANCUT)
    return [to_pil(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]


def _write_page(
    path: Path,
    panels: Sequence[np.ndarray],
    captions: Sequence[str],
    gap: int = 0,
    labels: Sequence[str] = (),
    label_gap: int = 0,
) -> None:
    """Write panels [c, H, W] side by side, each below its caption, on white paper as wide as they all need.

    labels: of the rows, ``label_gap`` pixels apart, that the first panel has; they stand left of it.
    """
    top = _LINE * max(caption.count("\n") + 1 for caption in captions)
    left = _MARGIN + _text_width(*labels) + _MARGIN if labels else 0
    widths = [
        max(panel.shape[2], _text_width(caption) + _MARGIN) for panel, caption in zip(panels, captions, strict=True)
    ]
    size = left + sum(widths) + gap * (len(panels) - 1), top + max(panel.shape[1] for panel in panels)
    page = Image.new("L" if len(panels[0]) == 1 else "RGB", size, "white")
    draw = ImageDraw.Draw(page)
    pitch = (panels[0].shape[1] + label_gap) / max(1, len(labels))
    for row, label in enumerate(labels):
        middle = top + row * pitch + (pitch - label_gap) / 2
        draw.text((left - _MARGIN, middle), label, "black", _font(label), anchor="rm")
    for panel, caption, width in zip(panels, captions, widths, strict=True):
        draw.text((left + width / 2, 3), caption, "black", _font(caption), anchor="ma", align="center")
        page.paste(to_pil(panel), (left + (width - panel.shape[2]) // 2, top))
        left += width + gap
    with atomic_path(path) as temporary:
        page.save(temporary, format="PNG")


def _text_width(*texts: str) -> int:
    """Pixels that the longest line takes."""
    return max(math.ceil(_font(text).getlength(line)) for text in texts for line in text.split("\n"))


def _font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return _FONT if text.isascii() else _LETTERS
