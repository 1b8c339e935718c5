"""The web-like mixture: neat pictures, flawed ones, and pictures with another scene's caption."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rglcd.toy.drawing import compose
from rglcd.toy.draws import between, random_words
from rglcd.toy.flaws import EACH, Flaw, with_flaws
from rglcd.toy.scene import Scene, all_scenes

_LAST_WORDS: Final = 8  # of each seed's random words: which kind a row is


@dataclass(frozen=True)
class Mixture:
    """Of a hundred rows, how many are flawed and how many have a wrong caption; the rest is neat and right."""

    flawed: int = 40
    wrong: int = 15


NEAT: Final = Mixture(flawed=0, wrong=0)
WEB: Final = Mixture()


@dataclass(frozen=True)
class Row:
    """A picture's row of the corpus: what is drawn, what its caption says, and its flaws."""

    shown: Scene
    claimed: Scene
    flaws: Flaw


def web_rows(scenes: Sequence[Scene], seeds: Sequence[int], mixture: Mixture = WEB) -> list[Row]:
    """What becomes of each scene: of a flawed row, one flaw or two; of a wrong one, a caption drawn from all of `scenes`."""
    words = random_words(seeds)[:, -_LAST_WORDS:]
    kind, pair = between(words[:, 0], 0, 99), between(words[:, 1], 0, 1)
    first, further = between(words[:, 2], 0, len(EACH) - 1), between(words[:, 3], 1, len(EACH) - 1)
    other = between(words[:, 4], 0, len(scenes) - 1)
    rows = []
    for number, scene in enumerate(scenes):
        flaws, claimed = Flaw.NONE, scene
        if kind[number] < mixture.flawed:
            flaws = EACH[first[number]]
            if pair[number]:
                flaws |= EACH[(first[number] + further[number]) % len(EACH)]
        elif kind[number] < mixture.flawed + mixture.wrong:
            claimed = scenes[int(other[number])]
        rows.append(Row(scene, claimed, flaws))
    return rows


def draw_rows(rows: Sequence[Row], seeds: Sequence[int]) -> NDArray[np.uint8]:
    """The rows' pictures, (B, 32, 32, 3) uint8: the bytes depend on what is shown, its flaws and the seeds alone."""
    parts = []
    for start in range(0, len(rows), 256):
        chunk, words = rows[start : start + 256], random_words(seeds[start : start + 256])
        parts.append(with_flaws(compose([row.shown for row in chunk], words), [row.flaws for row in chunk], words))
    return np.concatenate(parts)


def draw_pixels(rows: Sequence[Row], *, first_seed: int) -> Tensor:
    """The rows' pictures in [0, 1], (B, 3, 32, 32); row i has the seed `first_seed + i`."""
    pictures = torch.from_numpy(draw_rows(rows, range(first_seed, first_seed + len(rows))))
    # The permuted view keeps channels last in memory, where convolutions are faster on a CPU.
    return pictures.permute(0, 3, 1, 2).float().div(255)


def rows_of(scenes: Sequence[Scene], *, count: int, first_seed: int, mixture: Mixture) -> list[Row]:
    """`count` rows of the mixture: the scenes in turn, in an order that shuffles anew in every pass."""
    shown: list[Scene] = []
    turn = 0
    while len(shown) < count:
        order = np.argsort(random_words([number * 7919 + turn for number in range(len(scenes))])[:, 0], kind="stable")
        shown += [scenes[int(number)] for number in order]
        turn += 1
    return web_rows(shown[:count], range(first_seed, first_seed + count), mixture)


@cache
def world_digest() -> str:
    """One digest of the world as this code draws it: pictures and models of another world are made anew."""
    scenes = all_scenes()
    drawn = (draw_rows(web_rows(scenes, range(len(scenes)), mixture), range(len(scenes))) for mixture in (NEAT, Mixture(100, 0)))
    return hashlib.sha256(b"".join(pictures.tobytes() for pictures in drawn)).hexdigest()
