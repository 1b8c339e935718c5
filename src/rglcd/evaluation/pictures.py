"""The first images of every sampler side by side: as data for the report page, and as one PNG."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, Literal

from PIL import Image, ImageDraw, ImageFont

from rglcd.evaluation.contact_sheet import sheet_image
from rglcd.evaluation.embedding import embedded, enlarged_as
from rglcd.evaluation.measurement import Sampler
from rglcd.evaluation.wording import label_of, steps

_MOST_CHARACTERS: Final = 10_000_000
"""Of a page's pictures: with everything else it stays below 20 MB."""

_MOST_PICTURES: Final = 2_000
"""Of a page: a row more would not be looked at."""

_LONGEST_CAPTION = 240

_MIN_CELL = 96
_GAP, _HEADER, _TEXT = 6, 40, 20
"""Of the PNG, in pixels: between cells, above them, and for the caption of a row."""

_MOST_PIXELS: Final = 178_956_970
"""Of the PNG: Pillow, and who reads pictures with it, refuses more."""


@dataclass(frozen=True)
class Pictures:
    """The contact sheet of each sampler, of square images of ``side`` pixels, and the captions of the first rows to show.

    ``scores`` are ``judge``'s of each image.
    """

    sheets: Mapping[Sampler, Image.Image]
    side: int
    captions: Sequence[str]
    judge: str
    scores: Mapping[Sampler, Sequence[float]]


@dataclass(frozen=True)
class Shown:
    """An image to be embedded, with what it is and its score."""

    image: Image.Image
    description: str
    score: float


@dataclass(frozen=True)
class Picture:
    """An image as a ``data:`` URI, with what it is and its score.

    ``place`` counts the pictures of the grid from 0 in the order of its columns, ``blind_place`` in that of its rows shuffled.
    """

    uri: str
    description: str
    score: float
    place: int
    blind_place: int


@dataclass(frozen=True)
class ColumnGroup:
    """The columns of one model, one for each number of steps."""

    label: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class PictureRow:
    """A caption and its images, by group of columns."""

    caption: str
    groups: tuple[tuple[Picture, ...], ...]


@dataclass(frozen=True)
class PictureGrid:
    """A row for each caption, a column for each sampler."""

    judge: str
    enlarged: Literal["crisp", "smooth"]
    groups: tuple[ColumnGroup, ...]
    rows: tuple[PictureRow, ...]

    @property
    def num_pictures(self) -> int:
        """Of a row."""
        return sum(len(group.steps) for group in self.groups)

    @property
    def num_columns(self) -> int:
        """Of images, and of the gaps between groups."""
        return self.num_pictures + len(self.groups) - 1


def picture_grid(pictures: Pictures) -> PictureGrid:
    """The grid of the report page."""
    models = [(who, tuple(members)) for who, members in groupby(pictures.sheets, key=lambda sampler: sampler.who)]
    return grid_of(
        [
            (caption, [[_shown(pictures, member, row) for member in members] for _, members in models])
            for row, caption in enumerate(pictures.captions[: _most_rows(len(pictures.sheets))])
        ],
        judge=pictures.judge,
        groups=tuple(ColumnGroup(label_of(who), tuple(steps(member.num_steps) for member in members)) for who, members in models),
    )


def grid_of(rows: Sequence[tuple[str, Sequence[Sequence[Shown]]]], *, judge: str, groups: tuple[ColumnGroup, ...]) -> PictureGrid:
    """A grid of ``rows``, each a caption and its images by group of columns. It has at most :data:`_MOST_PICTURES`, and fits in a page."""
    rows = rows[: _most_rows(sum(len(group.steps) for group in groups))]
    every = [shown for _, of_groups in rows for group in of_groups for shown in group]
    uris = iter(embedded([shown.image for shown in every], most=_MOST_CHARACTERS))
    return PictureGrid(
        judge=judge,
        enlarged=enlarged_as(max((shown.image.width for shown in every), default=0)),
        groups=groups,
        rows=tuple(_row(number, caption, of_groups, uris) for number, (caption, of_groups) in enumerate(rows)),
    )


def _row(number: int, caption: str, groups: Sequence[Sequence[Shown]], uris: Iterator[str]) -> PictureRow:
    count = sum(map(len, groups))
    blind = list(range(number * count, (number + 1) * count))
    places = iter(tuple(blind))
    random.Random(f"{number}/{caption}").shuffle(blind)  # noqa: S311 (an order to look at, no secret; a study's is drawn elsewhere)
    blind_places = iter(blind)
    return PictureRow(
        cut(caption),
        tuple(
            tuple(Picture(next(uris), shown.description, shown.score, next(places), next(blind_places)) for shown in group)
            for group in groups
        ),
    )


def _most_rows(num_pictures: int) -> int:
    return max(1, _MOST_PICTURES // max(1, num_pictures))


def _shown(pictures: Pictures, sampler: Sampler, row: int) -> Shown:
    image = sheet_image(pictures.sheets[sampler], row, side=pictures.side)
    return Shown(image, f"{label_of(sampler.who)}, {steps(sampler.num_steps)}", pictures.scores[sampler][row])


def cut(caption: str) -> str:
    """``caption`` as a page shows it: a very long one's beginning."""
    return caption if len(caption) <= _LONGEST_CAPTION else caption[:_LONGEST_CAPTION] + "…"


def most_shown(num_columns: int, *, side: int) -> int:
    """How many rows of so many pictures of ``side`` pixels are shown at most, on the page or in the PNG."""
    return max(_most_rows(num_columns), most_png_rows(num_columns, side=side))


def most_png_rows(num_columns: int, *, side: int) -> int:
    """How many rows of so many pictures of ``side`` pixels a PNG is to have at most: one that is too large opens nowhere."""
    cell = side * max(1, _MIN_CELL // side)
    height = _MOST_PIXELS // (num_columns * (cell + _GAP) + _GAP)
    return max(1, (height - _HEADER - _GAP) // (cell + _GAP + _TEXT))


def grid_png(sheets: Mapping[Sampler, Image.Image], captions: Sequence[str], *, side: int) -> Image.Image:
    """The contact sheet for READMEs: a row per prompt, a column per sampler."""
    scale = max(1, _MIN_CELL // side)
    cell, gap, header, text = side * scale, _GAP, _HEADER, _TEXT
    width = len(sheets) * (cell + gap) + gap
    picture = Image.new("RGB", (width, header + len(captions) * (cell + gap + text) + gap), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=12)
    for column, (sampler, sheet) in enumerate(sheets.items()):
        left = gap + column * (cell + gap)
        draw.text((left, 6), label_of(sampler.who), fill="#222222", font=font)
        draw.text((left, 21), steps(sampler.num_steps), fill="#777777", font=font)
        for row in range(len(captions)):
            image = sheet_image(sheet, row, side=side)
            picture.paste(image.resize((cell, cell), Image.Resampling.NEAREST), (left, header + row * (cell + gap + text) + text))
    for row, caption in enumerate(captions):
        draw.text((gap, header + row * (cell + gap + text) + 3), _fitting(caption, font, width - 2 * gap), fill="#444444", font=font)
    return picture


def _fitting(caption: str, font: Any, width: int) -> str:
    # Pillow refuses to measure several lines; control characters have no glyph.
    line = "".join(character if character.isprintable() else " " for character in caption)[:400]
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
