"""The cache of local copies of what lies in a store: a copy is pinned while it is read, and may be removed when space is needed.

    <cache>/<copy>/         the files of one manifest, or one source folder
    <cache>/.<copy>.lock    shared by the processes that pin the copy; says how many bytes it has; its time is that of the last use
    <cache>/.sizes          locked by whoever changes what the locks say

Space is made by removing whole copies, the least recently used first, and never one that is pinned. A pinned copy whose files are
read one after the other, each once, gives up each file when it was read (:func:`read_once`). So the cache outgrows its limit only
where what is in use at once does; that is said, for the alternative is a run that cannot go on.

Copies are counted by walking through them only when they are pinned first and released last; in between, whoever
adds or removes a file says so. So what it takes to make space does not grow with the number of files.
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

from rglcd.store.environment import cache_limit
from rglcd.store.locks import exclusive_lock, shared_lock, try_exclusive_lock

_LOCK: Final = ".lock"
_SIZES: Final = ".sizes"
COMPLETE: Final = ".complete"
"""Ending of the name of the file beside a copy that says that it is whole, for copies without a manifest."""


@contextmanager
def pinned(copy: Path) -> Iterator[None]:
    """While nothing of ``copy``, a folder that may not be there yet, is removed to make space for something else."""
    lock = _lock_of(copy)
    lock.parent.mkdir(parents=True, exist_ok=True)
    _count(copy)
    with shared_lock(lock):
        os.utime(lock)
        try:
            yield
        finally:
            os.utime(lock)
    _count(copy)


def reserve(copy: Path, num_bytes: int) -> None:
    """Make space for ``num_bytes`` that are about to be added to ``copy``, and count them."""
    with exclusive_lock(copy.parent / _SIZES):
        _make_space(copy.parent, num_bytes)
        _add(copy, num_bytes)


def make_space(root: Path, num_bytes: int) -> None:
    """Remove copies in the cache ``root`` that are not pinned, the least recently used first, until ``num_bytes`` more fit."""
    with exclusive_lock(root / _SIZES):
        _make_space(root, num_bytes)


@contextmanager
def read_once(copy: Path, name: str) -> Iterator[None]:
    """While the file called ``name`` of a pinned copy is read the one time that it is wanted; afterwards it is removed if no other
    like it would fit, unless another process reads it too.
    """
    copy.mkdir(parents=True, exist_ok=True)
    reading = copy / f".{name.replace('/', '_')}.reading"
    with shared_lock(reading):
        yield
    with try_exclusive_lock(reading) as is_mine, suppress(FileNotFoundError):
        if is_mine:
            num_bytes = (copy / name).stat().st_size
            with exclusive_lock(copy.parent / _SIZES):
                if num_bytes + sum(one.num_bytes for one in _copies(copy.parent)) > cache_limit():
                    (copy / name).unlink()
                    _add(copy, -num_bytes)


@dataclass(frozen=True)
class _Copy:
    folder: Path
    num_bytes: int
    last_use: float


def _copies(root: Path) -> Iterator[_Copy]:
    for lock in root.glob(f".*{_LOCK}"):
        with suppress(FileNotFoundError):  # another process removed it meanwhile
            copy = root / lock.name.removeprefix(".").removesuffix(_LOCK)
            yield _Copy(copy, _size_of(copy), lock.stat().st_mtime)


def _make_space(root: Path, num_bytes: int) -> None:
    limit = cache_limit()
    copies = sorted(_copies(root), key=lambda copy: copy.last_use)
    total = num_bytes + sum(copy.num_bytes for copy in copies)
    for copy in copies:
        if total <= limit:
            return
        if _remove(copy.folder):
            total -= copy.num_bytes
    if total > limit:
        _say_once(f"{root}: what is in use at once is more than the {limit / 2**30:g} GiB that RGLCD_CACHE_GIB allows; it is kept")


def _remove(copy: Path) -> bool:
    """Whether nobody pinned ``copy``, which is then gone."""
    lock = _lock_of(copy)
    with try_exclusive_lock(lock) as is_mine:
        if is_mine:
            copy.with_name(f"{copy.name}{COMPLETE}").unlink(missing_ok=True)
            shutil.rmtree(copy, ignore_errors=True)
            lock.unlink(missing_ok=True)
        return is_mine


# --- sizes ---------------------------------------------------------------------------------------


def _count(copy: Path) -> None:
    """Walk through ``copy`` and note its size, unless another process pins it and notes what changes."""
    lock = _lock_of(copy)
    with try_exclusive_lock(lock) as is_mine:
        if is_mine and copy.is_dir():
            lock.write_text(str(_bytes_in(copy)))
        elif is_mine:
            lock.unlink(missing_ok=True)


def _add(copy: Path, num_bytes: int) -> None:
    lock = _lock_of(copy)
    if lock.is_file():
        lock.write_text(str(_size_of(copy) + num_bytes))


def _size_of(copy: Path) -> int:
    """The size that is noted, or found by a walk where none is: of a copy that is new, or of which a note was cut."""
    noted = _lock_of(copy).read_text()
    return int(noted) if noted.isdecimal() else _bytes_in(copy)


def _bytes_in(copy: Path) -> int:
    total = 0
    for folder, _, names in os.walk(copy):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(folder) / name).stat().st_size
    return total


def _lock_of(copy: Path) -> Path:
    return copy.with_name(f".{copy.name}{_LOCK}")


@cache
def _say_once(message: str) -> None:
    print(f"rglcd: {message}", file=sys.stderr)
