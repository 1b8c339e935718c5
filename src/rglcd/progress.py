"""Progress as data: a stage reports it, the process that started the stage draws it.

A stage calls :func:`report` (or wraps a loop in :func:`track`) and knows nothing of terminals. The
starter installs a sink with :func:`reporting_to`: a bar in this process, or a file of JSON lines
when the stage runs in another one (Kubeflow's local runner pipes stdout line by line, so a bar
drawn there could not move).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar


@dataclass(frozen=True)
class Event:
    """``done`` of ``total`` units of ``task`` are behind us; ``values`` are figures worth showing beside it."""

    task: str
    done: int
    total: int
    unit: str
    values: dict[str, float] = field(default_factory=dict)


Sink = Callable[[Event], None]

Item = TypeVar("Item")

_sink: ContextVar[Sink | None] = ContextVar("rglcd_progress_sink", default=None)


@contextmanager
def reporting_to(sink: Sink) -> Iterator[None]:
    """Send every event of this context to ``sink``."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


@contextmanager
def reporting_also_to(sink: Sink) -> Iterator[None]:
    """Send every event of this context to ``sink``, after whoever hears it already."""
    before = _sink.get()

    def both(event: Event) -> None:
        if before is not None:
            before(event)
        sink(event)

    with reporting_to(both):
        yield


def report(task: str, *, done: int, total: int, unit: str, **values: float) -> None:
    """Say how far ``task`` is. Free when nobody listens."""
    sink = _sink.get()
    if sink is not None:
        sink(Event(task, done, total, unit, values))


def track(items: Iterable[Item], *, task: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items``, reporting after each; ``total`` may be left out for a sized iterable."""
    if total is None:
        assert isinstance(items, Sized), "track() needs the total of an iterable without a length"
        total = len(items)
    report(task, done=0, total=total, unit=unit)
    for done, item in enumerate(items, start=1):
        yield item
        report(task, done=done, total=total, unit=unit)


def json_lines_sink(path: Path) -> Sink:
    """Append each event to ``path`` as one JSON line (read back by :func:`read_event`)."""

    def write(event: Event) -> None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(event)) + "\n")

    return write


def read_event(line: str) -> Event:
    """The event that :func:`json_lines_sink` wrote as ``line``."""
    return Event(**json.loads(line))
