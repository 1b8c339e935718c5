"""The first images of every sampler side by side: as data for the report page, and as one PNG."""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from PIL import Image, ImageDraw, ImageFont

from rglcd.evaluation.contact_sheet import sheet_image
from rglcd.evaluation.measurement import Sampler
from rglcd.evaluation.wording import label_of, steps

CRISP_SIDE = 128
"""Images up to this side are embedded as they are and enlarged without blur; larger ones are shrunk to :data:`_PREVIEW_SIDE`."""

_PREVIEW_SIDE = 320

_LONGEST_CAPTION = 240

_MIN_CELL = 96
"""Of the PNG, in pixels."""


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
class Picture:
    """An image as a ``data:`` URI, with what it is and its score."""

    uri: str
    description: str
    score: float


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
    def num_columns(self) -> int:
        """Of images, and of the gaps between groups."""
        return sum(len(group.steps) for group in self.groups) + len(self.groups) - 1


def picture_grid(pictures: Pictures) -> PictureGrid:
    """The grid of the report page."""
    models = [(who, tuple(members)) for who, members in groupby(pictures.sheets, key=lambda sampler: sampler.who)]
    return PictureGrid(
        judge=pictures.judge,
        enlarged="crisp" if pictures.side <= CRISP_SIDE else "smooth",
        groups=tuple(ColumnGroup(label_of(who), tuple(steps(member.num_steps) for member in members)) for who, members in models),
        rows=tuple(
            PictureRow(cut(caption), tuple(tuple(_picture(pictures, member, row) for member in members) for _, members in models))
            for row, caption in enumerate(pictures.captions)
        ),
    )


def _picture(pictures: Pictures, sampler: Sampler, row: int) -> Picture:
    image = sheet_image(pictures.sheets[sampler], row, side=pictures.side)
    return Picture(data_uri(image), f"{label_of(sampler.who)}, {steps(sampler.num_steps)}", pictures.scores[sampler][row])


def cut(caption: str) -> str:
    """``caption`` as a page shows it: a very long one's beginning."""
    return caption if len(caption) <= _LONGEST_CAPTION else caption[:_LONGEST_CAPTION] + "…"


def data_uri(image: Image.Image) -> str:
    """``image`` as a ``data:`` URI, of at most :data:`_PREVIEW_SIDE` pixels if it is not small."""
    stream = io.BytesIO()
    if image.width <= CRISP_SIDE:
        image.save(stream, format="PNG", optimize=True)
        kind = "png"
    else:
        image.resize((_PREVIEW_SIDE, _PREVIEW_SIDE), Image.Resampling.LANCZOS).save(stream, format="WEBP", quality=88)
        kind = "webp"
    return f"data:image/{kind};base64,{b64encode(stream.getvalue()).decode()}"


def grid_png(sheets: Mapping[Sampler, Image.Image], captions: Sequence[str], *, side: int) -> Image.Image:
    """The contact sheet for READMEs: a row per prompt, a column per sampler."""
    scale = max(1, _MIN_CELL // side)
    cell, gap, header, text = side * scale, 6, 40, 20
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
