"""Staging files and folders: what is being written under another name until it is whole, flushed to disk and renamed.

A reader therefore meets a file or folder whole or not at all, after a kill and after a power cut.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from rglcd.store.locks import exclusive_lock, try_exclusive_lock

STAGING: Final = ".staging"
"""Ending of the names of staging files and folders; they begin with a dot."""

_LOCK: Final = f".lock{STAGING}"
_NOT_FOR_FOLDERS: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})
"""How file systems of the network (SMB, some FUSE) say that a folder cannot be flushed: they write its names at once, or have no say."""


@contextmanager
def staging_file(path: Path) -> Iterator[Path]:
    """A file to write in place of ``path``: flushed to disk and renamed to it when the block ends well.

    Several processes may do so for one ``path``: each has a file of its own, and the last one's stays. A lock beside the file is
    held meanwhile, so that :func:`remove_stale_staging` can tell it from what a killed process left. The file itself cannot be the
    lock: safetensors puts a new file under its name when it saves.
    """
    staging = path.with_name(f".{path.name}.{uuid4().hex[:8]}{STAGING}")
    with exclusive_lock(lock := _lock_of(staging)):
        try:
            yield staging
            flush(staging)
            rename_flushed(staging, path)
        finally:
            lock.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with staging_file(path) as staging:
        staging.write_text(text, encoding="utf-8", newline="")


def remove_stale_staging(folder: Path) -> None:
    """Remove the staging files that killed processes left in ``folder``; those of living ones stay."""
    for staging in folder.glob(f".*{STAGING}"):
        if staging.is_file():
            with try_exclusive_lock(lock := _lock_of(staging)) as is_stale:
                if is_stale:
                    staging.unlink(missing_ok=True)
                    lock.unlink(missing_ok=True)


def publish_folder(staging: Path, target: Path) -> None:
    """Rename the folder ``staging`` to ``target``, in place of what is there, once :func:`flush_folder` has made it ready."""
    flush_folder(staging)
    remove_replaced(target)
    if target.exists():
        target.rename(_replaced(target))
    staging.rename(target)
    flush(target.parent)
    remove_replaced(target)


def flush_folder(staging: Path) -> None:
    """Wait until all that lies in the folder ``staging`` is on disk.

    Every file gets the mode that this process's umask gives new files: safetensors makes its own 0600, which nobody else may read.
    """
    mode = _mode_of_new_files(staging.parent)  # not in the folder: a kill would leave a file in it
    for folder, _, names in os.walk(staging):
        for name in names:
            path = Path(folder) / name
            if stat.S_IMODE(path.stat().st_mode) != mode:
                path.chmod(mode)
            flush(path)
        flush(Path(folder))


def remove_replaced(target: Path) -> None:
    """Remove the folder that stood at ``target`` before, which a kill in the midst of :func:`publish_folder` leaves."""
    shutil.rmtree(_replaced(target), ignore_errors=True)


def rename_flushed(staging: Path, path: Path) -> None:
    """Rename ``staging``, which is on disk, over ``path``, and wait until the new name is on disk too."""
    staging.replace(path)
    flush(path.parent)


def _mode_of_new_files(folder: Path) -> int:
    """Asked of a file made for it: to read the umask is to set it, for every thread of the process."""
    probe = folder / f".{uuid4().hex[:8]}{STAGING}"
    probe.touch()
    try:
        return stat.S_IMODE(probe.stat().st_mode) | stat.S_IRUSR
    finally:
        probe.unlink()


def flush(path: Path) -> None:
    """Wait until the file's content, or the folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _lock_of(staging: Path) -> Path:
    """The lock of a staging file; a lock, which a killed process leaves like any staging file, is its own."""
    return staging if staging.name.endswith(_LOCK) else staging.with_name(staging.name.removesuffix(STAGING) + _LOCK)


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")
