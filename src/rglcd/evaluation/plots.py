"""Line plots as inline SVG: no script, no resource from elsewhere, colours from the page's own variables.

A series is drawn in the colour of its class (``arm-rg`` ...); the page's style sheet says which, in light and dark.
"""

import html
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


WIDTH, HEIGHT = 460, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 68, 46, 40
_LABEL_GAP = 13


def panel_svg(panel: Panel) -> str:
    """The panel as one ``<svg>`` element."""
    low, high, y_ticks = _y_axis(panel)
    xs = [_x_value(panel, tick) for tick in panel.ticks] + [_x_value(panel, p.x) for s in panel.series for p in s.points]
    scale = _Scale(min(xs), max(xs), low, high)
    parts = [
        f'<svg class="panel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(panel.title)}: {html.escape(panel.note)}">',
        f'<text class="panel-title" x="0" y="16">{html.escape(panel.title)}</text>',
        f'<text class="panel-note" x="0" y="32">{html.escape(panel.note)}</text>',
    ]
    for tick in y_ticks:
        y = scale.y(tick)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{_number(tick, y_ticks)}</text>')
    for tick in panel.ticks:
        x = scale.x(_x_value(panel, tick))
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{_count(tick)}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(panel.x_label)}</text>')
    parts += [_level_svg(level, scale) for level in panel.levels]
    parts += [_series_svg(series, panel, scale) for series in panel.series]
    parts.append(_end_labels(panel, scale))
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True)
class _Scale:
    """From values to the pixels of the view box."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = (self.x_high - self.x_low) or 1.0
        return _LEFT + 10 + (value - self.x_low) / span * (WIDTH - _LEFT - _RIGHT - 20)

    def y(self, value: float) -> float:
        span = (self.y_high - self.y_low) or 1.0
        return HEIGHT - _BOTTOM - (value - self.y_low) / span * (HEIGHT - _TOP - _BOTTOM)


def _level_svg(level: Level, scale: _Scale) -> str:
    top, bottom, y = scale.y(level.high), scale.y(level.low), scale.y(level.y)
    band = f'<rect class="band {level.style}" x="{_LEFT}" y="{top:.1f}" width="{WIDTH - _LEFT - _RIGHT}" height="{bottom - top:.1f}"/>'
    line = f'<line class="level {level.style}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return band + line


def _series_svg(series: Series, panel: Panel, scale: _Scale) -> str:
    placed = [(scale.x(_x_value(panel, p.x)), scale.y(p.y), scale.y(p.low), scale.y(p.high)) for p in series.points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in placed)
    parts = [f'<polyline class="line {series.style}" points="{line}"/>']
    has_intervals = any(p.low != p.high for p in series.points)
    for x, y, low, high in placed if has_intervals or panel.logarithmic else ():
        if low != high:
            parts.append(f'<line class="whisker {series.style}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<circle class="dot {series.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>')
    return "".join(parts)


def _end_labels(panel: Panel, scale: _Scale) -> str:
    """Names at the right end, moved apart so that no two lie on each other: no legend to look up."""
    wanted = [(scale.y(s.points[-1].y), s.name, s.style) for s in panel.series if s.points]
    wanted += [(scale.y(level.y), level.name, level.style) for level in panel.levels]
    placed: list[float] = []
    for y, _, _ in sorted(wanted):
        placed.append(y if not placed else max(y, placed[-1] + _LABEL_GAP))
    overflow = max(0.0, (placed[-1] if placed else 0.0) - (HEIGHT - _BOTTOM))
    labels = zip(placed, sorted(wanted), strict=True)
    return "".join(
        f'<text class="end {style}" x="{WIDTH - _RIGHT + 8}" y="{y - overflow + 4:.1f}">{html.escape(name)}</text>'
        for y, (_, name, style) in labels
    )


def _x_value(panel: Panel, x: float) -> float:
    return math.log2(x) if panel.logarithmic else x


def _y_axis(panel: Panel) -> tuple[float, float, list[float]]:
    """Range and round ticks that hold every point and interval."""
    values = [v for s in panel.series for p in s.points for v in (p.y, p.low, p.high)] + [v for e in panel.levels for v in (e.low, e.high)]
    values = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(values), max(values)
    rough = ((high - low) or abs(high) or 1.0) / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [step * k for k in range(first, max(last, first + 1) + 1)]
    return ticks[0], ticks[-1], ticks


def _number(tick: float, ticks: Sequence[float]) -> str:
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
