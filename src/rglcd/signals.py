"""Temporary handlers of SIGTERM and SIGINT: the previous ones are restored afterwards."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handling_stops(handler: Callable[[int, FrameType | None], None], *, stops: tuple[signal.Signals, ...] = STOPS) -> Iterator[None]:
    """Within this context each of ``stops`` calls ``handler``. For the main thread only."""
    with stops_restored():
        for number in stops:
            signal.signal(number, handler)
        yield


@contextmanager
def stops_restored() -> Iterator[None]:
    """Restore the handlers of SIGTERM and SIGINT at the end of this context, whoever changed them. For the main thread only."""
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
