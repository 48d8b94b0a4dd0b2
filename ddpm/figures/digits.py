"""Sheets, strips and animations of digits, crisp at any size, with labels."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm.files import atomic_path
from ddpm.images import enlarge, resize, tile, write_png

_PAPER, _INK = 255, 40
_GAP = 2
_FONT_SIZE = 15
_HOLD_SECONDS = 1.5
_FRAME_SECONDS = 0.04
_GREYS = 16  # of the animation: noise does not compress, and the eye needs no more


def sample_sheet(path: Path, images: np.ndarray, columns: int, scale: int) -> None:
    """The first ``columns``² of uint8 images [n, h, w], or as many as there are, as one sheet. Raises OSError."""
    write_png(path, enlarge(tile(images[: columns**2], columns, _GAP, background=64), scale))


def side_by_side(path: Path, real: np.ndarray, generated: np.ndarray, columns: int, scale: int) -> None:
    """Real digits left, generated ones right, labelled: uint8 images [n, h, w]. Raises OSError."""
    sheets = [enlarge(tile(part[: columns**2], columns, _GAP, background=64), scale) for part in (real, generated)]
    labelled = [_with_caption(sheet, caption) for sheet, caption in zip(sheets, ("real", "generated"), strict=True)]
    height = max(len(sheet) for sheet in labelled)
    left, right = (np.pad(part, ((0, height - len(part)), (0, 0)), constant_values=_PAPER) for part in labelled)
    gap = np.full((height, 12 * scale), _PAPER, np.uint8)
    write_png(path, np.concatenate([left, gap, right], 1))


def closest_pairs(path: Path, generated: np.ndarray, nearest: np.ndarray, columns: int, scale: int) -> None:
    """Each generated image left of the training image nearest to it: uint8 [n, h, w], both. Raises OSError.

    columns: pairs a row.
    """
    pairs = np.concatenate([generated, resize(nearest, generated.shape[-1])], 2)
    sheet = enlarge(tile(pairs, columns, 3 * _GAP, background=128), scale)
    write_png(path, _with_caption(sheet, "generated, and the training image nearest to it"))


def reverse_strip(path: Path, x_t: np.ndarray, t: Sequence[int], snapshots: int, rows: int, scale: int) -> None:
    """``snapshots`` moments of the reverse process, left to right, one row an image, captioned with t.

    x_t: uint8 [frames, n, h, w]; t: the time of each frame, −1 for the finished images. Raises OSError.
    """
    chosen = np.linspace(0, len(x_t) - 1, min(snapshots, len(x_t))).round().astype(int)
    columns = []
    for frame in chosen:
        caption = "done" if t[frame] < 0 else f"t = {t[frame]}"
        columns.append(_with_caption(enlarge(tile(x_t[frame, :rows], 1, _GAP, background=64), scale), caption))
    gap = np.full((columns[0].shape[0], 3 * scale), _PAPER, np.uint8)
    parts = [part for column in columns for part in (column, gap)][:-1]
    write_png(path, np.concatenate(parts, 1))


def reverse_gif(path: Path, x_t: np.ndarray, seconds: float, scale: int) -> None:
    """The reverse process of uint8 x_t [frames, n, h, w] as an endless animation, the result held. Raises OSError.

    seconds: how long the way takes; frames are left out where there are more than a viewer can show in that time.
    """
    count = max(2, min(len(x_t), round(seconds / _FRAME_SECONDS)))
    chosen = np.linspace(0, len(x_t) - 1, count).round().astype(int)
    columns = math.isqrt(x_t.shape[1] - 1) + 1 if x_t.shape[1] > 1 else 1
    step = 255 // (_GREYS - 1)
    greys = ((x_t[chosen].astype(np.uint16) + step // 2) // step * step).astype(np.uint8)
    frames = [Image.fromarray(enlarge(tile(grey, columns, _GAP, background=4 * step), scale)) for grey in greys]
    durations = [round(1000 * seconds / count)] * (count - 1) + [round(1000 * (seconds / count + _HOLD_SECONDS))]
    with atomic_path(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _with_caption(sheet: np.ndarray, caption: str) -> np.ndarray:
    font = ImageFont.load_default(_FONT_SIZE)
    strip = Image.new("L", (sheet.shape[1], _FONT_SIZE + 8), _PAPER)
    ImageDraw.Draw(strip).text((sheet.shape[1] / 2, 3), caption, _INK, font, anchor="ma")
    return np.concatenate([np.asarray(strip), sheet], 0)
