"""Full disks (ENOSPC, EDQUOT, EFBIG) reported as such, with what is needed and what is free: no row and no network is at fault."""

import errno
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rglcd.errors import TryAgain

_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_disk_full(error: BaseException) -> bool:
    """Whether ``error`` says that a disk, a quota or a limit on the size of files is reached."""
    if type(error).__name__ == "SafetensorError":  # it writes by itself, and has the number in its words alone
        return any(f"(os error {number})" in str(error) for number in _DISK_FULL)
    return isinstance(error, OSError) and error.errno in _DISK_FULL


@contextmanager
def disk_space_for(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Raise :class:`TryAgain` when the disk is full in a write below ``path``, of ``num_bytes`` in all if that is known."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        wanted = "more" if num_bytes is None else f"{num_bytes:,} bytes"
        raise TryAgain(
            f"no disk space for {path}: it needs {wanted}, and {_limit(error, path)} ({' '.join(str(error).split())}); "
            "what is finished is kept, free some of it and run the same command again"
        ) from None


def _limit(error: Exception, path: Path) -> str:
    if getattr(error, "errno", None) == errno.EFBIG or f"(os error {errno.EFBIG})" in str(error):
        return f"a file may have {resource.getrlimit(resource.RLIMIT_FSIZE)[0]:,} bytes here (ulimit -f)"
    free = shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free
    return f"{free:,} bytes are free there"
