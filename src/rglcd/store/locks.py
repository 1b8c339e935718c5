"""Claims on files of a shared folder, one process's or several': the kernel's locks, which end with their process, however it ends.

So nothing has to be cleaned up after a kill, no clock is asked, and what a living worker is at can be told from what a killed
one left behind.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claimed(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this process alone holds ``path``, which is made if need be; ``wait`` until it does."""
    descriptor = _locked(path, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """While this process, and whoever else does the same, keeps all from claiming ``path``, which is made if need be."""
    descriptor = _locked(path, fcntl.LOCK_SH)
    assert descriptor is not None, "it waits"
    try:
        yield
    finally:
        os.close(descriptor)


def remove_unclaimed(path: Path) -> None:
    """Remove ``path`` unless a living process holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)


def _locked(path: Path, operation: int) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # removed between its opening and its locking: whoever comes next would lock another file
