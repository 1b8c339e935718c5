"""Six flaws of pictures on the web, in integer arithmetic; none of them is noise, which few-step drawing would average away."""

from collections.abc import Sequence
from enum import IntFlag
from itertools import permutations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rglcd.toy.drawing import Drawing
from rglcd.toy.draws import between
from rglcd.toy.scene import CANVAS

KEPT_INK: Final = (90, 154)  # of 256: what paleness leaves of the difference from the ground
RAMP: Final = (26, 56)  # of 255, from one edge to the other
CAST: Final = (24, 42)  # of 255: one channel up, another one down
STAMP: Final = (5, 8)  # pixels: its sides, either way round
STAMP_COVER: Final = 166  # of 256
STAMP_LEVELS: Final = (236, 40)  # on dark grounds, on bright ones
BLUR: Final = (1, 10, 45, 120, 210, 252, 210, 120, 45, 10, 1)  # binomial, of 1024: a deviation of 1.6 pixels
NODES: Final = 5  # of the wobble's grid, each way
WOBBLE: Final = 600  # of 256: the largest shift of a node, in pixels each way

_BRIGHT: Final = 3 * 128
_FIRST_WORD: Final = 8  # the drawing has those before


class Flaw(IntFlag):
    """What may be wrong with a picture, apart from its caption."""

    NONE = 0
    PALE = 1
    UNEVEN = 2
    CAST = 4
    STAMP = 8
    BLUR = 16
    WOBBLE = 32


EACH: Final = (Flaw.PALE, Flaw.UNEVEN, Flaw.CAST, Flaw.STAMP, Flaw.BLUR, Flaw.WOBBLE)


def with_flaws(drawing: Drawing, flaws: Sequence[Flaw], words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The pictures with their flaws, (B, 32, 32, 3) uint8; how strong each is, and where, comes from the random words (B, 80)."""
    pixels, has = drawing.pixels.copy(), np.array([int(flaw) for flaw in flaws], dtype=np.int32)
    words = words[:, _FIRST_WORD:]
    for flaw, change in ((Flaw.WOBBLE, _wobble), (Flaw.BLUR, _blur), (Flaw.PALE, _pale), (Flaw.UNEVEN, _ramp), (Flaw.CAST, _cast)):
        chosen = (has & flaw) != 0
        if chosen.any():
            pixels[chosen] = change(pixels[chosen], drawing.grounds[chosen], words[chosen])
    chosen = (has & Flaw.STAMP) != 0
    if chosen.any():
        pixels[chosen] = _stamp(pixels[chosen], drawing.grounds[chosen], words[chosen])
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _pale(pixels: NDArray[np.int32], grounds: NDArray[np.int32], words: NDArray[np.uint64]) -> NDArray[np.int32]:
    kept = between(words[:, 0], *KEPT_INK)[:, None, None, None]
    return np.asarray(grounds + (((pixels - grounds) * kept + 128) >> 8))


def _ramp(pixels: NDArray[np.int32], grounds: NDArray[np.int32], words: NDArray[np.uint64]) -> NDArray[np.int32]:
    """A gradient of light over the whole picture: bright grounds darken towards one of eight sides, dark ones brighten."""
    strength = between(words[:, 1], *RAMP)[:, None, None]
    across, down = _DIRECTIONS[between(words[:, 2], 0, len(_DIRECTIONS) - 1)].T[:, :, None, None]
    line = np.arange(CANVAS, dtype=np.int32) * 2 - (CANVAS - 1)
    along = across * line[None, None, :] + down * line[None, :, None]
    reach = (np.abs(across) + np.abs(down)) * (CANVAS - 1)
    levels = (strength * (along + reach) + reach) // (2 * reach)
    return np.asarray(pixels + np.where(_bright(grounds), -levels, levels)[..., None], dtype=np.int32)


def _cast(pixels: NDArray[np.int32], _grounds: NDArray[np.int32], words: NDArray[np.uint64]) -> NDArray[np.int32]:
    tint = _TINTS[between(words[:, 3], 0, len(_TINTS) - 1)] * between(words[:, 4], *CAST)[:, None]
    return np.clip(pixels + tint[:, None, None, :], 0, 255)


def _stamp(pixels: NDArray[np.int32], grounds: NDArray[np.int32], words: NDArray[np.uint64]) -> NDArray[np.int32]:
    """A rectangle that half covers what is under it, anywhere in the picture."""
    upright = between(words[:, 5], 0, 1)
    height, width = np.where(upright == 1, STAMP[1], STAMP[0]), np.where(upright == 1, STAMP[0], STAMP[1])
    row = between(words[:, 6], 0, (CANVAS - height).astype(np.int32))[:, None, None]
    column = between(words[:, 7], 0, (CANVAS - width).astype(np.int32))[:, None, None]
    rows, columns = np.arange(CANVAS)[None, :, None], np.arange(CANVAS)[None, None, :]
    inside = (rows >= row) & (rows < row + height[:, None, None]) & (columns >= column) & (columns < column + width[:, None, None])
    level = np.where(_bright(grounds), STAMP_LEVELS[1], STAMP_LEVELS[0])[..., None]
    stamped = pixels + (((level - pixels) * STAMP_COVER + 128) >> 8)
    return np.where(inside[..., None], stamped, pixels).astype(np.int32)


def _blur(pixels: NDArray[np.int32], _grounds: NDArray[np.int32], _words: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Both ways, edges repeated; the rounding comes once, after both."""
    half = len(BLUR) // 2
    padded = np.pad(pixels, ((0, 0), (half, half), (half, half), (0, 0)), mode="edge")
    down, both = np.zeros_like(padded[:, :CANVAS]), np.zeros_like(pixels)
    for number, weight in enumerate(BLUR):
        down += weight * padded[:, number : number + CANVAS]
    for number, weight in enumerate(BLUR):
        both += weight * down[:, :, number : number + CANVAS]
    return np.asarray((both + (1 << 19)) >> 20, dtype=np.int32)


def _wobble(pixels: NDArray[np.int32], _grounds: NDArray[np.int32], words: NDArray[np.uint64]) -> NDArray[np.int32]:
    """A smooth warp: nodes eight pixels apart are shifted, pixels in between by what lies between; looked up bilinearly."""
    shifts = between(words[:, 8 : 8 + 2 * NODES * NODES], -WOBBLE, WOBBLE).reshape(len(pixels), 2, NODES, NODES)
    down, across = (_stretch(_stretch(shifts[:, way], 1), 2) >> 8 for way in (0, 1))
    line = np.arange(CANVAS, dtype=np.int32) * 256
    rows = np.clip(line[None, :, None] + down, 0, (CANVAS - 1) * 256)
    columns = np.clip(line[None, None, :] + across, 0, (CANVAS - 1) * 256)
    row, column = rows >> 8, columns >> 8
    low, right = (rows & 255)[..., None], (columns & 255)[..., None]
    picture = np.arange(len(pixels))[:, None, None]
    next_row, next_column = np.minimum(row + 1, CANVAS - 1), np.minimum(column + 1, CANVAS - 1)
    upper = pixels[picture, row, column] * (256 - right) + pixels[picture, row, next_column] * right
    lower = pixels[picture, next_row, column] * (256 - right) + pixels[picture, next_row, next_column] * right
    return np.asarray((upper * (256 - low) + lower * low + (1 << 15)) >> 16, dtype=np.int32)


def _stretch(nodes: NDArray[np.int32], axis: int) -> NDArray[np.int32]:
    """From five nodes to 32 pixels along an axis, times 16: a pixel's centre lies on an odd sixteenth of its cell."""
    cell = CANVAS // (NODES - 1)
    place = np.arange(CANVAS)
    first, share = place // cell, (2 * (place % cell) + 1).astype(np.int32)
    share = share.reshape([-1 if number == axis else 1 for number in range(nodes.ndim)])
    return np.asarray(nodes.take(first, axis) * (16 - share) + nodes.take(first + 1, axis) * share, dtype=np.int32)


def _bright(grounds: NDArray[np.int32]) -> NDArray[np.bool_]:
    return np.asarray(grounds.sum(-1) > _BRIGHT)


_DIRECTIONS: Final = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y], dtype=np.int32)
_TINTS: Final = np.array(list(permutations((1, 0, -1))), dtype=np.int32)
