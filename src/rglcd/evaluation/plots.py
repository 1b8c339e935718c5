"""Line plots: what a plot shows (:class:`Panel`), and where each mark lies (:class:`Layout`). ``templates/plot.svg`` draws it.

A series has the colour of its CSS class (``arm-rg`` ...), which the style sheet defines for light and dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A value at ``x`` with the ends of its interval (equal to it where there is none)."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """A named line. ``style`` is a CSS class."""

    name: str
    style: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Level:
    """A horizontal line across the panel, with the band of its interval."""

    name: str
    style: str
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """One plot. ``ticks`` are where the x axis is labelled; ``logarithmic`` spaces x by doublings."""

    title: str
    note: str
    series: tuple[Series, ...]
    levels: tuple[Level, ...]
    ticks: tuple[float, ...]
    x_label: str
    logarithmic: bool


@dataclass(frozen=True)
class Frame:
    """The view box of a plot and the margins around its plotting area, in pixels."""

    width: int = 460
    height: int = 290
    left: int = 44
    right: int = 68
    top: int = 46
    bottom: int = 40


FRAME = Frame()
_LABEL_GAP = 13


@dataclass(frozen=True)
class Tick:
    """A label of an axis, at a pixel of it."""

    text: str
    at: float


@dataclass(frozen=True)
class PlacedLevel:
    """A horizontal line at pixel ``y``, and the band from ``top`` downwards."""

    style: str
    y: float
    top: float
    height: float


@dataclass(frozen=True)
class Dot:
    """A point of a line; ``whisker`` is its interval in pixels."""

    x: float
    y: float
    whisker: tuple[float, float] | None


@dataclass(frozen=True)
class PlacedLine:
    """A series: the corners of its line, and the points that are marked."""

    style: str
    corners: tuple[tuple[float, float], ...]
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class EndLabel:
    """The name of a line, written at its right end."""

    name: str
    style: str
    y: float


@dataclass(frozen=True)
class Layout:
    """A panel as marks at pixels of ``frame``, rounded to tenths."""

    title: str
    note: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    levels: tuple[PlacedLevel, ...]
    lines: tuple[PlacedLine, ...]
    labels: tuple[EndLabel, ...]
    frame: Frame = FRAME


def layout(panel: Panel) -> Layout:
    """Where everything that ``panel`` shows is drawn."""
    low, high, y_ticks = axis(_y_values(panel))
    xs = [_x_value(panel, tick) for tick in panel.ticks] + [_x_value(panel, p.x) for s in panel.series for p in s.points]
    scale = Scale(min(xs), max(xs), low, high)
    return Layout(
        title=panel.title,
        note=panel.note,
        x_label=panel.x_label,
        x_ticks=tuple(Tick(_count(tick), pixel(scale.x(_x_value(panel, tick)))) for tick in panel.ticks),
        y_ticks=tuple(Tick(tick_text(tick, y_ticks), pixel(scale.y(tick))) for tick in y_ticks),
        levels=tuple(_placed_level(level, scale) for level in panel.levels),
        lines=tuple(_placed_line(series, panel, scale) for series in panel.series),
        labels=_end_labels(panel, scale),
    )


@dataclass(frozen=True)
class Scale:
    """From values to the pixels of the view box."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = (self.x_high - self.x_low) or 1.0
        return FRAME.left + 10 + (value - self.x_low) / span * (FRAME.width - FRAME.left - FRAME.right - 20)

    def y(self, value: float) -> float:
        span = (self.y_high - self.y_low) or 1.0
        return FRAME.height - FRAME.bottom - (value - self.y_low) / span * (FRAME.height - FRAME.top - FRAME.bottom)


def pixel(value: float) -> float:
    """A coordinate as the templates write it."""
    return round(value, 1)


def _placed_level(level: Level, scale: Scale) -> PlacedLevel:
    top, bottom = scale.y(level.high), scale.y(level.low)
    return PlacedLevel(level.style, pixel(scale.y(level.y)), pixel(top), pixel(bottom - top))


def _placed_line(series: Series, panel: Panel, scale: Scale) -> PlacedLine:
    dots = tuple(_dot(point, panel, scale) for point in series.points)
    # A curve of a training has hundreds of points and no intervals: its line is enough.
    is_marked = panel.logarithmic or len(series.points) == 1 or any(point.low != point.high for point in series.points)
    return PlacedLine(series.style, tuple((dot.x, dot.y) for dot in dots), dots if is_marked else ())


def _dot(point: Point, panel: Panel, scale: Scale) -> Dot:
    whisker = None if point.low == point.high else (pixel(scale.y(point.low)), pixel(scale.y(point.high)))
    return Dot(pixel(scale.x(_x_value(panel, point.x))), pixel(scale.y(point.y)), whisker)


def _end_labels(panel: Panel, scale: Scale) -> tuple[EndLabel, ...]:
    """Names at the right end, in place of a legend; moved up or down so that they do not overlap."""
    wanted = [(scale.y(s.points[-1].y), s.name, s.style) for s in panel.series if s.points]
    wanted += [(scale.y(level.y), level.name, level.style) for level in panel.levels]
    placed: list[float] = []
    for y, _, _ in sorted(wanted):
        placed.append(y if not placed else max(y, placed[-1] + _LABEL_GAP))
    overflow = max(0.0, (placed[-1] if placed else 0.0) - (FRAME.height - FRAME.bottom))
    labels = zip(placed, sorted(wanted), strict=True)
    return tuple(EndLabel(name, style, pixel(y - overflow + 4)) for y, (_, name, style) in labels)


def _x_value(panel: Panel, x: float) -> float:
    return math.log2(x) if panel.logarithmic else x


def _y_values(panel: Panel) -> list[float]:
    points = [value for series in panel.series for point in series.points for value in (point.y, point.low, point.high)]
    return points + [value for level in panel.levels for value in (level.low, level.high)]


def axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Range and round ticks of an axis that holds every one of ``values``."""
    values = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(values), max(values)
    rough = ((high - low) or abs(high) or 1.0) / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [step * k for k in range(first, max(last, first + 1) + 1)]
    return ticks[0], ticks[-1], ticks


def tick_text(tick: float, ticks: Sequence[float]) -> str:
    """``tick`` with as many decimals as tell it from its neighbours in ``ticks``."""
    step = ticks[1] - ticks[0]
    decimals = next((d for d in range(7) if math.isclose(round(step, d), step, rel_tol=1e-6)), None)
    # "+ 0.0" turns a negative zero into a zero.
    return f"{tick:.0e}" if decimals is None else f"{round(tick, decimals) + 0.0:.{decimals}f}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def thinned(xs: Sequence[float], ys: Sequence[float], *, most: int = 200) -> tuple[Point, ...]:
    """Means of neighbouring values, at most ``most`` of them, where both are finite."""
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    size = max(1, math.ceil(len(pairs) / most))
    groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return tuple(Point(x, y, y, y) for x, y in means)
