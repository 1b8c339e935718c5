import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rglcd.evaluation.plots import HEIGHT, WIDTH, Level, Panel, Point, Series, panel_svg, thinned

values = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 4))


def panel(*lines, levels=(), title="quality", logarithmic=True):
    series = tuple(Series(f"line {n}", "arm-rg", tuple(Point(2**k, y, y, y) for k, y in enumerate(line))) for n, line in enumerate(lines))
    return Panel(title, "a note", series, tuple(levels), (1, 2, 4), "steps", logarithmic)


@given(st.lists(values, min_size=1, max_size=4), values)
def test_everything_drawn_lies_within_the_view(line, level):
    svg = panel_svg(panel(line, levels=[Level("teacher", "arm-teacher", level, level, level)]))
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert -0.1 <= float(element.get(name, 0)) <= WIDTH + 0.1
        for name in ("y", "y1", "y2", "cy"):
            assert -0.1 <= float(element.get(name, 0)) <= HEIGHT + 0.1


def test_higher_values_are_drawn_higher():
    root = ElementTree.fromstring(panel_svg(panel([0.2, 0.5, 0.9])))
    heights = [float(dot.get("cy")) for dot in root.iter("circle")]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3


def test_doublings_are_equally_far_apart():
    root = ElementTree.fromstring(panel_svg(panel([0.2, 0.5, 0.9])))
    a, b, c = (float(dot.get("cx")) for dot in root.iter("circle"))
    assert b - a == pytest.approx(c - b, abs=0.2)


def test_labels_do_not_lie_on_each_other():
    root = ElementTree.fromstring(panel_svg(panel([0.1, 0.5], [0.2, 0.501], [0.9, 0.502])))
    heights = sorted(float(text.get("y")) for text in root.iter("text") if text.get("class", "").startswith("end"))
    assert len(heights) == 3
    assert all(after - before >= 12.9 for before, after in pairwise(heights))


@pytest.mark.parametrize(
    ("line", "labels"), [([0.05, 0.15], {"0.050", "0.075"}), ([3e-5, 9e-5], {"0.00002", "0.00010"}), ([0, 40], {"0", "10", "40"})]
)
def test_ticks_carry_the_decimals_they_need(line, labels):
    found = set(re.findall(r'class="tick"[^>]*end">([^<]*)<', panel_svg(panel(line))))
    assert labels <= found


def test_titles_are_escaped():
    svg = panel_svg(panel([0.1, 0.2], title='<script>"&'))
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).get("aria-label").startswith('<script>"&')


def test_thinning_keeps_mean_and_drops_what_is_not_finite():
    xs = list(range(1000))
    ys = [float(x) if x % 7 else math.nan for x in xs]
    points = thinned(xs, ys, most=100)
    assert len(points) <= 100
    assert sum(point.y for point in points) / len(points) == pytest.approx(500, rel=0.02)
