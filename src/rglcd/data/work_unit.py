"""A unit of work that a killed run may have finished: its files, then a record of their digests, written last.

The next run takes a unit over when its record stands and its files still are what the record says, and
makes it again otherwise, so a folder ends byte-identical however often the run was killed.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from rglcd.data.claims import claimed, remove_unclaimed
from rglcd.data.manifest import FileEntry, alteration, sha256_of


def finish_unit(record: Path, names: Sequence[str], **facts: Any) -> None:
    """Write ``facts``, and the digests of the files called ``names`` beside it, to ``record``."""
    files = {name: asdict(FileEntry(sha256_of(record.parent / name), (record.parent / name).stat().st_size)) for name in names}
    with written_aside(record) as aside:
        aside.write_text(json.dumps(facts | {"files": files}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def finished_unit(record: Path) -> dict[str, Any] | None:
    """What :func:`finish_unit` recorded, if its files still are what it says."""
    try:
        recorded: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        files = {record.parent / name: FileEntry(**entry) for name, entry in recorded["files"].items()}
        whole = all(alteration(path, entry) is None for path, entry in files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # absent, or not as finish_unit writes it: the unit is made again
    return recorded if whole else None


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A name to write to in place of ``path``: flushed to disk and renamed over it when the block ends well.

    Several processes may do so for one ``path``: each has a name of its own, and the last one's file stays.
    """
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.aside")
    with claimed(aside, wait=True):
        yield aside
        with aside.open("rb") as stream:
            os.fsync(stream.fileno())
        aside.replace(path)


def sweep_aside(folder: Path) -> None:
    """Remove what killed runs were in the middle of writing in ``folder``; what living ones are writing stays."""
    for stale in folder.glob(".*.aside"):
        remove_unclaimed(stale)


@contextmanager
def unit_claimed(record: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the unit of ``record`` is this worker's to make; ``wait`` until nobody else is at it."""
    path = record.with_name(f".{record.name}.claim.aside")
    with claimed(path, wait=wait) as is_mine:
        try:
            yield is_mine
        finally:
            if is_mine:
                path.unlink(missing_ok=True)
