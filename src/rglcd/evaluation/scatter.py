"""Reward against distance: every sampler as a point with the intervals of both, and the line of those that none beats in both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.plots import FRAME, EndLabel, Frame, Scale, Tick, axis, pixel, tick_text

_LEGEND_GAP = 16
_LETTER = 7


@dataclass(frozen=True)
class Mark:
    """A sampler: ``across`` is better if small, ``up`` if great; an interval without width is not drawn."""

    who: str
    style: str
    text: str
    across: Estimate
    up: Estimate


@dataclass(frozen=True)
class Tradeoff:
    """A plot of two values of each sampler. Marks of one name are joined by a line; ``logarithmic`` spaces ``across`` by factors."""

    title: str
    note: str
    across: str
    up: str
    marks: tuple[Mark, ...]
    logarithmic: bool


@dataclass(frozen=True)
class PlacedMark:
    """A point, the ends of its intervals in pixels, and what is written beside it, from ``text_at`` on."""

    style: str
    text: str
    x: float
    y: float
    text_at: tuple[float, float]
    whisker: tuple[float, float] | None
    beam: tuple[float, float] | None


@dataclass(frozen=True)
class TradeoffLayout:
    """A :class:`Tradeoff` as marks at pixels of ``frame``; ``best`` names those on the Pareto line, whose corners are ``pareto``."""

    title: str
    note: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    pareto: tuple[tuple[float, float], ...]
    best: tuple[str, ...]
    marks: tuple[PlacedMark, ...]
    labels: tuple[EndLabel, ...]
    frame: Frame = FRAME


def pareto_front(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """The marks that no other beats, by their values: another as good in both and better in one. The smallest distance first."""
    front: list[Mark] = []
    for mark in sorted(marks, key=lambda one: (one.across.value, -one.up.value)):
        if not front or mark.up.value > front[-1].up.value or (mark.across.value, mark.up.value) == _values(front[-1]):
            front.append(mark)
    return tuple(front)


def tradeoff_layout(plot: Tradeoff) -> TradeoffLayout:
    """Where everything that ``plot`` shows is drawn."""
    marks = [mark for mark in plot.marks if all(map(math.isfinite, _values(mark)))]
    marks = [replace(mark, across=_logarithm(mark.across)) for mark in marks] if plot.logarithmic else marks
    across = [end for mark in marks for end in _ends(mark.across)]
    x_low, x_high, x_ticks = _factors(across) if plot.logarithmic else axis(across)
    y_low, y_high, y_ticks = axis([end for mark in marks for end in _ends(mark.up)])
    scale = Scale(x_low, x_high, y_low, y_high)
    texts = _beside([(*_at(mark, scale), mark.text) for mark in marks])
    front = pareto_front(marks)
    names = dict.fromkeys((mark.who, mark.style) for mark in marks)
    return TradeoffLayout(
        title=plot.title,
        note=plot.note,
        x_label=plot.across,
        y_label=plot.up,
        x_ticks=tuple(Tick(f"{10**tick:.4g}" if plot.logarithmic else tick_text(tick, x_ticks), pixel(scale.x(tick))) for tick in x_ticks),
        y_ticks=tuple(Tick(tick_text(tick, y_ticks), pixel(scale.y(tick))) for tick in y_ticks),
        lines=tuple((style, tuple(_at(mark, scale) for mark in marks if mark.who == who)) for who, style in names),
        pareto=_stairs(front, scale),
        best=tuple(f"{mark.who}, {mark.text}" for mark in front),
        marks=tuple(_placed(mark, scale, text_at) for mark, text_at in zip(marks, texts, strict=True)),
        labels=tuple(EndLabel(who, style, FRAME.top + 8.0 + _LEGEND_GAP * row) for row, (who, style) in enumerate(names)),
    )


def _logarithm(estimate: Estimate) -> Estimate:
    return Estimate(*map(math.log10, (estimate.value, estimate.low, estimate.high)))


def _factors(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Range and ticks of an axis of logarithms ``values``: ones, twos and fives of each decade."""
    first, last = math.floor(min(values)), math.ceil(max(values))
    steps = [power + math.log10(digit) for power in range(first, last + 1) for digit in (1, 2, 5)]
    low = max(step for step in steps if step <= min(values) + 1e-9)
    high = min(step for step in steps if step >= max(values) - 1e-9)
    return low, high, [step for step in steps if low <= step <= high]


def _beside(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float]]:
    """Where the text of each point (x, y, text) begins: at the first of four corners where it covers no point and no other text."""
    taken = [(x - 3.6, y - 3.6, x + 3.6, y + 3.6) for x, y, _ in points]
    found = []
    for x, y, text in points:
        width = _LETTER * len(text)
        corners = [(x + 6, y - 5), (x - 6 - width, y - 5), (x + 6, y + 12), (x - 6 - width, y + 12)]
        boxes = [(left, base - 8, left + width, base) for left, base in corners]
        free = [number for number, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)]
        chosen = free[0] if free else 0
        taken.append(boxes[chosen])
        found.append((pixel(corners[chosen][0]), pixel(corners[chosen][1])))
    return found


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _values(mark: Mark) -> tuple[float, float]:
    return mark.across.value, mark.up.value


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.low, estimate.value, estimate.high


def _at(mark: Mark, scale: Scale) -> tuple[float, float]:
    return pixel(scale.x(mark.across.value)), pixel(scale.y(mark.up.value))


def _stairs(front: Sequence[Mark], scale: Scale) -> tuple[tuple[float, float], ...]:
    """The edge of what some mark reaches: up to the first mark, then right and up to each, and on to the end."""
    corners: list[tuple[float, float]] = []
    for mark in front:
        x, y = _at(mark, scale)
        corners += [(x, corners[-1][1] if corners else float(FRAME.height - FRAME.bottom)), (x, y)]
    return (*corners, (float(FRAME.width - FRAME.right), corners[-1][1])) if corners else ()


def _placed(mark: Mark, scale: Scale, text_at: tuple[float, float]) -> PlacedMark:
    x, y = _at(mark, scale)
    across, up = mark.across, mark.up
    return PlacedMark(
        style=mark.style,
        text=mark.text,
        x=x,
        y=y,
        text_at=text_at,
        whisker=None if up.low == up.high else (pixel(scale.y(up.low)), pixel(scale.y(up.high))),
        beam=None if across.low == across.high else (pixel(scale.x(across.low)), pixel(scale.x(across.high))),
    )
