"""Being told to stop: what SIGTERM and SIGINT do for a while, and not a moment longer."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def handling_stops(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within this context SIGTERM and SIGINT call ``handler``; those in force before are put back. For the main thread only."""
    before: dict[signal.Signals, Callable[..., Any] | int | None] = {
        number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
