"""Answers that raters of a static study sent back: files of other people, read line by line and checked."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from rglcd.errors import InputError
from rglcd.study.ballots import LONGEST_ENTRY, Ballots, Entry, EntryError, RefusedError, Vote, parse_entry
from rglcd.study.raters import Rater, rater_with
from rglcd.study.records import Study

_LONGEST_FILE: Final = 64 << 20


def read_returned(path: Path, study: Study, raters: Sequence[Rater]) -> list[Entry]:
    """The entries of a file of answers. Raises :class:`InputError` for a file of another study, or one that no page of ours wrote."""
    if not path.is_file():
        raise InputError(f"{path} is no file of answers")
    if path.stat().st_size > _LONGEST_FILE:
        raise InputError(f"{path} is larger than {_LONGEST_FILE >> 20} MiB: no file of answers")
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        fields = json.loads(head)
        rater = rater_with(str(fields["rater"]), raters)
        of_study = fields["study"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(f"{path} does not begin as a file of answers does") from None
    if of_study != study.id or rater is None:
        raise InputError(f"{path} holds answers of {'another study' if of_study != study.id else 'nobody who was given this study'}")
    return [_entry(line, rater, where=f"{path}, line {number}") for number, line in enumerate(lines, start=2)]


def counted(recorded: Iterable[Entry], returned: Iterable[Entry], known_tasks: dict[int, set[str]]) -> tuple[list[Vote], int]:
    """The votes in force after what a server recorded and what was sent back, and how many entries contradicted earlier ones.

    A file that was sent twice counts once, by the ids; of two answers of a rater to one task the first counts.
    Raises :class:`InputError` for an answer to what its rater was not asked.
    """
    ballots, num_refused = Ballots(), 0
    for entry in (*recorded, *returned):
        if isinstance(entry, Vote) and entry.task not in known_tasks[entry.rater]:
            raise InputError(
                f"rater {entry.rater + 1} answered {entry.task!r}, which is no task of that rater: is this another study's file?"
            )
        try:
            ballots.add(entry)
        except RefusedError:
            num_refused += 1
    return ballots.in_force(), num_refused


def _entry(line: str, rater: Rater, *, where: str) -> Entry:
    if len(line) > LONGEST_ENTRY:
        raise InputError(f"{where} is longer than any answer")
    try:
        return parse_entry(json.loads(line), rater=rater.number, at="")
    except (EntryError, RecursionError, ValueError) as error:
        raise InputError(f"{where}: {error}; no page of this study wrote it") from None
