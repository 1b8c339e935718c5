"""Many files brought or sent, several at a time, with progress."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from rglcd import progress

_TRANSFERS: Final = 8  # at a time


def for_each_file(act: Callable[[str], object], names: Iterable[str], *, task: str) -> None:
    """``act`` on each name, several at a time; the first failure is raised when those in flight have ended."""
    todo = list(names)
    if not todo:
        return
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        for _ in progress.track(pool.map(act, todo), task=task, unit="files", total=len(todo)):
            pass
