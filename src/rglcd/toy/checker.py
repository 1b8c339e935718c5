"""The toy's ground truth (the checker): measures a picture's attributes, with no learned weights.

The object is segmented by how much of its ink each pixel holds; shape is the best of the templates, in every orientation,
with the segment's area and centroid, size its radius. An attribute that fits no value is `UNDECIDED`, which counts as wrong
for every caption.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from rglcd.toy.scene import (
    ATTRIBUTES,
    BACKGROUND_LEVELS,
    COLOUR_RGB,
    RADII,
    SQUARE_HALF_SIDE,
    TRIANGLE_APEX,
    TRIANGLE_BASE,
    TRIANGLE_HALF_WIDTH,
    UNIT,
    parse,
)

UNDECIDED: Final = -1
SIZE_CUT: Final = (RADII[0][1] + RADII[1][0]) / 2 / UNIT  # pixels
MIN_AREA: Final = 30.0  # pixels; the smallest small triangle covers 52
MIN_CHROMA: Final = 0.25
MIN_OVERLAP: Final = 0.75  # of picture and template, intersection over union; equal-area circle and square reach .83
MIN_OFFSET: Final = 3.0  # pixels from the middle
MAX_COLOUR_DISTANCE: Final = 0.35  # in RGB; neighbouring colours are .6 apart at least
MAX_LEVEL_DISTANCE: Final = 0.15
MAX_BACKGROUND_CHROMA: Final = 0.15

TEMPLATE_SHAPE: Final = (0, 1, 1, 2, 2, 2, 2)

HALF_SIDE: Final = SQUARE_HALF_SIDE[0] / SQUARE_HALF_SIDE[1]
APEX: Final = TRIANGLE_APEX[0] / TRIANGLE_APEX[1]
BASE: Final = TRIANGLE_BASE[0] / TRIANGLE_BASE[1]
HALF_WIDTH: Final = TRIANGLE_HALF_WIDTH[0] / TRIANGLE_HALF_WIDTH[1]


def check(pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """Which attributes of the captions the pictures show: bool (B, 5), columns in the order of `ATTRIBUTES`.

    Args:
        pixels: (B, 3, 32, 32) in [0, 1].
        captions: one for each picture.

    Raises:
        InputError: a caption is not of the toy world.
    """
    return measure(pixels) == caption_indices(captions).to(pixels.device)


def caption_indices(captions: Sequence[str]) -> Tensor:
    """The captions' attribute values by number: int64 (B, 5)."""
    return torch.tensor([parse(text).indices for text in captions])


@torch.no_grad()
def measure(pixels: Tensor) -> Tensor:
    """The attribute values the pictures show by number, `UNDECIDED` where none fits: int64 (B, 5)."""
    pixels = pixels.float().clamp(0, 1)
    ground = _border(pixels).median(dim=2).values
    ink, chroma = _ink(pixels)
    cover = _cover(pixels, ground, ink)
    mask = (cover > 0.5).float()
    area = mask.sum((1, 2))
    column, row = _centroid(mask, area)
    seen = (area >= MIN_AREA) & (chroma >= MIN_CHROMA)
    shape, radius = _shape(cover, area, column, row)
    size = (radius > SIZE_CUT).long()
    columns = [
        size.where(seen & (shape != UNDECIDED), UNDECIDED),
        _nearest(ink, torch.tensor(COLOUR_RGB) / 255, MAX_COLOUR_DISTANCE).where(seen, UNDECIDED),
        shape.where(seen, UNDECIDED),
        _position(column, row, pixels.shape[-1] / 2).where(seen, UNDECIDED),
        _background(ground),
    ]
    return torch.stack(columns, dim=1)


class CheckerReward:
    """The checker as a reward: the share of a caption's five attributes that are right, in [0, 1]; it has no gradient."""

    differentiable: Literal[False] = False
    range: tuple[float, float] = (0.0, 1.0)
    logit_scale: float = 5.0  # one condition more is one nat of preference
    text_width: int = len(ATTRIBUTES)

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "CheckerReward":
        """The checker as a scorer of kind ``toy-checker``: it has no weights, and scores where its pixels are."""
        return cls()

    def weights_sha256(self) -> None:
        """It has no weights."""
        return None

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """The captions' attribute values by number: int64 (B, 5).

        Raises:
            InputError: a caption is not of the toy world.
        """
        return caption_indices(captions)

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """The fraction of each caption's attributes that its picture shows: (B,)."""
        return (measure(pixels) == text.to(pixels.device)).float().mean(1)


def _border(pixels: Tensor) -> Tensor:
    edges = [pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, 1:-1, 0], pixels[:, :, 1:-1, -1]]
    return torch.cat(edges, dim=2)


def _ink(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The object's colour (B, 3), where the picture is most colourful, and that colour's chroma (B,)."""
    chroma = pixels.amax(1) - pixels.amin(1)
    inner = chroma > 0.75 * chroma.flatten(1).quantile(0.97, dim=1)[:, None, None]
    weight = inner.float().unsqueeze(1)
    ink = (pixels * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1)
    return ink, ink.amax(1) - ink.amin(1)


def _cover(pixels: Tensor, ground: Tensor, ink: Tensor) -> Tensor:
    """How much of each pixel is ink: its colour projected on the line from background to ink, (B, 32, 32) in [0, 1]."""
    axis = ink - ground
    along = ((pixels - ground[:, :, None, None]) * axis[:, :, None, None]).sum(1)
    return (along / axis.square().sum(1).clamp(min=1e-4)[:, None, None]).clamp(0, 1)


def _centroid(mask: Tensor, area: Tensor) -> tuple[Tensor, Tensor]:
    centres = torch.arange(mask.shape[-1], device=mask.device) + 0.5
    total = area.clamp(min=1)
    return (mask.sum(1) * centres).sum(1) / total, (mask.sum(2) * centres).sum(1) / total


def _shape(cover: Tensor, area: Tensor, column: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """The best template's number, `UNDECIDED` if it overlaps too little, and its radius in pixels."""
    centres = torch.arange(cover.shape[-1], device=cover.device) + 0.5
    x = (centres - column[:, None])[:, None, :]
    y = (centres - row[:, None])[:, :, None]
    radii = torch.stack(
        [
            (area / math.pi).sqrt(),
            (area / (2 * HALF_SIDE) ** 2).sqrt(),
            (area / (HALF_WIDTH * (APEX + BASE))).sqrt(),
        ],
        dim=1,
    )
    circle, square, triangle = radii[:, :, None, None].unbind(1)
    # Every way a shape can be turned is a template of its own; TEMPLATE_SHAPE says which shape that is.
    templates = torch.stack(
        [
            _circle(x, y, circle),
            _square(x, y, square),
            _square((x + y) * math.sqrt(0.5), (x - y) * math.sqrt(0.5), square),
            *(_triangle(across, along, triangle) for across, along in ((x, y), (y, -x), (x, -y), (y, x))),
        ],
        dim=1,
    )
    sharp = (2 * cover - 0.5).clamp(0, 1).unsqueeze(1)
    overlap = torch.minimum(templates, sharp).sum((2, 3)) / torch.maximum(templates, sharp).sum((2, 3)).clamp(min=1)
    best = overlap.max(dim=1)
    number = torch.tensor(TEMPLATE_SHAPE, device=cover.device)[best.indices]
    radius = radii.gather(1, number[:, None]).squeeze(1)
    return number.where(best.values > MIN_OVERLAP, UNDECIDED), radius


def _inside(distance: Tensor) -> Tensor:
    return (distance + 0.5).clamp(0, 1)


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return _inside(radius - (x.square() + y.square()).sqrt())


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return _inside(HALF_SIDE * radius - x.abs()) * _inside(HALF_SIDE * radius - y.abs())


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """`y` counts from the centroid, which lies (2 base - apex) / 3 radii below the shape's own middle."""
    y = y + radius * (2 * BASE - APEX) / 3
    slant = math.hypot(APEX + BASE, HALF_WIDTH)
    side = (HALF_WIDTH * (y + APEX * radius) - x.abs() * (APEX + BASE)) / slant
    return _inside(side) * _inside(BASE * radius - y)


def _nearest(values: Tensor, references: Tensor, limit: float) -> Tensor:
    distances = torch.cdist(values, references.to(values))
    best = distances.min(dim=1)
    return best.indices.where(best.values < limit, UNDECIDED)


def _position(column: Tensor, row: Tensor, middle: float) -> Tensor:
    across, down = column - middle, row - middle
    vertical = (down > 0).long()
    horizontal = 2 + (across > 0).long()
    number = vertical.where(down.abs() > across.abs(), horizontal)
    return number.where(torch.maximum(across.abs(), down.abs()) > MIN_OFFSET, UNDECIDED)


def _background(ground: Tensor) -> Tensor:
    grey = ground.mean(1, keepdim=True)
    level = _nearest(grey, torch.tensor(BACKGROUND_LEVELS)[:, None] / 255, MAX_LEVEL_DISTANCE)
    return level.where(ground.amax(1) - ground.amin(1) < MAX_BACKGROUND_CHROMA, UNDECIDED)
