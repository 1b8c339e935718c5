"""A unit of work that a killed run may have finished: its files, then a record of their digests, written last.

The next run takes a unit over when its record stands and its files still are what the record says, and
makes it again otherwise, so a folder ends byte-identical however often the run was killed.

A file may also be *held* elsewhere, in an object store, by whichever worker made the unit: a stub then stands for it here.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from rglcd.errors import InputError
from rglcd.store.locks import claimed, remove_unclaimed
from rglcd.store.manifest import FileEntry, alteration, sha256_of, write_json

RECORDS = "*_stats.json"
"""The names of records: img2dataset's, so that what reads its shards reads ours."""

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Part:
    """Which of ``count`` workers this is, counted from 0. Workers share nothing but the folder or the store."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputError(f"part {self.index} of {self.count}: parts are counted from 0")

    def of(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """This part's units: every ``count``-th."""
        return units[self.index :: self.count]


WHOLE = Part()
"""The part of a worker who works alone."""


def finish_unit(record: Path, names: Sequence[str], **facts: Any) -> None:
    """Write ``facts``, and the digests of the files called ``names`` beside it, to ``record``."""
    files = {name: asdict(FileEntry(sha256_of(record.parent / name), (record.parent / name).stat().st_size)) for name in names}
    with written_aside(record) as aside:
        aside.write_text(json.dumps(facts | {"files": files}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def finished_unit(record: Path) -> dict[str, Any] | None:
    """What :func:`finish_unit` recorded, if its files still are what it says."""
    try:
        recorded: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        files = {record.parent / name: entry for name, entry in files_of(recorded).items()}
        whole = all(alteration(path, entry) is None or _held(path) == entry for path, entry in files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # absent, or not as finish_unit writes it: the unit is made again
    return recorded if whole else None


def read_record(record: Path) -> dict[str, Any]:
    """What :func:`finish_unit` recorded of a unit that is known to be finished."""
    recorded: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return recorded


def files_of(recorded: Mapping[str, Any]) -> dict[str, FileEntry]:
    """The files of a unit, as its record says. ``KeyError`` or ``TypeError`` when it is no record."""
    return {name: FileEntry(**entry) for name, entry in recorded["files"].items()}


def is_record(content: bytes) -> bool:
    """Whether ``content`` reads as what :func:`finish_unit` records."""
    try:
        files_of(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return True


def hold_unit(record: Path, content: bytes) -> None:
    """Let a unit that another worker recorded as ``content`` count as finished here, its files staying where they are."""
    for name, entry in files_of(json.loads(content)).items():
        (record.parent / name).unlink(missing_ok=True)
        write_json(_stub(record.parent / name), asdict(entry))
    with written_aside(record) as aside:
        aside.write_bytes(content)


def release_held(folder: Path) -> dict[str, FileEntry]:
    """Remove the stubs from ``folder``; returns what they stood for, by name."""
    held = {}
    for stub in sorted(folder.glob(".*.held")):
        held[stub.name.removeprefix(".").removesuffix(".held")] = FileEntry(**json.loads(stub.read_text(encoding="utf-8")))
        stub.unlink()
    return held


def _stub(path: Path) -> Path:
    return path.with_name(f".{path.name}.held")


def _held(path: Path) -> FileEntry | None:
    stub = _stub(path)
    return FileEntry(**json.loads(stub.read_text(encoding="utf-8"))) if stub.is_file() else None


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
