"""Progress is data: what is reported arrives, here or through a file, and costs nothing where nobody listens."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rglcd.progress import Event, json_lines_sink, read_event, report, reporting_to, track

WORDS = st.text(max_size=12)
COUNTS = st.integers(min_value=0, max_value=2**53)
EVENTS = st.builds(
    Event, task=WORDS, done=COUNTS, total=COUNTS, unit=WORDS, values=st.dictionaries(WORDS, st.floats(allow_nan=False), max_size=3)
)


@given(events=st.lists(EVENTS, max_size=5))
def test_progress_events_survive_a_file_of_json_lines(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    path = tmp_path_factory.mktemp("progress") / "progress.jsonl"
    path.touch()
    sink = json_lines_sink(path)
    for event in events:
        sink(event)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "", "every event ends its line"
    assert [read_event(line) for line in lines] == events


def test_progress_report_arrives_with_its_figures() -> None:
    heard: list[Event] = []
    with reporting_to(heard.append):
        report("draw", done=3, total=8, unit="images", loss=0.5)
    assert heard == [Event("draw", 3, 8, "images", {"loss": 0.5})]


def test_progress_is_ignored_outside_a_context() -> None:
    heard: list[Event] = []
    report("before", done=0, total=1, unit="steps")
    with pytest.raises(KeyError), reporting_to(heard.append):
        raise KeyError
    report("after", done=1, total=1, unit="steps")
    assert heard == []


def test_innermost_sink_gets_the_progress_and_the_outer_one_is_restored() -> None:
    outer: list[Event] = []
    inner: list[Event] = []
    with reporting_to(outer.append):
        with reporting_to(inner.append):
            report("inner", done=1, total=1, unit="steps")
        report("outer", done=1, total=1, unit="steps")
    assert [event.task for event in inner] == ["inner"]
    assert [event.task for event in outer] == ["outer"]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_track_yields_every_item_and_counts_it_when_it_is_done(count: int) -> None:
    heard: list[Event] = []
    at_each: list[int] = []
    with reporting_to(heard.append):
        items = [at_each.append(heard[-1].done) or item for item in track(list(range(count)), task="count", unit="items")]
    assert items == at_each == list(range(count))
    assert heard == [Event("count", done, count, "items") for done in range(count + 1)]


def test_track_takes_the_total_of_what_has_no_length() -> None:
    def endless() -> Iterator[int]:
        yield from range(3)

    heard: list[Event] = []
    with reporting_to(heard.append):
        assert list(track(endless(), task="count", unit="items", total=3)) == [0, 1, 2]
    assert (heard[-1].done, heard[-1].total) == (3, 3)
    with pytest.raises(AssertionError, match="without a length"):
        list(track(endless(), task="count", unit="items"))


def test_track_is_lazy() -> None:
    """An item is asked for when the one before it is done."""
    asked: list[int] = []

    def source() -> Iterator[int]:
        for number in range(3):
            asked.append(number)
            yield number

    tracked = track(source(), task="count", unit="items", total=3)
    assert asked == []
    next(tracked)
    assert asked == [0]
