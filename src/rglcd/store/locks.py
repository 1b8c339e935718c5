"""Locks on files (flock), which the kernel releases when the process that holds them ends, however it ends.

Exclusive locks are filelock's. Its lock for readers is an SQLite database, so shared locks on a plain file are here; both are the
same lock of the kernel, so each excludes the other. Whoever holds a lock exclusively may remove its file: both sorts then begin anew.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

from filelock import AcquireReturnProxy, FileLock, Timeout

from rglcd.errors import InputError

_WITHOUT_LOCKS: Final = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK})
"""How a file system says that it has no locks: Lustre without ``-o flock``, NFS version 3 without its lock daemon, some of FUSE."""


class _KernelLock(FileLock):
    """One that says what to do where the kernel cannot give it."""

    def acquire(self, *arguments: Any, **named: Any) -> AcquireReturnProxy[Self]:
        try:
            return super().acquire(*arguments, **named)
        except OSError as error:
            _raise_if_without_locks(error, self.lock_file)
            raise


def exclusive_lock(path: Path) -> FileLock:
    """The lock on ``path`` that one holder has: a ``with`` waits for it. The file is made if need be."""
    # No soft lock in its place: that outlives a killed process and excludes no readers.
    return _KernelLock(path, poll_interval=0.01, fallback_to_soft=False)


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
            try:
                fcntl.flock(file, fcntl.LOCK_SH)
            except OSError as error:
                _raise_if_without_locks(error, path)
                raise
            if os.fstat(file.fileno()).st_nlink:  # otherwise removed before it was locked: others would lock another file
                yield
                return


def _raise_if_without_locks(error: OSError, path: Path | str) -> None:
    """Raise :class:`InputError` if ``error`` is that of a file system without locks."""
    if error.errno in _WITHOUT_LOCKS:
        raise InputError(
            f"{path}: the file system there has no locks ({os.strerror(error.errno)}), without which processes would take one another's "
            "work for their own; name a folder on another disk, or mount this one with locks (NFS version 4; Lustre: -o flock)"
        ) from None
