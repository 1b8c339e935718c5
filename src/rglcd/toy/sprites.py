"""The stored drawings of the subjects (sprites): premultiplied RGBA in four sides, scaled once and kept in `sprites.png`.

Each is one of Microsoft's Fluent emoji (MIT; `sprites-license.txt`). Nothing is scaled when the world is drawn: two builds of an
image library may differ by a level in what they scale.
"""

from functools import cache
from importlib import resources
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rglcd.toy.scene import SUBJECTS

SIDES: Final = ((14, 15), (21, 22))  # pixels of the box around the subject: small, large
ALL_SIDES: Final = tuple(side for pair in SIDES for side in pair)
FILE: Final = "sprites.png"


@cache
def sprites() -> dict[tuple[int, int], NDArray[np.uint8]]:
    """The sprite of every (subject's number, side in pixels): (side, side, 4) uint8, colours premultiplied by the last channel."""
    with resources.files("rglcd.toy").joinpath(FILE).open("rb") as file, Image.open(file) as strip:
        pixels = np.asarray(strip.convert("RGBA") if strip.mode != "RGBA" else strip)
    height = max(ALL_SIDES)
    found = {}
    for subject in range(len(SUBJECTS)):
        column = 0
        for side in ALL_SIDES:
            found[subject, side] = np.ascontiguousarray(pixels[subject * height : subject * height + side, column : column + side])
            column += side
    return found
