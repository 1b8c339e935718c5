"""Votes and their undoing as entries, and which votes are in force: pure, in the order in which entries came, whatever any clock says."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rglcd.study.records import Answer

LONGEST_ENTRY: Final = 2048
"""Bytes of an entry as JSON."""

_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")
_LONGEST_MILLISECONDS: Final = 24 * 3600 * 1000


@dataclass(frozen=True)
class Vote:
    """A rater's answer to a task. The page chooses ``id``, so that a vote that is sent twice is known; ``at`` is for people to read."""

    id: str
    rater: int
    task: str
    answer: Answer
    milliseconds: int | None
    at: str


@dataclass(frozen=True)
class Undo:
    """A rater takes back the vote with the id ``vote``; the vote's line stays."""

    id: str
    rater: int
    vote: str
    at: str


Entry = Vote | Undo


class EntryError(ValueError):
    """An entry that is none: what is wrong with it."""


class RefusedError(ValueError):
    """An entry that contradicts what was recorded before: a second vote on a task, the undoing of a vote that is not in force."""


def parse_entry(fields: Any, *, rater: int, at: str) -> Entry:
    """The entry that a page sent. Raises :class:`EntryError` for anything else, unknown fields included."""
    if not isinstance(fields, Mapping):
        raise EntryError("an entry is a JSON object")
    match fields.get("kind"):
        case "vote":
            _only(fields, {"kind", "id", "task", "answer", "milliseconds"})
            answer = fields.get("answer")
            if not isinstance(answer, str) or answer not in {known.value for known in Answer}:
                raise EntryError("answer is left, right or tie")
            return Vote(_id(fields, "id"), rater, _text(fields, "task"), Answer(answer), _milliseconds(fields), at)
        case "undo":
            _only(fields, {"kind", "id", "vote"})
            return Undo(_id(fields, "id"), rater, _id(fields, "vote"), at)
        case _:
            raise EntryError("kind is vote or undo")


def entry_fields(entry: Entry) -> dict[str, Any]:
    """What :func:`parse_entry` reads back."""
    if isinstance(entry, Undo):
        return {"kind": "undo", "id": entry.id, "vote": entry.vote}
    return {"kind": "vote", "id": entry.id, "task": entry.task, "answer": entry.answer.value, "milliseconds": entry.milliseconds}


@dataclass
class Ballots:
    """What is in force after the entries so far: at most one vote of a rater on a task, in the order in which they were cast."""

    _by_id: dict[str, Entry] = field(default_factory=dict)
    _in_force: dict[tuple[int, str], Vote] = field(default_factory=dict)
    _num_entries: dict[int, int] = field(default_factory=dict)

    def is_repeated(self, entry: Entry) -> bool:
        """Whether ``entry`` was recorded before, under the same id. Raises :class:`RefusedError` if it must not be recorded."""
        known = self._by_id.get(entry.id)
        if known is not None:
            if entry_fields(known) != entry_fields(entry) or known.rater != entry.rater:
                raise RefusedError("this id is another entry's")
            return True
        if isinstance(entry, Vote):
            if (entry.rater, entry.task) in self._in_force:
                raise RefusedError("this was answered already; undo that answer first")
        elif self._undone_by(entry) is None:
            raise RefusedError("there is no such answer to undo")
        return False

    def add(self, entry: Entry) -> bool:
        """Count ``entry`` unless it is repeated; whether it was new. Raises :class:`RefusedError` as :meth:`is_repeated` does."""
        if self.is_repeated(entry):
            return False
        self._by_id[entry.id] = entry
        self._num_entries[entry.rater] = self.num_entries(entry.rater) + 1
        if isinstance(entry, Vote):
            self._in_force[entry.rater, entry.task] = entry
        elif (undone := self._undone_by(entry)) is not None:
            del self._in_force[undone.rater, undone.task]
        return True

    def in_force(self, rater: int | None = None) -> list[Vote]:
        """The votes that count, of one rater or of all."""
        return [vote for vote in self._in_force.values() if rater is None or vote.rater == rater]

    def num_entries(self, rater: int) -> int:
        """How many entries of ``rater`` were recorded, undone ones included."""
        return self._num_entries.get(rater, 0)

    def _undone_by(self, undo: Undo) -> Vote | None:
        """The vote in force that ``undo``, of the same rater, takes back; None if there is none."""
        vote = self._by_id.get(undo.vote)
        if not isinstance(vote, Vote) or vote.rater != undo.rater:
            return None
        return vote if self._in_force.get((vote.rater, vote.task)) is vote else None


def _only(fields: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(str(name) for name in fields if name not in known)
    if unknown:
        raise EntryError(f"there is no field {unknown[0][:40]!r} in an entry of this kind")


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 100:
        raise EntryError(f"{name} is a short text")
    return value


def _id(fields: Mapping[str, Any], name: str) -> str:
    value = _text(fields, name)
    if not _ID.fullmatch(value):
        raise EntryError(f"{name} is 16 to 64 letters, digits, - and _")
    return value


def _milliseconds(fields: Mapping[str, Any]) -> int | None:
    value = fields.get("milliseconds")
    if value is not None and (type(value) is not int or not 0 <= value <= _LONGEST_MILLISECONDS):
        raise EntryError(f"milliseconds is a whole number up to {_LONGEST_MILLISECONDS}, or null")
    return value
