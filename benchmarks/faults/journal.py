"""Rounds that were run, a line of JSON each: a stopped command goes on, and the page is written from nothing else."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.faults.row import Finished


@dataclass(frozen=True)
class Entry:
    """A round that was run, at which commit and on what machine."""

    finished: Finished
    commit: str
    machine: str


@dataclass(frozen=True)
class Journal:
    """The rounds of one row, in ``path``; of a round that was run again the last entry counts."""

    path: Path

    def entries(self, seed: int) -> list[Entry]:
        """The rounds that were run for ``seed``, by number."""
        found = {entry.finished.round: entry for entry in self._all(seed)}
        return [found[number] for number in sorted(found)]

    def failed(self, seed: int) -> list[Entry]:
        """The rounds that did not pass."""
        return [entry for entry in self.entries(seed) if not entry.finished.passed]

    def failed_at_first(self, seed: int) -> list[Entry]:
        """What failed in rounds that passed when they were run again."""
        passed = {entry.finished.round for entry in self.entries(seed) if entry.finished.passed}
        return [entry for entry in self._all(seed) if not entry.finished.passed and entry.finished.round in passed]

    def _all(self, seed: int) -> Iterator[Entry]:
        """In the order in which they were run. A line that a kill has cut is as if it had not been written."""
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                values = json.loads(line)
                entry = Entry(Finished(**values["finished"]), values["commit"], values["machine"])
            except (ValueError, KeyError, TypeError):
                continue
            if entry.finished.seed == seed:
                yield entry

    def unfinished(self, rounds: Sequence[int], *, seed: int) -> list[int]:
        """Those of ``rounds`` that were never run, or failed when they were."""
        passed = {entry.finished.round for entry in self.entries(seed) if entry.finished.passed}
        return [number for number in rounds if number not in passed]

    def add(self, entry: Entry) -> None:
        """Write ``entry`` down."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", encoding="utf-8") as stream:
            if stream.tell() and not self.path.read_bytes().endswith(b"\n"):
                stream.write("\n")  # after a line that a kill has cut
            stream.write(json.dumps(asdict(entry)) + "\n")
