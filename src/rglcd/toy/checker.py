"""The toy's ground truth (the checker): measures what a picture shows and how neatly, with no learned weights.

The ground is the median of the border. Every sprite, in every side and both ways round, is fitted to the picture at every place
(least squares of one amplitude); the best fit tells subject, size and place. Neatness is the distance from the ideal picture: the
fitted sprite drawn anew on the ground that comes nearest; and its sharpness, because a distance alone likes the blurred mean of two
pictures better than either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rglcd.toy.drawing import GROUND_RGB
from rglcd.toy.scene import ATTRIBUTES, CANVAS, PLACES, SUBJECTS, parse
from rglcd.toy.sprites import ALL_SIDES, SIDES, sprites

UNDECIDED: Final = -1
MIN_FIT: Final = 0.5  # of the picture's energy above its ground, explained by the best sprite
MAX_GROUND_DISTANCE: Final = 0.25  # in RGB; the nearest two named grounds are .30 apart
EDGE: Final = 0.55  # of the way from the middle: farther is an edge
# Neat below: settled on real pictures through the codec (450 each): 99 % of neat ones are below .90, 99 % of flawed ones above .89.
MAX_UNTIDINESS: Final = 0.8
DETAIL_FLOOR: Final = 0.02  # of [0, 1]
# Of the ideal's detail: what the codec may take of a neat picture. What is missing beyond that counts so that a blurred real picture is
# as untidy as a pale one.
FORGIVEN_SOFTNESS: Final = 0.25
SOFTNESS_WEIGHT: Final = 2.0
_CHUNK: Final = 64


@dataclass(frozen=True)
class Measured:
    """What B pictures show: attribute values by number (B, 4), `UNDECIDED` where none fits; and how untidy they are (B,).

    `untidiness` is the root mean square distance from the ideal picture, over the sprite's detail (what a blur takes from it) and a
    floor, and the share of that detail which is missing, beyond a quarter: 0 for the ideal. What a codec loses of a neat picture grows
    with detail; so does what is forgiven.
    """

    values: Tensor
    untidiness: Tensor


@dataclass(frozen=True)
class _Templates:
    """The sprites of one side, (K, 3, s, s) colours and (K, 1, s, s) covers, with the numbers of their subjects (K,)."""

    side: int
    colour: Tensor
    cover: Tensor
    subject: Tensor


def check(pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """Which attributes of the captions the pictures show: bool (B, 4), columns in the order of `ATTRIBUTES`.

    Args:
        pixels: (B, 3, 32, 32) in [0, 1].
        captions: one for each picture.

    Raises:
        InputError: a caption is not of the toy world.
    """
    return measure(pixels).values == caption_indices(captions).to(pixels.device)


def caption_indices(captions: Sequence[str]) -> Tensor:
    """The captions' attribute values by number: int64 (B, 4)."""
    return torch.tensor([parse(text).indices for text in captions])


class CheckerReward:
    """The checker as a reward: the share of five conditions that hold, a caption's four attributes and neatness; it has no gradient."""

    differentiable: Literal[False] = False
    range: tuple[float, float] = (0.0, 1.0)
    logit_scale: float = 5.0  # one condition more is one nat of preference
    text_width: int = len(ATTRIBUTES)

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "CheckerReward":
        """The checker as a scorer: it has no weights, and scores where its pixels are."""
        return cls()

    def weights_sha256(self) -> None:
        """It has no weights."""
        return None

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """The captions' attribute values by number: int64 (B, 4).

        Raises:
            InputError: a caption is not of the toy world.
        """
        return caption_indices(captions)

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """The share of the conditions that pictures (B, 3, H, W) in [0, 1] meet: (B,). Another size than 32 is averaged to it."""
        seen = measure(F.adaptive_avg_pool2d(pixels, CANVAS))
        right = (seen.values == text.to(pixels.device)).sum(1)
        return (right + (seen.untidiness < MAX_UNTIDINESS)).float() / (len(ATTRIBUTES) + 1)


@torch.no_grad()
def measure(pixels: Tensor) -> Measured:
    """Measure pictures (B, 3, 32, 32) in [0, 1]."""
    parts = [_measure(part.float().clamp(0, 1)) for part in torch.split(pixels, _CHUNK)]
    return Measured(*(torch.cat([getattr(part, name) for part in parts]) for name in Measured.__dataclass_fields__))


def _measure(pixels: Tensor) -> Measured:
    ground = _border(pixels).median(dim=2).values
    above = pixels - ground[:, :, None, None]
    fits = [_fit(above, ground, templates) for templates in _templates(pixels.device)]
    explained = torch.cat([fit.flatten(1) for fit in fits], dim=1)
    best = explained.max(dim=1)
    share = best.values / above.square().sum((1, 2, 3)).clamp(min=1e-6)
    side_number, template, row, column = _where(best.indices, fits)
    size = side_number // len(SIDES[0])
    subject = torch.stack([templates.subject for templates in _templates(pixels.device)])[side_number, template]
    sides = torch.tensor(ALL_SIDES, device=pixels.device)[side_number]
    named = torch.tensor(GROUND_RGB, device=pixels.device) / 255
    nearest = torch.cdist(ground, named).min(dim=1)
    place = _place(row, column, CANVAS - sides)
    seen = share > MIN_FIT
    columns = [values.where(seen, UNDECIDED) for values in (size, subject, place)]
    columns.append(nearest.indices.where(nearest.values < MAX_GROUND_DISTANCE, UNDECIDED))
    ideal = _redraw(side_number, template, row, column, named[nearest.indices])
    wanted = _rms(_detail(ideal))
    missing = 1 - _rms(_detail(pixels)) / wanted.clamp(min=1e-6)
    softness = (missing - FORGIVEN_SOFTNESS).clamp(min=0)
    untidiness = _rms(pixels - ideal) / (wanted + DETAIL_FLOOR) + SOFTNESS_WEIGHT * softness
    return Measured(torch.stack(columns, dim=1), untidiness)


def _detail(pictures: Tensor) -> Tensor:
    """What a pixel differs from the mean of its neighbourhood of nine."""
    return pictures - F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _fit(above: Tensor, ground: Tensor, templates: _Templates) -> Tensor:
    """How much of each picture's energy each sprite explains at each place: (B, K, h, w).

    A sprite on the ground g differs from it by d = p - a g; with the amplitude that fits best it explains <x - g, d>^2 / |d|^2.
    """
    colour, cover = templates.colour, templates.cover
    shown = F.conv2d(above, colour)
    count, height, width = colour.shape[0], *shown.shape[2:]
    covered = F.conv2d(above.flatten(0, 1)[:, None], cover).view(-1, 3, count, height, width)
    found = shown - torch.einsum("bc,bckhw->bkhw", ground, covered)
    energy = (
        colour.square().sum((1, 2, 3))
        - 2 * ground @ (colour * cover).sum((2, 3)).T
        + ground.square().sum(1, keepdim=True) * cover.square().sum((1, 2, 3))
    )
    return found.clamp(min=0).square() / energy.clamp(min=1e-6)[:, :, None, None]


def _where(number: Tensor, fits: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From a place among all fits, one after the other: the side's number, the template, its row and its column."""
    side = torch.zeros_like(number)
    template, row, column = side.clone(), side.clone(), side.clone()
    start = 0
    for order, fit in enumerate(fits):
        _, count, height, width = fit.shape
        here = (number >= start) & (number < start + count * height * width)
        place = number - start
        side = torch.where(here, order, side)
        template = torch.where(here, place // (height * width), template)
        row = torch.where(here, place // width % height, row)
        column = torch.where(here, place % width, column)
        start += count * height * width
    return side, template, row, column


def _place(row: Tensor, column: Tensor, way: Tensor) -> Tensor:
    """Which edge the subject lies at, by how much of its way it has gone; in the middle at none, undecided at two."""
    across, down = column * 2 / way - 1, row * 2 / way - 1
    edges = torch.stack([down < -EDGE, down > EDGE, across < -EDGE, across > EDGE], dim=1)
    number = edges.long().argmax(1)
    touching = edges.sum(1)
    return number.where(touching == 1, torch.where(touching == 0, PLACES.index("middle"), UNDECIDED))


def _redraw(side_number: Tensor, template: Tensor, row: Tensor, column: Tensor, ground: Tensor) -> Tensor:
    """The fitted sprites on their grounds: (B, 3, 32, 32)."""
    pictures = ground[:, :, None, None].repeat(1, 1, CANVAS, CANVAS)
    stored = _templates(ground.device)
    for picture, number, which, top, left in zip(
        pictures, side_number.tolist(), template.tolist(), row.tolist(), column.tolist(), strict=True
    ):
        sprite, side = stored[number], stored[number].side
        window = picture[:, top : top + side, left : left + side]
        window.copy_(sprite.colour[which] + (1 - sprite.cover[which]) * window)
    return pictures


def _rms(pictures: Tensor) -> Tensor:
    return pictures.square().mean((1, 2, 3)).sqrt()


def _border(pixels: Tensor) -> Tensor:
    edges = [pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, 1:-1, 0], pixels[:, :, 1:-1, -1]]
    return torch.cat(edges, dim=2)


@cache
def _templates(device: torch.device) -> tuple[_Templates, ...]:
    """Of every side: every subject, then every subject flipped."""
    stored = []
    for side in ALL_SIDES:
        drawn = torch.stack([torch.from_numpy(sprites()[subject, side]) for subject in range(len(SUBJECTS))])
        drawn = drawn.permute(0, 3, 1, 2).float().div(255).to(device)
        both = torch.cat([drawn, drawn.flip(3)])
        subject = torch.arange(len(SUBJECTS), device=device).repeat(2)
        stored.append(_Templates(side, both[:, :3].contiguous(), both[:, 3:].contiguous(), subject))
    return tuple(stored)
