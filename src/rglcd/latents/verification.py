"""A file's digest, computed by one process of a node for all: torchrun's ranks read the same shards, and hashing them costs hours of CPU.

The first rank to want a file hashes it under a lock and leaves a marker; the others, who wait for the lock, find it. A marker says what
was hashed (expected digest, device, inode, size, times of the last change of content and of inode, in ns) and for whose ranks: it
holds for one group of ranks, those with the same parent, so that every run reads every file again and finds what a disk has lost.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from rglcd.store.locks import exclusive_lock
from rglcd.store.manifest import FileEntry, digest_of, verify_file
from rglcd.store.remembered_files import look_at
from rglcd.store.staging import write_text

_SETTLED: Final = 0.1
"""Seconds that a file's last change must be past to vouch for its content: changes within one tick of the clock have equal times."""


def verify_once_a_node(path: Path, entry: FileEntry, *, fetch: Callable[[], object] | None = None) -> str | None:
    """As :func:`rglcd.store.manifest.verify_file`, which one of this node's ranks asks for all of them.

    What is missing or altered is brought by ``fetch``, where there is one, and looked at again.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < 2:
        return _verify(path, entry, fetch)[0]
    try:
        folder = _markers()
    except OSError:  # nowhere to leave a marker: each rank hashes for itself
        return _verify(path, entry, fetch)[0]
    marker = folder / f"{digest_of([*_place(path, is_shared=fetch is not None), entry.sha256])[:32]}.json"
    with exclusive_lock(marker.with_suffix(".lock")):
        if (found := _identity(path, entry)) is not None and _read(marker) == found:
            return None
        problem, verified = _verify(path, entry, fetch)
        if verified is not None:
            with suppress(OSError):  # a full disk: the next rank hashes, too
                write_text(marker, json.dumps(verified))
    return problem


def _place(path: Path, *, is_shared: bool) -> list[int | str]:
    """What the ranks call the file alike: its path, if all have the same; or its inode, to which each has a link of its own."""
    if not is_shared:
        with suppress(OSError):
            found = path.stat()
            return [found.st_dev, found.st_ino]
    return [os.path.realpath(path)]


def _verify(path: Path, entry: FileEntry, fetch: Callable[[], object] | None) -> tuple[str | None, dict[str, Any] | None]:
    """What is wrong with the file if anything is, and its identity if it was the same all the while and can vouch for the content."""
    before = _settled_identity(path, entry)
    problem = verify_file(path, entry)
    if problem is not None and fetch is not None:
        fetch()
        return _verify(path, entry, None)
    return problem, before if problem is None and before == _identity(path, entry) else None


def _settled_identity(path: Path, entry: FileEntry) -> dict[str, Any] | None:
    """:func:`_identity`, once the last change is past, so that the next has another time; None by a clock that is behind."""
    found = _identity(path, entry)
    if found is None:
        return None
    age = time.time() - max(found["file"][-2:]) / 1e9
    if 0 <= age < _SETTLED:
        time.sleep(_SETTLED - age)
    return found if age >= 0 else None


def _identity(path: Path, entry: FileEntry) -> dict[str, Any] | None:
    """What tells this file from any other, and from itself once it is changed; None where none is."""
    try:
        found = look_at(path)
    except OSError:
        return None
    parent = psutil.Process(os.getppid())
    return {
        "sha256": entry.sha256,
        "file": list(found),  # as JSON gives it back
        "ranks": [parent.pid, parent.create_time()],
    }


def _read(marker: Path) -> Any:
    with suppress(OSError, ValueError):
        return json.loads(marker.read_text(encoding="utf-8"))
    return None


def _markers() -> Path:
    """A folder of this node's that only this user can have written to. ``OSError`` when there can be none."""
    folder = Path(tempfile.gettempdir()) / f"rglcd-verified-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's alone")
    return folder
