"""Shard tasks: the files of one shard, then a record of their digests, written last, so that a killed run's work is taken over.

The next run takes a shard over when its record stands and its files still are what the record says, and makes it again
otherwise, so a folder ends byte-identical however often the run was killed.

A file may also be *recorded elsewhere*, in an object store, by whichever worker made it: a small marker then stands for it here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from rglcd.errors import InputError
from rglcd.store.file_names import check_plain_names
from rglcd.store.locks import exclusive_lock, try_exclusive_lock
from rglcd.store.manifest import FileEntry, parse_entries, sha256_of, verify_file, write_json
from rglcd.store.staging import STAGING, staging_file, write_text

RECORDS: Final = "*_stats.json"
"""The names of records: img2dataset's, so that what reads its shards reads ours."""
_ELSEWHERE: Final = ".elsewhere"

Task = TypeVar("Task")


@dataclass(frozen=True)
class Part:
    """Which of ``count`` workers this is, counted from 0. Workers share nothing but the folder or the store."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputError(f"part {self.index} of {self.count}: parts are counted from 0")

    def of(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """This part's tasks: every ``count``-th."""
        return tasks[self.index :: self.count]


WHOLE = Part()
"""The part of a worker who works alone."""


def finish_task(record: Path, names: Sequence[str], **facts: Any) -> None:
    """Write ``facts``, and the digests of the files called ``names`` beside it, to ``record``."""
    files = {name: asdict(FileEntry(sha256_of(record.parent / name), (record.parent / name).stat().st_size)) for name in names}
    write_text(record, json.dumps(facts | {"files": files}, indent=1, sort_keys=True) + "\n")


def finished_task(record: Path) -> dict[str, Any] | None:
    """What :func:`finish_task` recorded, if its files still are what it says."""
    try:
        recorded = read_record(record)
        files = {record.parent / name: entry for name, entry in files_of(recorded).items()}
        is_whole = all(verify_file(path, entry) is None or _recorded_elsewhere(path) == entry for path, entry in files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # absent, or not as finish_task writes it: the shard is made again
    return recorded if is_whole else None


def read_record(record: Path) -> dict[str, Any]:
    """What :func:`finish_task` recorded of a task that is known to be finished."""
    recorded: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return recorded


def files_of(recorded: Mapping[str, Any]) -> dict[str, FileEntry]:
    """The files of a task, as its record says: all in the record's own folder.

    Raises ``KeyError``, ``TypeError`` or ``ValueError`` when it is no record, :class:`InputError` when a name leads elsewhere.
    """
    entries = parse_entries(recorded["files"])
    check_plain_names(entries)
    return entries


def is_record(content: bytes) -> bool:
    """Whether ``content`` reads as what :func:`finish_task` records."""
    try:
        files_of(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return True


def record_elsewhere(record: Path, content: bytes) -> None:
    """Let a task that another worker recorded as ``content`` count as finished here, its files staying where they are."""
    for name, entry in files_of(json.loads(content)).items():
        (record.parent / name).unlink(missing_ok=True)
        write_json(_marker(record.parent / name), asdict(entry))
    with staging_file(record) as staging:
        staging.write_bytes(content)


def take_recorded_elsewhere(folder: Path) -> dict[str, FileEntry]:
    """Remove the markers from ``folder``; returns the files that they stood for, by name."""
    files = {}
    for marker in sorted(folder.glob(f".*{_ELSEWHERE}")):
        name = marker.name.removeprefix(".").removesuffix(_ELSEWHERE)
        files[name] = FileEntry(**json.loads(marker.read_text(encoding="utf-8")))
        marker.unlink()
    return files


def _marker(path: Path) -> Path:
    return path.with_name(f".{path.name}{_ELSEWHERE}")


def _recorded_elsewhere(path: Path) -> FileEntry | None:
    marker = _marker(path)
    return FileEntry(**json.loads(marker.read_text(encoding="utf-8"))) if marker.is_file() else None


@contextmanager
def task_lock(record: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the task of ``record`` is this worker's to do; ``wait`` until no other is at it."""
    path = record.with_name(f".{record.name}.lock{STAGING}")  # so that a killed worker's goes with its staging files
    with exclusive_lock(path) if wait else try_exclusive_lock(path) as is_mine:
        try:
            yield bool(is_mine)
        finally:
            if is_mine:
                path.unlink(missing_ok=True)
