"""What was seen while the arms trained, as the page shows it: a plot for each figure, pictures over the steps, and what the rule says."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Literal

from PIL import Image

from rglcd.evaluation.embedding import embedded, enlarged_as
from rglcd.evaluation.looks import TEACHERS, Figures, Record, suspicion
from rglcd.evaluation.measurement import TEACHER
from rglcd.evaluation.pictures import cut
from rglcd.evaluation.plots import Layout, Level, Panel, Point, Series, layout
from rglcd.evaluation.wording import css_class, duration, label_of, steps

_MOST_PROMPTS: Final = 8
_MOST_LOOKS: Final = 8
"""Of which pictures are shown: the first, the last, and evenly between them. The folder has all."""

_MOST_CHARACTERS: Final = 4_000_000
"""Of all strips' pictures, which the page holds beside its grid."""

_OTHERS: Final = {
    "teacher_distance": ("Distance to the teacher’s picture", "root mean square of the pixels, from the same noise; 0 to 1"),
    "diversity": ("Diversity", "how far apart pictures of one prompt are, by features"),
    "high_frequency": ("Fine detail", "what a 3 × 3 blur takes away (RMS)"),
    "saturation": ("Colour", "mean distance from grey"),
}


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a ``data:`` URI, and what it is."""

    uri: str
    description: str


@dataclass(frozen=True)
class Filmstrip:
    """The pictures of one arm: a row for each prompt, the teacher's first, then a column for each look."""

    label: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Thumbnail, ...]], ...]


@dataclass(frozen=True)
class LookReport:
    """The section of the page."""

    remarks: tuple[str, ...]
    panels: tuple[Layout, ...]
    strips: tuple[Filmstrip, ...]
    enlarged: Literal["crisp", "smooth"]


def look_report(records: Mapping[str, Record]) -> LookReport | None:
    """What was seen of each arm; None where nobody looked."""
    seen = {arm: record for arm, record in records.items() if record.looks}
    if not seen:
        return None
    strips = tuple(_filmstrip(arm, record, most=_MOST_CHARACTERS // len(seen)) for arm, record in seen.items())
    side = max(Image.open(record.folder / TEACHERS).height for record in seen.values())
    return LookReport(
        remarks=tuple(_remark(arm, record) for arm, record in seen.items()),
        panels=tuple(map(layout, _panels(seen))),
        strips=strips,
        enlarged=enlarged_as(side),
    )


def _remark(arm: str, record: Record) -> str:
    """How often and how long it was looked at, and whether hacking was suspected, when first."""
    about, looks = record.about, record.looks
    took = sum(look.seconds for look in looks)
    said = f"{label_of(arm)}: {len(looks)} looks, one every {about.every} steps, took {duration(took)}"
    if about.trained_on is None:
        return f"{said}; no reward guided it."
    for end in range(1, len(looks) + 1):
        found = suspicion(looks[:end], trained_on=about.trained_on, held_out=about.held_out)
        if found is not None:
            return f"{said}. After step {looks[end - 1].step}, {found}."
    return f"{said}; reward hacking was not suspected."


def _panels(records: Mapping[str, Record]) -> list[Panel]:
    scorers = dict.fromkeys(name for record in records.values() for name in record.looks[0].figures.scores)
    trained_on = {record.about.trained_on for record in records.values()}
    held_out = {name for record in records.values() for name in record.about.held_out}
    titles = {
        name: (name, "the reward it is trained on" if name in trained_on else "held out" if name in held_out else "akin to the reward")
        for name in scorers
    }
    panels = []
    for name, (title, note) in (titles | _OTHERS).items():
        series = tuple(line for arm, record in records.items() if (line := _series(arm, record, name)) is not None)
        if series:
            end = max(point.x for line in series for point in line.points)
            teacher = _of(next(iter(records.values())).about.teacher, name)
            levels = () if name == "teacher_distance" or teacher is None else (_level(teacher),)
            panels.append(Panel(title, note, series, levels, (0.0, end / 2, end), "images seen", logarithmic=False))
    return panels


def _series(arm: str, record: Record, name: str) -> Series | None:
    points = [_point(look.images, values) for look in record.looks if (values := _of(look.figures, name)) is not None]
    return Series(label_of(arm), css_class(arm), tuple(points)) if points else None


def _of(figures: Figures, name: str) -> list[float] | None:
    """The figure called ``name`` of each prompt."""
    if name in _OTHERS:
        values: list[float] | None = getattr(figures, name)
        return values
    return figures.scores.get(name)


def _point(x: float, values: list[float]) -> Point:
    """The mean over the prompts, which are the same at each look: an interval would be about other prompts, and hide the change."""
    mean = fmean(values)
    return Point(x, mean, mean, mean)


def _level(values: list[float]) -> Level:
    mean = fmean(values)
    return Level(label_of(TEACHER), css_class(TEACHER), mean, mean, mean)


# --- pictures --------------------------------------------------------------------------------------


def _filmstrip(arm: str, record: Record, *, most: int) -> Filmstrip:
    about, shown = record.about, _shown(record)
    sheets = [(f"{label_of(TEACHER)}, {steps(about.teacher_steps)}", Image.open(record.folder / TEACHERS))]
    sheets += [(f"step {step:,}", Image.open(record.thumbnails(step))) for step in shown]
    prompts = [cut(prompt) for prompt in about.prompts[:_MOST_PROMPTS]]
    uris = iter(embedded([_picture(sheet, row) for row in range(len(prompts)) for _, sheet in sheets], most=most))
    rows = tuple((prompt, tuple(Thumbnail(next(uris), f"{label_of(arm)}, {what}: {prompt}") for what, _ in sheets)) for prompt in prompts)
    return Filmstrip(label_of(arm), tuple(what for what, _ in sheets), rows)


def _shown(record: Record) -> list[int]:
    looks = [look.step for look in record.looks]
    if len(looks) <= _MOST_LOOKS:
        return looks
    return [looks[round(k * (len(looks) - 1) / (_MOST_LOOKS - 1))] for k in range(_MOST_LOOKS)]


def _picture(sheet: Image.Image, column: int) -> Image.Image:
    side = sheet.height
    return sheet.crop((column * side, 0, (column + 1) * side, side))
