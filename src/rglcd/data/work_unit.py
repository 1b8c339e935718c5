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

from rglcd.data.manifest import FileEntry, alteration, sha256_of, write_json


def finish_unit(record: Path, names: Sequence[str], **facts: Any) -> None:
    """Write ``facts``, and the digests of the files called ``names`` beside it, to ``record``."""
    files = {name: asdict(FileEntry(sha256_of(record.parent / name), (record.parent / name).stat().st_size)) for name in names}
    write_json(record, facts | {"files": files})


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
    """A name to write to in place of ``path``: flushed to disk and renamed over it when the block ends well."""
    aside = path.with_name(f".{path.name}.aside")
    yield aside
    with aside.open("rb") as stream:
        os.fsync(stream.fileno())
    aside.replace(path)


def sweep_aside(folder: Path) -> None:
    """Remove what a killed run was in the middle of writing in ``folder``."""
    for stale in folder.glob(".*.aside"):
        stale.unlink()
