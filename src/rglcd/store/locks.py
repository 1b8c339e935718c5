"""Locks on files (flock), which the kernel releases when the process that holds them ends, however it ends.

Exclusive locks are filelock's. Its lock for readers is an SQLite database, so shared locks on a plain file are here; both are the
same lock of the kernel, so each excludes the other. Whoever holds a lock exclusively may remove its file: both sorts then begin anew.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def exclusive_lock(path: Path) -> FileLock:
    """The lock on ``path`` that one holder has: a ``with`` waits for it. The file is made if need be."""
    return FileLock(path, poll_interval=0.01, fallback_to_soft=False)  # a soft lock outlives a killed process and excludes no readers


@contextmanager
def try_exclusive_lock(path: Path) -> Iterator[bool]:
    """Whether the exclusive lock on ``path`` could be had at once; it is then held for the block."""
    with suppress(Timeout):
        (lock := exclusive_lock(path)).acquire(blocking=False)
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Hold ``path``, which is made if need be, together with others who do so; whoever wants it exclusively waits."""
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666)) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file.fileno()).st_nlink:  # otherwise removed before it was locked: others would lock another file
                yield
                return
