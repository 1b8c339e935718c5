"""The local copies of what lies in a store: held while they are read, and let go when room is wanted.

    <cache>/<view>/         a copy of one manifest's files, or of one source folder
    <cache>/.<view>.lock    shared by the processes that hold the view; its time is that of the last use

Room is made by whole views, the least recently used first, and never of one that somebody holds. A held view that is only
passed through, file after file, lets each file go when it was read (:func:`passed_through`). So copies outgrow the limit only
where what is in use at once does; that is said, for the alternative is a run that cannot go on.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from rglcd.store.files import cache_limit
from rglcd.store.locks import claimed, shared

_LOCK: Final = ".lock"
COMPLETE: Final = ".complete"
"""Ending of the name of the file beside a view that says that it is whole, for views without a manifest."""


@contextmanager
def held(view: Path) -> Iterator[None]:
    """While nothing of ``view``, a folder that may not be there yet, goes to make room for something else."""
    lock = _lock_of(view)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with shared(lock):
        os.utime(lock)
        try:
            yield
        finally:
            os.utime(lock)


def make_room(folder: Path, num_bytes: int) -> None:
    """Let views in ``folder`` go that nobody holds, the least recently used first, until ``num_bytes`` more fit."""
    limit = cache_limit()
    copies = sorted(_copies(folder), key=lambda copy: copy.last_use)
    total = num_bytes + sum(copy.num_bytes for copy in copies)
    for copy in copies:
        if total <= limit:
            return
        if _let_go(copy.view):
            total -= copy.num_bytes
    if total > limit:
        _say_once(f"{folder}: what is in use at once is more than the {limit / 2**30:g} GiB that RGLCD_CACHE_GIB allows; it is kept")


@contextmanager
def passed_through(view: Path, name: str) -> Iterator[None]:
    """While the file called ``name`` of a held view is read the one time that it is wanted; afterwards it goes if no other like it
    would fit, unless another process reads it too.
    """
    view.mkdir(parents=True, exist_ok=True)
    reading = view / f".{name.replace('/', '_')}.reading"
    with shared(reading):
        yield
    with claimed(reading, wait=False) as is_mine, suppress(FileNotFoundError):
        if is_mine and (view / name).stat().st_size + sum(copy.num_bytes for copy in _copies(view.parent)) > cache_limit():
            (view / name).unlink()


@dataclass(frozen=True)
class _Copy:
    view: Path
    num_bytes: int
    last_use: float


def _copies(folder: Path) -> Iterator[_Copy]:
    for lock in folder.glob(f".*{_LOCK}"):
        with suppress(FileNotFoundError):  # another process let it go meanwhile
            view = folder / lock.name.removeprefix(".").removesuffix(_LOCK)
            yield _Copy(view, _bytes_in(view), lock.stat().st_mtime)


def _bytes_in(view: Path) -> int:
    total = 0
    for folder, _, names in os.walk(view):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(folder) / name).stat().st_size
    return total


def _let_go(view: Path) -> bool:
    """Whether nobody held ``view``, which is then gone."""
    lock = _lock_of(view)
    with claimed(lock, wait=False) as is_mine:
        if is_mine:
            view.with_name(f"{view.name}{COMPLETE}").unlink(missing_ok=True)
            shutil.rmtree(view, ignore_errors=True)
            lock.unlink(missing_ok=True)
        return is_mine


def _lock_of(view: Path) -> Path:
    return view.with_name(f".{view.name}{_LOCK}")


@cache
def _say_once(message: str) -> None:
    print(f"rglcd: {message}", file=sys.stderr)
