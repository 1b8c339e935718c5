"""Runs as rows, scores as panels: a dot for each seed, a bar at their mean. In the report's style, as one SVG."""

import html
import statistics
from collections.abc import Mapping, Sequence

from rglcd.evaluation.style import STYLE

_LABELS, _PANEL, _GAP, _ROW, _TOP = 210, 190, 26, 24, 34
_FAR = 20.0
"""Median deviations from the median: a row whose mean is farther off would squeeze all others into a point."""


def dots_svg(rows: Sequence[str], panels: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """An SVG of ``panels``: by title, for each of ``rows`` the values of its seeds.

    Each panel has a scale of its own; of a row that is far off it only the mean is written.
    """
    width, height = _LABELS + len(panels) * (_PANEL + _GAP), _TOP + len(rows) * _ROW + 26
    parts = [f'<text class="tick" x="0" y="{_y(row) + 4}">{html.escape(label)}</text>' for row, label in enumerate(rows)]
    for number, (title, values) in enumerate(panels.items()):
        left = _LABELS + number * (_PANEL + _GAP)
        near = _near(values)
        low, high = min(map(min, near)), max(map(max, near))
        parts.append(f'<text class="panel-title" x="{left}" y="16">{html.escape(title)}</text>')
        for end, anchor, x in ((low, "start", left), (high, "end", left + _PANEL)):
            parts.append(f'<text class="tick" x="{x}" y="{height - 6}" text-anchor="{anchor}">{end:.3f}</text>')
        for row, of in enumerate(values):
            parts.append(_row(row, of, left=left, low=low, high=high) if of in near else _far(row, of, left=left))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="panel" viewBox="0 0 {width} {height}"><style>{STYLE}</style>'
        f"{''.join(parts)}</svg>\n"
    )


def _near(values: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    means = [statistics.mean(of) for of in values]
    middle = statistics.median(means)
    deviation = statistics.median(abs(mean - middle) for mean in means)
    return [of for of, mean in zip(values, means, strict=True) if abs(mean - middle) <= _FAR * deviation]


def _far(row: int, values: Sequence[float], *, left: int) -> str:
    middle, text = left + _PANEL / 2, f"{statistics.mean(values):.3f}: off the scale"
    return f'<text class="tick" x="{middle}" y="{_y(row) + 4}" text-anchor="middle">{text}</text>'


def _row(row: int, values: Sequence[float], *, left: int, low: float, high: float) -> str:
    def x(value: float) -> float:
        return left + 5 + (value - low) / ((high - low) or 1.0) * (_PANEL - 10)

    y, mean = _y(row), x(sum(values) / len(values))
    rule = f'<line class="rule" x1="{left}" x2="{left + _PANEL}" y1="{y}" y2="{y}"/>'
    bar = f'<line class="whisker arm-rg" x1="{mean:.1f}" x2="{mean:.1f}" y1="{y - 7}" y2="{y + 7}"/>'
    return rule + bar + "".join(f'<circle class="dot arm-rg" cx="{x(value):.1f}" cy="{y}" r="3.2"/>' for value in values)


def _y(row: int) -> int:
    return _TOP + row * _ROW + 12
