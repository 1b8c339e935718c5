"""Draws neat pictures of scenes in integer arithmetic: a drawing depends on (scene, seed) alone, on every machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rglcd.toy.draws import between, random_words
from rglcd.toy.scene import CANVAS, Scene
from rglcd.toy.sprites import SIDES, sprites

GROUND_RGB: Final = ((244, 244, 244), (120, 190, 240), (150, 215, 160), (244, 172, 204), (28, 30, 56))
GROUND_JITTER: Final = 3  # of 255, one draw for all three channels
# Where the subject's box may lie, in sixteenths of the way that it has in the canvas.
NEAR: Final = (0, 2)  # the edge that the place names; the far edge is its mirror image
ALONG: Final = (5, 11)  # the other axis
MIDDLE: Final = (7, 9)
SIXTEENTHS: Final = 16
_TOP, _BOTTOM, _LEFT, _RIGHT = range(4)


@dataclass(frozen=True)
class Drawing:
    """Pictures (B, 32, 32, 3) in 0 to 255, and the colour of their grounds (B, 1, 1, 3); int32."""

    pixels: NDArray[np.int32]
    grounds: NDArray[np.int32]


def draw(scene: Scene, seed: int) -> NDArray[np.uint8]:
    """One neat picture of the scene, (32, 32, 3) uint8; the seed turns it and jitters its place, side and ground."""
    return np.asarray(draw_batch([scene], [seed])[0])


def draw_batch(scenes: Sequence[Scene], seeds: Sequence[int]) -> NDArray[np.uint8]:
    """`draw` for many scenes at once: (B, 32, 32, 3) uint8."""
    return compose(scenes, random_words(seeds)).pixels.astype(np.uint8)


def compose(scenes: Sequence[Scene], words: NDArray[np.uint64]) -> Drawing:
    """Each scene on its ground, by the first eight of its random words (B, 80)."""
    size, subject, place, ground = np.array([scene.indices for scene in scenes]).T
    side = np.array(SIDES, dtype=np.int32)[size, between(words[:, 0], 0, 1)]
    way = CANVAS - side
    near, along, middle = between(words[:, 1], *NEAR), between(words[:, 2], *ALONG), between(words[:, 3:5], *MIDDLE)
    far = SIXTEENTHS - near
    across = np.select([place == _LEFT, place == _RIGHT, place <= _BOTTOM], [near, far, along], middle[:, 0])
    down = np.select([place == _TOP, place == _BOTTOM, place <= _RIGHT], [near, far, along], middle[:, 1])
    column, row = _share(way, across), _share(way, down)
    flipped = between(words[:, 5], 0, 1)
    grounds = np.array(GROUND_RGB, dtype=np.int32)[ground] + between(words[:, 6], -GROUND_JITTER, GROUND_JITTER)[:, None]
    grounds = grounds[:, None, None, :]
    pixels = np.broadcast_to(grounds, (len(scenes), CANVAS, CANVAS, 3)).copy()
    for number, picture in enumerate(pixels):
        sprite = sprites()[int(subject[number]), int(side[number])].astype(np.int32)
        sprite = sprite[:, ::-1] if flipped[number] else sprite
        window = picture[row[number] : row[number] + side[number], column[number] : column[number] + side[number]]
        window[...] = over(sprite, window)
    return Drawing(pixels, grounds)


def over(sprite: NDArray[np.int32], ground: NDArray[np.int32]) -> NDArray[np.int32]:
    """A premultiplied sprite (..., 4) over colours (..., 3), rounded to whole levels (Porter and Duff 1984)."""
    cover = sprite[..., 3:]
    return np.minimum(255, sprite[..., :3] + ((255 - cover) * ground + 127) // 255)


def _share(way: NDArray[np.int32], sixteenths: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.asarray((way * sixteenths + SIXTEENTHS // 2) // SIXTEENTHS, dtype=np.int32)
