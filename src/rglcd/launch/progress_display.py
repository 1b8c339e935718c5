"""Draw progress for a person: bars on a terminal, a few plain lines elsewhere."""

import contextvars
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from rglcd.progress import Event, Sink, read_event

_POLL_SECONDS = 0.2


@contextmanager
def drawing(stream: TextIO, *, seconds_between_lines: float = 5.0) -> Iterator[Sink]:
    """A sink that draws on ``stream``: a bar for each task if it is a terminal, else lines (each task's first and last, few between)."""
    if not stream.isatty():
        yield _lines(stream, seconds_between_lines)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        # Last, and alone in giving way on a narrow terminal.
        TextColumn("{task.fields[figures]}", style="dim", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    # rich takes over stdout and stderr meanwhile, so that what others print goes above the bars and not through them.
    with Progress(*columns, console=Console(file=stream), expand=True) as bars:
        yield _bars(bars)


@contextmanager
def following(path: Path, sink: Sink) -> Iterator[None]:
    """Send the events that other processes append to ``path`` to ``sink``, from a thread, until the context ends."""
    ended = threading.Event()
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(_follow, path, sink, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(path: Path, sink: Sink, ended: threading.Event) -> None:
    position = 0
    while True:
        # Asked before reading: what was written before the end is read, whenever the end comes.
        is_last = ended.wait(_POLL_SECONDS)
        if path.is_file():
            position = _read_on(path, position, sink)
        if is_last:
            return


def _read_on(path: Path, position: int, sink: Sink) -> int:
    """Send the whole lines from byte ``position`` on; return where the next one begins."""
    with path.open("rb") as stream:
        stream.seek(position)
        whole, newline, _ = stream.read().rpartition(b"\n")
    for line in whole.splitlines():
        try:
            event = read_event(line.decode())
        except (ValueError, TypeError):  # a process was killed in the middle of a line
            continue
        sink(event)
    return position + len(whole) + len(newline)


def _lines(stream: TextIO, seconds_between: float) -> Sink:
    begun: dict[str, tuple[float, int]] = {}
    last_said: dict[str, tuple[float, int]] = {}

    def draw(event: Event) -> None:
        now = time.monotonic()
        begun_at, done_then = begun.setdefault(event.task, (now, event.done))
        said_at, said = last_said.get(event.task, (float("-inf"), -1))
        is_due = now - said_at >= seconds_between
        if event.done != said and (is_due or event.done >= event.total):
            last_said[event.task] = now, event.done
            speed = _speed(event, done=event.done - done_then, seconds=now - begun_at)
            words = [f"{event.task}: {event.done}/{event.total} {event.unit}", speed, _figures(event)]
            print("  ".join(filter(None, words)), file=stream, flush=True)

    return draw


def _speed(event: Event, *, done: int, seconds: float) -> str:
    """Units a second since the task was first heard of, which may be when it was resumed, and the time that what is left will take."""
    if done <= 0 or seconds <= 0:
        return ""
    each = seconds / done
    said = f"{1 / each:.3g} {event.unit}/s"
    left = event.total - event.done
    return f"{said}, {timedelta(seconds=round(left * each))} left" if left > 0 else said


def _bars(bars: Progress) -> Sink:
    known: dict[str, TaskID] = {}
    figures: dict[str, str] = {}

    def draw(event: Event) -> None:
        if event.values:  # else the last ones stay
            figures[event.task] = _figures(event)
        if event.task not in known:
            known[event.task] = bars.add_task(event.task, total=event.total, unit=event.unit, figures="")
        shown = figures.get(event.task, "")
        bars.update(known[event.task], completed=event.done, total=event.total, unit=event.unit, figures=shown)

    return draw


def _figures(event: Event) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in event.values.items())
