"""Temporary handlers of SIGTERM and SIGINT, the previous ones being restored afterwards, and processes that end with their parent."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT)

_LOOKED_EVERY = 0.5


@contextmanager
def handling_stops(handler: Callable[[int, FrameType | None], None], *, stops: tuple[signal.Signals, ...] = STOPS) -> Iterator[None]:
    """Within this context each of ``stops`` calls ``handler``. For the main thread only."""
    with stops_restored():
        for number in stops:
            signal.signal(number, handler)
        yield


@contextmanager
def noting_stops() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or SIGINT comes; the handlers in force before are put back. For the main thread only."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    with handling_stops(note):
        yield received


@contextmanager
def stops_restored() -> Iterator[None]:
    """Restore the handlers of SIGTERM and SIGINT at the end of this context, whoever changed them. For the main thread only."""
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end_with_parent(parent: int) -> None:
    """From now on, kill this process soon after ``parent``, the process that started it, has gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKED_EVERY)
        print("rglcd: what started this process has been killed; it ends too", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)  # the rest may hang in a collective operation, where no exception arrives

    threading.Thread(target=watch, daemon=True, name="end with parent").start()
