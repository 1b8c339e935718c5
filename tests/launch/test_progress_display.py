"""What a person sees of a run, and how it gets there from another process."""

import io
import json
import re
import time
from pathlib import Path

import pytest

from rglcd.launch import progress_display
from rglcd.launch.progress_display import drawing, following
from rglcd.progress import Event, json_lines_sink


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def event(done: int, total: int = 1000, task: str = "cache latents") -> Event:
    return Event(task, done, total, "images", {"loss": 0.12345})


def test_without_a_terminal_first_and_last_progress_lines_are_printed() -> None:
    stream = io.StringIO()
    with drawing(stream, seconds_between_lines=60) as draw:
        for done in (*range(1001), 1000):
            draw(event(done))
    first, last = stream.getvalue().splitlines()
    assert first == "cache latents: 0/1000 images  loss 0.1235"
    assert re.fullmatch(r"cache latents: 1000/1000 images  [\d.e+]+ images/s  loss 0.1235", last)


def test_without_a_terminal_progress_lines_are_printed_as_time_passes() -> None:
    stream = io.StringIO()
    with drawing(stream, seconds_between_lines=0) as draw:
        for done in range(5):
            draw(event(done))
    assert len(stream.getvalue().splitlines()) == 5


def test_without_a_terminal_a_line_says_speed_and_time_left_since_the_run_was_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((100.0, 110.0, 150.0, 5000.0))
    monkeypatch.setattr(progress_display.time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    with drawing(stream) as draw:
        for done in (600, 605, 625, 1000):
            draw(Event("distill rg", done, 1000, "steps"))
    assert stream.getvalue().splitlines() == [
        "distill rg: 600/1000 steps",
        "distill rg: 605/1000 steps  0.5 steps/s, 0:13:10 left",
        "distill rg: 625/1000 steps  0.5 steps/s, 0:12:30 left",
        "distill rg: 1000/1000 steps  0.0816 steps/s",
    ]


def test_on_a_terminal_each_task_has_a_progress_bar_that_ends_full() -> None:
    stream = Terminal()
    with drawing(stream) as draw:
        for task in ("one", "two"):
            for done in range(0, 1001, 100):
                draw(event(done, task=task))
    last = stream.getvalue().rsplit("one", 1)[1]
    assert "two" in last
    assert last.count("1000/1000") == 2


def test_a_bar_keeps_its_figures_while_there_are_no_newer_ones() -> None:
    stream = Terminal()
    with drawing(stream) as draw:
        draw(event(100))
        draw(Event("cache latents", 103, 1000, "images"))
    last = stream.getvalue().rsplit("cache latents", 1)[1]
    assert "103/1000" in last
    assert "loss" in last


def test_progress_of_another_process_arrives_once_and_in_order(tmp_path: Path) -> None:
    path, seen = tmp_path / "progress.jsonl", []
    write = json_lines_sink(path)
    with following(path, seen.append):
        for done in range(100):
            write(event(done))
            if done % 30 == 0:
                time.sleep(0.25)
    assert seen == [event(done) for done in range(100)]


def test_progress_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path, seen = tmp_path / "progress.jsonl", []
    path.write_text('{"task": "cut' + "\n" + json.dumps({"task": "x", "done": 1, "total": 2, "unit": "y", "values": {}}) + '\n{"task"')
    with following(path, seen.append):
        pass
    assert seen == [Event("x", 1, 2, "y", {})]
