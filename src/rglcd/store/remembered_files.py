"""What is remembered of files that others own (model folders, the source), so that those which did not change are not read again.

A file that has the device, inode, size, time of change and time of status change that it had when it was read is taken for unchanged.
One that was changed less than two seconds before it was read is read again the next time: a second change within the same tick
of a disk's clock would not show (git's racy entries: https://git-scm.com/docs/racy-git). The memory lies beside the artifacts, in
``.seen/``, and enters no key; without it everything is read again, to the same digests.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from rglcd.store.manifest import FileEntry, sha256_of, write_json

_RACY: Final = 2_000_000_000  # nanoseconds: the coarsest clock among disks (FAT)

Look = tuple[int, int, int, int, int]
"""Device, inode, bytes, time of change and time of status change (ns)."""


def memory_beside(artifact: Path) -> Path:
    """The memory of a project: a folder beside the folder of one of its artifacts."""
    return artifact.parent / ".seen"


def forget(memory: Path) -> None:
    """Let every file be read again."""
    shutil.rmtree(memory, ignore_errors=True)


def entries_of(files: Mapping[str, Path], *, of: Path, memory: Path) -> dict[str, FileEntry]:
    """Digest and size of each of ``files``, by name; only those are read that are not as they were.

    ``of`` is the folder, or the file in it, that they are all of: what is remembered of it is replaced.
    """
    place = memory / f"{hashlib.sha256(str(of.absolute()).encode()).hexdigest()[:16]}.json"
    known = _recalled(place)
    entries: dict[str, FileEntry] = {}
    to_keep: dict[str, list[int | str]] = {}
    for name, path in files.items():
        # The clock is read before the file: what is written while it is read counts as recent.
        now, look = time.time_ns(), look_at(path)
        sha256 = known[name][1] if name in known and known[name][0] == look else sha256_of(path)
        entries[name] = FileEntry(sha256, look[2])
        if max(look[3:]) < now - _RACY and look_at(path) == look:
            to_keep[name] = [*look, sha256]
    if to_keep != {name: [*look, sha256] for name, (look, sha256) in known.items()}:
        _remember(place, {"of": str(of.absolute()), "files": to_keep})
    return entries


def look_at(path: Path) -> Look:
    """What tells a file from any other, and from itself once it is changed, without reading it. Raises :class:`OSError`."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _recalled(place: Path) -> dict[str, tuple[Look, str]]:
    """Nothing where nothing was written, or something that is not as it was written."""
    try:
        files = json.loads(place.read_text(encoding="utf-8"))["files"]
        return {name: ((device, inode, size, changed, status), sha) for name, (device, inode, size, changed, status, sha) in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _remember(place: Path, content: Mapping[str, object]) -> None:
    with suppress(OSError):  # of a project that may only be read, of a full disk: everything is read each time
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, content)
