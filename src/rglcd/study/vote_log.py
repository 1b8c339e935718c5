"""``votes.jsonl``: one line of JSON an entry, appended and flushed to disk before anybody hears that it is recorded.

A kill leaves at most one line unfinished, which was acknowledged to nobody. The next server ends that line and says so in a line of its
own; nothing is ever cut off or written over, but for what a failed write itself left.
"""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rglcd.errors import InputError
from rglcd.store.locks import try_exclusive_lock
from rglcd.store.staging import flush
from rglcd.study.ballots import Ballots, Entry, EntryError, RefusedError, entry_fields, parse_entry
from rglcd.study.raters import Rater

VOTES: Final = "votes.jsonl"
_TORN = "torn"


@dataclass(frozen=True)
class Recorded:
    """The entries of a log in order, what is in force after them, and how many lines a kill had left unfinished."""

    entries: list[Entry]
    ballots: Ballots
    num_torn: int


def now() -> str:
    """The wall clock's time in UTC: for people who read the log. No order and no identity depends on it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class VoteLog:
    """The log of a study, open for one server. Threads may append at once."""

    def __init__(self, path: Path, ballots: Ballots) -> None:
        self.path, self.ballots = path, ballots
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._lock = threading.Lock()

    def append(self, entry: Entry, *, simulated: bool) -> bool:
        """Record ``entry``: it is on disk when this returns. Whether it was new; False for one that was recorded before.

        Raises :class:`RefusedError` if it contradicts what is recorded, and ``OSError`` if it could not be written: it is then not
        recorded, and the log is as it was.
        """
        with self._lock:
            if self.ballots.is_repeated(entry):
                return False
            self._write(entry_line(entry, simulated=simulated))
            return self.ballots.add(entry)

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, line: bytes) -> None:
        before = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(f"{self.path}: a part of a line was written")
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, before)
            raise


@contextmanager
def open_log(folder: Path, raters: Sequence[Rater]) -> Iterator[VoteLog]:
    """The log of the study in ``folder``, with all that was recorded in it; made if need be. One process has it at a time.

    Raises :class:`InputError` if another process has it, or if it holds what no server wrote.
    """
    path = folder / VOTES
    with try_exclusive_lock(folder / f".{VOTES}.lock") as is_ours:
        if not is_ours:
            raise InputError(f"{path} is another server's; stop that one first, or send raters its links")
        _end_torn_line(path)
        log = VoteLog(path, read_log(path, raters).ballots)
        try:
            yield log
        finally:
            log.close()


def read_log(path: Path, raters: Sequence[Rater]) -> Recorded:
    """What is recorded in ``path``; nothing if there is no such file. A line that was torn is passed over if the next one says so.

    A last line without an end is one that a server is writing, or was when it was killed: it was acknowledged to nobody.
    Raises :class:`InputError` for any other line that cannot be read, or that contradicts the lines before it.
    """
    entries, num_torn, unreadable = list[Entry](), 0, 0
    ballots = Ballots()
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        fields = _fields(line)
        if fields is None:
            unreadable = unreadable or number
        elif fields.get("kind") == _TORN:
            num_torn, unreadable = num_torn + 1, 0
        elif unreadable:
            break
        else:
            try:
                ballots.add(entry := _entry(fields, raters))
            except (EntryError, RefusedError) as error:
                raise InputError(f"{path}, line {number}: {error}; no server wrote this") from None
            entries.append(entry)
    if unreadable:
        raise InputError(f"{path}, line {unreadable} is damaged, and not by a kill: put the file back from a copy")
    return Recorded(entries, ballots, num_torn)


def entry_line(entry: Entry, *, simulated: bool) -> bytes:
    """An entry as a line of the log."""
    return _line({**entry_fields(entry), "rater": entry.rater, "simulated": simulated, "at": entry.at})


def _entry(fields: dict[str, Any], raters: Sequence[Rater]) -> Entry:
    number, simulated, at = fields.pop("rater", None), fields.pop("simulated", None), fields.pop("at", None)
    if type(number) is not int or not 0 <= number < len(raters) or not isinstance(at, str):
        raise EntryError("it names no rater of this study, or no time")
    if simulated is not raters[number].simulated:
        raise EntryError(f"rater {number + 1} is {'simulated' if raters[number].simulated else 'a person'}, and the line says otherwise")
    return parse_entry(fields, rater=number, at=at)


def _end_torn_line(path: Path) -> None:
    """End a last line that was left without its end, and say so if it cannot be read; a kill in here leaves the same to do again."""
    with path.open("ab+") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - (1 << 16)))
        tail = stream.read()
        last = tail.removesuffix(b"\n").rpartition(b"\n")[2]
        end = b"" if not tail or tail.endswith(b"\n") else b"\n"
        # One that lacks its end alone counts: its page does not know so, and will send it again under the same id.
        note = _line({"kind": _TORN, "bytes": len(last), "at": now()}) if last and _fields(last) is None else b""
        stream.write(end + note)
        stream.flush()
        os.fsync(stream.fileno())
    flush(path.parent)


def _fields(line: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"
