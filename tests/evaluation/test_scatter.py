"""Reward against distance: the Pareto line is right, and every mark lies where its numbers are."""

from hypothesis import given
from hypothesis import strategies as st

from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.plots import FRAME
from rglcd.evaluation.scatter import Mark, Tradeoff, TradeoffLayout, pareto_front, tradeoff_layout

numbers = st.integers(1, 8).map(float)
points = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12)


def marks(found: list[tuple[float, float]]) -> tuple[Mark, ...]:
    return tuple(
        Mark("RG-LCM", "arm-rg", str(number), Estimate(x, 0.9 * x, 1.2 * x), Estimate(y, y - 0.5, y + 0.25))
        for number, (x, y) in enumerate(found)
    )


def placed(found: list[tuple[float, float]], *, logarithmic: bool = False) -> TradeoffLayout:
    return tradeoff_layout(Tradeoff("judge", "a note", "distance", "judge", marks(found), logarithmic=logarithmic))


@given(points)
def test_pareto_line_has_exactly_those_that_no_other_beats(found: list[tuple[float, float]]) -> None:
    def is_beaten(one: Mark) -> bool:
        x, y = one.across.value, one.up.value
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in found)

    every = marks(found)
    assert {mark.text for mark in pareto_front(every)} == {mark.text for mark in every if not is_beaten(mark)}


@given(points, st.booleans())
def test_no_mark_lies_above_the_stairs_and_all_within_the_view_box(found: list[tuple[float, float]], logarithmic: bool) -> None:
    layout = placed(found, logarithmic=logarithmic)
    for mark in layout.marks:
        reached = [y for x, y in layout.pareto if x <= mark.x]
        assert min(reached) <= mark.y
    xs = [end for mark in layout.marks for end in (mark.x, *(mark.beam or ()))] + [x for x, _ in layout.pareto]
    ys = [end for mark in layout.marks for end in (mark.y, *(mark.whisker or ()))] + [y for _, y in layout.pareto]
    assert 0 <= min(xs) <= max(xs) <= FRAME.width
    assert 0 <= min(ys) <= max(ys) <= FRAME.height


def test_better_is_up_and_to_the_left_with_both_intervals_drawn() -> None:
    better, worse = placed([(1, 4), (8, 2)]).marks
    assert better.x < worse.x
    assert better.y < worse.y
    assert better.whisker is not None
    assert better.beam is not None
    assert better.whisker[0] > better.y > better.whisker[1]
    assert better.beam[0] < better.x < better.beam[1]


def test_logarithmic_axis_spaces_doublings_equally_and_is_labelled_with_the_values() -> None:
    layout = placed([(2, 1), (4, 1), (8, 1)], logarithmic=True)
    one, two, four = (mark.x for mark in layout.marks)
    assert abs((two - one) - (four - two)) < 0.2
    assert [tick.text for tick in layout.x_ticks] == ["1", "2", "5", "10"]


def test_texts_beside_near_marks_do_not_cover_each_other() -> None:
    texts = [mark.text_at for mark in placed([(2, 4), (2.05, 4.02), (2.1, 4.0), (8, 1)]).marks]
    assert all(abs(a - c) >= 7 or abs(b - d) >= 8 for n, (a, b) in enumerate(texts) for c, d in texts[:n])


def test_a_distance_that_is_no_number_is_left_out() -> None:
    assert [mark.text for mark in placed([(1, 4), (float("nan"), 2)]).marks] == ["0"]
