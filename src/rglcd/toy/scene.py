"""The toy dataset's scenes: one coloured shape on a 32 x 32 canvas, its caption, and its drawing in integer arithmetic.

A caption is ambiguous, as real captions are: a triangle may point up or down, and the object lies anywhere along the named
edge. Without that, the mean of all pictures of a caption would itself be a correct picture, one denoising step would draw
it, and there would be nothing to distil.

A drawing depends on (scene, seed) alone: no floating point and no library's random generator, so every machine and
every numpy draws the same bytes.
"""

import hashlib
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from enum import Enum
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rglcd.errors import InputError

CANVAS: Final = 32  # pixels
SIZES: Final = ("small", "large")
COLOURS: Final = ("red", "green", "blue", "yellow", "magenta", "cyan")
SHAPES: Final = ("circle", "square", "triangle")
POSITIONS: Final = ("top", "bottom", "left", "right")
BACKGROUNDS: Final = ("dark", "gray", "light")

ATTRIBUTES: Final = ("size", "colour", "shape", "position", "background")
VALUES: Final = (SIZES, COLOURS, SHAPES, POSITIONS, BACKGROUNDS)

# Lengths are in 1/64 pixel, so that a 4 x 4 grid of subpixel centres falls on integers.
UNIT: Final = 64
SUBPIXELS: Final = 4
RADII: Final = ((314, 339), (448, 474))  # small 4.9-5.3 px, large 7.0-7.4 px
EDGE_DISTANCE: Final = (608, 672)  # 9.5-10.5 px from the edge that the position names
CENTRE: Final = (832, 1216)  # 13-19 px along the other axis
SQUARE_HALF_SIDE: Final = (9, 10)  # of the radius; a triangle's box is below
TRIANGLE_APEX: Final = (23, 20)
TRIANGLE_BASE: Final = (15, 20)
TRIANGLE_HALF_WIDTH: Final = (23, 20)
DIAGONAL: Final = (99, 70)  # of a square's side

COLOUR_RGB: Final = ((220, 35, 35), (35, 190, 35), (40, 60, 225), (225, 215, 30), (205, 40, 205), (30, 205, 215))
BACKGROUND_LEVELS: Final = (31, 128, 224)
JITTER: Final = 10  # of 255, on each colour channel and on the background's level

_CAPTION = re.compile(r"a ({}) ({}) ({}) at the ({}) on a ({}) background".format(*("|".join(values) for values in VALUES)))
_MASK_64 = (1 << 64) - 1


class Turns(Enum):
    """Which of its four orientations each shape may take, as a mask of two random bits: circle, square, triangle."""

    USUAL = (0b00, 0b00, 0b10)  # what a caption means: upright squares, triangles up or down
    ALL = (0b11, 0b11, 0b11)  # squares on a corner too, triangles in all four directions


@dataclass(frozen=True, order=True)
class Scene:
    """What a caption says: one value of every attribute."""

    size: str
    colour: str
    shape: str
    position: str
    background: str

    @property
    def indices(self) -> tuple[int, ...]:
        """The value's place in each attribute's list, in the order of `ATTRIBUTES`."""
        return tuple(values.index(value) for values, value in zip(VALUES, astuple(self), strict=True))


@dataclass(frozen=True)
class Split:
    """Captions to train on, and held-out captions that only the judge is trained on."""

    train: tuple[Scene, ...]
    held_out: tuple[Scene, ...]


def caption(scene: Scene) -> str:
    """The scene in words."""
    return f"a {scene.size} {scene.colour} {scene.shape} at the {scene.position} on a {scene.background} background"


@cache
def parse(text: str) -> Scene:
    """The scene a caption describes.

    Raises:
        InputError: the caption is not one of the toy world's 432.
    """
    match = _CAPTION.fullmatch(text)
    if match is None:
        raise InputError(f"caption {text!r} is not of the toy world; write it like {caption(all_scenes()[0])!r}")
    return Scene(*match.groups())


@cache
def all_scenes() -> tuple[Scene, ...]:
    """The 432 scenes, in lexicographic order of the attributes' lists."""
    return tuple(
        Scene(size, colour, shape, position, background)
        for size in SIZES
        for colour in COLOURS
        for shape in SHAPES
        for position in POSITIONS
        for background in BACKGROUNDS
    )


@cache
def split() -> Split:
    """A quarter held out, exactly: whatever the other values are, one position of the four makes the sum divisible."""
    held_out = tuple(scene for scene in all_scenes() if sum(scene.indices) % len(POSITIONS) == 0)
    return Split(train=tuple(scene for scene in all_scenes() if scene not in held_out), held_out=held_out)


def shuffled(scenes: tuple[Scene, ...], salt: str) -> list[Scene]:
    """The scenes in the order of their captions' salted digests: the same on every machine."""
    return sorted(scenes, key=lambda scene: hashlib.sha256(f"{salt}:{caption(scene)}".encode()).digest())


def draw(scene: Scene, seed: int) -> NDArray[np.uint8]:
    """One picture of the scene, (32, 32, 3) uint8; the seed turns it and jitters its place, radius, colour and background."""
    return np.asarray(draw_batch([scene], [seed])[0])


def draw_batch(scenes: Sequence[Scene], seeds: Sequence[int], *, turns: Turns = Turns.USUAL) -> NDArray[np.uint8]:
    """`draw` for many scenes at once: (B, 32, 32, 3) uint8.

    With `Turns.ALL` the pictures are those of a wider world, which the codec and the scorers learn, as they do outside the toy.
    """
    pictures = np.empty((len(scenes), CANVAS, CANVAS, 3), dtype=np.uint8)
    for start in range(0, len(scenes), 128):
        chunk = slice(start, start + 128)
        pictures[chunk] = _draw_chunk(np.array([scene.indices for scene in scenes[chunk]]), _words(seeds[chunk]), turns)
    return pictures


@cache
def world_digest() -> str:
    """One digest of the world as this code draws it: pictures and models of another world are made anew."""
    scenes = all_scenes()
    drawn = (draw_batch(scenes, range(len(scenes)), turns=turns).tobytes() for turns in Turns)
    return hashlib.sha256(b"".join(drawn)).hexdigest()


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """An (H, W, 3) uint8 picture as PNG with stored blocks: the bytes do not depend on a compressor's build."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))
    assert len(rows) < 1 << 16, "one stored block holds at most 65,535 bytes"
    stored = struct.pack("<BHH", 1, len(rows), len(rows) ^ 0xFFFF) + rows
    stream = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _words(seeds: Sequence[int]) -> NDArray[np.uint64]:
    """Eight random words for each seed, (B, 8): SplitMix64 (Steele, Lea, Flood 2014), which counts by its constant."""
    first = np.array([seed * 8 & _MASK_64 for seed in seeds], dtype=np.uint64)[:, None]
    counts = np.arange(1, 9, dtype=np.uint64)
    state = np.asarray((first + counts) * np.uint64(0x9E3779B97F4A7C15), dtype=np.uint64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _between(words: NDArray[np.uint64], low: NDArray[np.int32] | int, high: NDArray[np.int32] | int) -> NDArray[np.int32]:
    """Whole numbers in [low, high], as evenly as 32 random bits allow."""
    span = np.asarray(high - low + 1).astype(np.uint64)
    return np.asarray((((words >> np.uint64(32)) * span) >> np.uint64(32)).astype(np.int32) + low, dtype=np.int32)


def _draw_chunk(indices: NDArray[np.int64], words: NDArray[np.uint64], turns: Turns) -> NDArray[np.uint8]:
    size, colour, shape, position, background = indices.T
    radius = _between(words[:, 0], *np.array(RADII, dtype=np.int32)[size].T)
    near = _between(words[:, 1], *EDGE_DISTANCE)
    middle = _between(words[:, 2], *CENTRE)
    far = CANVAS * UNIT - near
    column = np.select([position == 2, position == 3], [near, far], middle)
    row = np.select([position == 0, position == 1], [near, far], middle)
    inks = np.array(COLOUR_RGB, dtype=np.int32)[colour] + _between(words[:, 3:6], -JITTER, JITTER)
    levels = np.array(BACKGROUND_LEVELS, dtype=np.int32)[background] + _between(words[:, 6], -JITTER, JITTER)
    turn = _between(words[:, 7], 0, 3) & np.array(turns.value, dtype=np.int32)[shape]
    covered = _coverage(shape, radius, turn, column, row)[..., None]
    full = SUBPIXELS * SUBPIXELS
    mixed = inks[:, None, None] * covered + levels[:, None, None, None] * (full - covered)
    return np.asarray((mixed + full // 2) // full, dtype=np.uint8)


def _coverage(
    shape: NDArray[np.int64], radius: NDArray[np.int32], turn: NDArray[np.int32], column: NDArray[np.int32], row: NDArray[np.int32]
) -> NDArray[np.int32]:
    """How many of a pixel's 16 subpixel centres lie inside the shape: (B, 32, 32)."""
    step = UNIT // SUBPIXELS
    grid = np.arange(CANVAS * SUBPIXELS, dtype=np.int32) * step + step // 2
    x = (grid - column[:, None].astype(np.int32))[:, None, :]
    y = (grid - row[:, None].astype(np.int32))[:, :, None]
    inside = np.empty((len(shape), grid.size, grid.size), dtype=bool)
    for number, test in enumerate((_in_circle, _in_square, _in_triangle)):
        chosen = shape == number
        inside[chosen] = test(x[chosen], y[chosen], radius[chosen, None, None], turn[chosen, None, None])
    blocks = inside.reshape(len(shape), CANVAS, SUBPIXELS, CANVAS, SUBPIXELS)
    return np.asarray(blocks.sum(axis=(2, 4), dtype=np.int32))


def _in_circle(x: NDArray[np.int32], y: NDArray[np.int32], radius: NDArray[np.int32], _turn: NDArray[np.int32]) -> NDArray[np.bool_]:
    return np.asarray(x * x + y * y <= radius * radius)


def _in_square(x: NDArray[np.int32], y: NDArray[np.int32], radius: NDArray[np.int32], turn: NDArray[np.int32]) -> NDArray[np.bool_]:
    half = _part(radius, SQUARE_HALF_SIDE)
    on_its_side = (np.abs(x) <= half) & (np.abs(y) <= half)
    on_a_corner = np.abs(x) + np.abs(y) <= _part(half, DIAGONAL)
    return np.where(turn % 2 == 0, on_its_side, on_a_corner)


def _in_triangle(x: NDArray[np.int32], y: NDArray[np.int32], radius: NDArray[np.int32], turn: NDArray[np.int32]) -> NDArray[np.bool_]:
    apex, base = _part(radius, TRIANGLE_APEX), _part(radius, TRIANGLE_BASE)
    half_width = _part(radius, TRIANGLE_HALF_WIDTH)
    along = np.select([turn == 0, turn == 1, turn == 2], [y, -x, -y], x)
    across = np.where(turn % 2 == 0, np.abs(x), np.abs(y))
    return np.asarray((across * (apex + base) <= half_width * (along + apex)) & (along <= base))


def _part(length: NDArray[np.int32], fraction: tuple[int, int]) -> NDArray[np.int32]:
    return np.asarray(length * fraction[0] // fraction[1], dtype=np.int32)
