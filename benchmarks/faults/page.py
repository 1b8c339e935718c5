"""docs/reliability.md, from the rounds that were run."""

from collections.abc import Mapping, Sequence

from benchmarks.faults.journal import Entry
from benchmarks.faults.row import Row

_HEAD = """# Reliability

What may go wrong is done on purpose, so many times; this page says what must hold afterwards, and whether it did. `make faults`
(`python -m benchmarks.faults`) runs what has not been run and writes this page from the rounds that were; `--row F4` goes on with one
row. A round is a function of its number and of a seed (here {seed}). CI runs a sample of each row and prints its size
(`tests/benchmarks/test_faults.py`).

| row | fault | what must hold | held | seconds | commit |
|---|---|---|---|--:|---|
"""

_NEVER = "not run"


def page(rows: Sequence[Row], journals: Mapping[str, Sequence[Entry]], *, seed: int) -> str:
    """The page for ``rows`` and, by name, the entries of each."""
    ordered = sorted(rows, key=lambda row: int(row.name[1:]))
    lines = [_line(row, journals[row.name]) for row in ordered]
    return "".join([_HEAD.format(seed=seed), *lines, _machines(journals), _failures(ordered, journals), _last(ordered, journals)])


def _line(row: Row, entries: Sequence[Entry]) -> str:
    held = sum(entry.finished.passed for entry in entries)
    result = f"{held:,} of {len(entries):,} {row.unit}" if entries else _NEVER
    if entries and len(entries) < row.num_rounds:
        result += f" ({row.num_rounds:,} are the full figure)"
    seconds = f"{sum(entry.finished.seconds for entry in entries):,.0f}" if entries else ""
    commits = ", ".join(dict.fromkeys(entry.commit for entry in entries))
    return f"| {row.name} | {row.fault} | {row.must} | {result} | {seconds} | {commits} |\n"


def _machines(journals: Mapping[str, Sequence[Entry]]) -> str:
    machines = dict.fromkeys(entry.machine for entries in journals.values() for entry in entries)
    return f"\nRun on: {'; '.join(machines)}. Seconds are those of the rounds, on cores shared with other work.\n" if machines else ""


def _failures(rows: Sequence[Row], journals: Mapping[str, Sequence[Entry]]) -> str:
    said = [
        f"- {row.name}, round {e.finished.round}: {e.finished.said}\n" for row in rows for e in journals[row.name] if not e.finished.passed
    ]
    return "".join(["\n## What did not hold\n\n", *said]) if said else ""


def _last(rows: Sequence[Row], journals: Mapping[str, Sequence[Entry]]) -> str:
    """What one round of each row said: what was done, in the concrete."""
    said = [f"- {row.name}: {journals[row.name][-1].finished.said}\n" for row in rows if journals[row.name]]
    return "".join(["\n## The last round of each\n\n", *said]) if said else ""
