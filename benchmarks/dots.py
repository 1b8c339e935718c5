"""Runs as rows, scores as panels: a dot for each seed, a bar at their mean. ``templates/dots.svg`` draws it in the report's style."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rglcd.evaluation.pages import stylesheet
from rglcd.rendering import html_environment

_LABELS, _PANEL, _GAP, _ROW, _TOP = 210, 190, 26, 24, 34
_FAR = 20.0
"""Median deviations from the median: a row whose mean is farther off would squeeze all others into a point."""


@dataclass(frozen=True)
class _Row:
    """A run in one panel: its dots and their mean in pixels, or the mean alone as a number where it is off the scale."""

    y: int
    dots: tuple[float, ...]
    mean: float
    off_scale: str | None


@dataclass(frozen=True)
class _Panel:
    title: str
    left: int
    low: float
    high: float
    rows: tuple[_Row, ...]

    @property
    def right(self) -> int:
        return self.left + _PANEL


def dots_svg(rows: Sequence[str], panels: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """An SVG of ``panels``: by title, for each of ``rows`` the values of its seeds.

    Each panel has a scale of its own; of a row that is far off it only the mean is written.
    """
    return (
        html_environment("benchmarks")
        .get_template("dots.svg")
        .render(
            width=_LABELS + len(panels) * (_PANEL + _GAP),
            height=_TOP + len(rows) * _ROW + 26,
            labels=[(label, _y(row)) for row, label in enumerate(rows)],
            panels=[_panel(title, values, left=_LABELS + n * (_PANEL + _GAP)) for n, (title, values) in enumerate(panels.items())],
            style=stylesheet(),
        )
    )


def _panel(title: str, values: Sequence[Sequence[float]], *, left: int) -> _Panel:
    near = _near(values)
    low, high = min(map(min, near)), max(map(max, near))

    def x(value: float) -> float:
        return round(left + 5 + (value - low) / ((high - low) or 1.0) * (_PANEL - 10), 1)

    rows = []
    for row, of in enumerate(values):
        mean = sum(of) / len(of)
        rows.append(_Row(_y(row), tuple(map(x, of)), x(mean), None if of in near else f"{statistics.mean(of):.3f}: off the scale"))
    return _Panel(title, left, low, high, tuple(rows))


def _near(values: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    means = [statistics.mean(of) for of in values]
    middle = statistics.median(means)
    deviation = statistics.median(abs(mean - middle) for mean in means)
    return [of for of, mean in zip(values, means, strict=True) if abs(mean - middle) <= _FAR * deviation]


def _y(row: int) -> int:
    return _TOP + row * _ROW + 12
