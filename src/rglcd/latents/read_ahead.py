"""Read ahead: what the consumer of an iterator will ask for next is made by a thread while it works on what it has."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

Item = TypeVar("Item")

_END: Final = object()


@contextmanager
def read_ahead(items: Iterator[Item], *, num_ahead: int) -> Iterator[Iterator[Item]]:
    """``items`` in their order, at most ``num_ahead`` of them made before they are asked for; one thread makes them, one by one.

    What making one raises is raised where it would have come. When the block ends, however it ends, so has the thread.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        waiting = deque(thread.submit(next, items, _END) for _ in range(num_ahead))
        try:
            yield _in_turn(items, waiting, thread)
        finally:
            thread.shutdown(cancel_futures=True)


def _in_turn(items: Iterator[Item], waiting: "deque[Future[Item | object]]", thread: ThreadPoolExecutor) -> Iterator[Item]:
    while (item := waiting.popleft().result()) is not _END:
        waiting.append(thread.submit(next, items, _END))
        yield item  # type: ignore[misc]  # no end: an item
