"""Rounds that were run, one line of JSON each: a stopped run goes on from them, and figures are counted from them."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

Counts = Mapping[str, Mapping[str, int]]
"""Of each kind of case that a round is made of: how many, and how many what became of."""


@dataclass(frozen=True)
class Outcome:
    """One round of a row that was run: whether its criterion held, what was done and seen, at which commit, on what machine."""

    row: str
    seed: int
    round: int
    passed: bool
    said: str
    seconds: float
    commit: str
    machine: str
    counts: Counts = field(default_factory=dict)


@dataclass(frozen=True)
class Journal:
    """The rounds in ``path``, in the order in which they were run; of a round that was run again the last line counts."""

    path: Path

    def latest(self, row: str, seed: int) -> list[Outcome]:
        """The rounds of ``row`` that were run with ``seed``, by number."""
        found = {outcome.round: outcome for outcome in self._lines() if (outcome.row, outcome.seed) == (row, seed)}
        return [found[number] for number in sorted(found)]

    def failed_at_first(self, row: str, seed: int) -> list[Outcome]:
        """The failures of rounds that passed when they were run again."""
        passed = {outcome.round for outcome in self.latest(row, seed) if outcome.passed}
        lines = (outcome for outcome in self._lines() if (outcome.row, outcome.seed) == (row, seed))
        return [outcome for outcome in lines if not outcome.passed and outcome.round in passed]

    def passed(self, seed: int) -> set[tuple[str, int]]:
        """Row and number of the rounds that need not be run again."""
        found = {(outcome.row, outcome.round): outcome.passed for outcome in self._lines() if outcome.seed == seed}
        return {round_ for round_, passed in found.items() if passed}

    def add(self, outcome: Outcome) -> None:
        """Append ``outcome``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                if stream.read() != b"\n":  # after a line that was cut
                    stream.write(b"\n")
            stream.write(json.dumps(asdict(outcome)).encode() + b"\n")

    def _lines(self) -> Iterator[Outcome]:
        """A line that was cut when its writer was killed is passed over."""
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                yield Outcome(**json.loads(line))
            except (ValueError, TypeError):
                continue
