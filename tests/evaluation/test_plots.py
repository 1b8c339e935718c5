import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rglcd.evaluation.pages import figure_svg
from rglcd.evaluation.plots import FRAME, Level, Panel, Point, Series, thinned

SVG = "{http://www.w3.org/2000/svg}"

values = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 4))


def panel(*lines, levels=(), title="quality", logarithmic=True):
    series = tuple(Series(f"line {n}", "arm-rg", tuple(Point(2**k, y, y, y) for k, y in enumerate(line))) for n, line in enumerate(lines))
    return Panel(title, "a note", series, tuple(levels), (1, 2, 4), "steps", logarithmic)


def panel_svg(panel: Panel) -> str:
    """The one plot of a figure."""
    figure = ElementTree.fromstring(figure_svg([panel]))
    (plot,) = (element for element in figure.iter(f"{SVG}svg") if element.get("class") == "panel")
    for element in plot.iter():
        element.tag = element.tag.removeprefix(SVG)
    return ElementTree.tostring(plot, encoding="unicode")


@given(st.lists(values, min_size=1, max_size=4), values)
def test_all_marks_lie_within_the_view_box(line, level):
    svg = panel_svg(panel(line, levels=[Level("teacher", "arm-teacher", level, level, level)]))
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert -0.1 <= float(element.get(name, 0)) <= FRAME.width + 0.1
        for name in ("y", "y1", "y2", "cy"):
            assert -0.1 <= float(element.get(name, 0)) <= FRAME.height + 0.1


def test_higher_values_are_drawn_higher():
    root = ElementTree.fromstring(panel_svg(panel([0.2, 0.5, 0.9])))
    heights = [float(dot.get("cy")) for dot in root.iter("circle")]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3


def test_logarithmic_axis_spaces_doublings_equally():
    root = ElementTree.fromstring(panel_svg(panel([0.2, 0.5, 0.9])))
    a, b, c = (float(dot.get("cx")) for dot in root.iter("circle"))
    assert b - a == pytest.approx(c - b, abs=0.2)


def test_end_labels_do_not_overlap():
    root = ElementTree.fromstring(panel_svg(panel([0.1, 0.5], [0.2, 0.501], [0.9, 0.502])))
    heights = sorted(float(text.get("y")) for text in root.iter("text") if text.get("class", "").startswith("end"))
    assert len(heights) == 3
    assert all(after - before >= 12.9 for before, after in pairwise(heights))


@pytest.mark.parametrize(
    ("line", "labels"), [([0.05, 0.15], {"0.050", "0.075"}), ([3e-5, 9e-5], {"0.00002", "0.00010"}), ([0, 40], {"0", "10", "40"})]
)
def test_tick_labels_have_as_many_decimals_as_needed(line, labels):
    found = set(re.findall(r'class="tick"[^>]*end">([^<]*)<', panel_svg(panel(line))))
    assert labels <= found


def test_plot_titles_are_escaped():
    svg = panel_svg(panel([0.1, 0.2], title='<script>"&'))
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).get("aria-label").startswith('<script>"&')


def test_thinning_keeps_the_mean_and_drops_non_finite_values():
    xs = list(range(1000))
    ys = [float(x) if x % 7 else math.nan for x in xs]
    points = thinned(xs, ys, most=100)
    assert len(points) <= 100
    assert sum(point.y for point in points) / len(points) == pytest.approx(500, rel=0.02)
