"""docs/reliability.md, from the rounds that were run."""

from collections.abc import Mapping, Sequence

from benchmarks.faults.journal import Entry, Journal
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


def page(rows: Sequence[Row], journals: Mapping[str, Journal], *, seed: int) -> str:
    """The page for ``rows`` and, by name, the journal of each."""
    ordered = sorted(rows, key=lambda row: int(row.name[1:]))
    entries = {row.name: journals[row.name].entries(seed) for row in ordered}
    lines = [_line(row, entries[row.name]) for row in ordered]
    sections = [
        _said("What did not hold", {name: journals[name].failed(seed) for name in entries}),
        _said(
            "What did not hold at first, and held when it was run again", {name: journals[name].failed_at_first(seed) for name in entries}
        ),
        _said("The last round of each", {name: run[-1:] for name, run in entries.items()}),
    ]
    return "".join([_HEAD.format(seed=seed), *lines, _machines(entries), *sections])


def _line(row: Row, entries: Sequence[Entry]) -> str:
    held = sum(entry.finished.passed for entry in entries)
    result = f"{held:,} of {len(entries):,} {row.unit}" if entries else _NEVER
    if entries and len(entries) < row.num_rounds:
        result += f" ({row.num_rounds:,} are the full figure)"
    seconds = f"{sum(entry.finished.seconds for entry in entries):,.0f}" if entries else ""
    commits = ", ".join(dict.fromkeys(entry.commit for entry in entries))
    return f"| {row.name} | {row.fault} | {row.must} | {result} | {seconds} | {commits} |\n"


def _machines(entries: Mapping[str, Sequence[Entry]]) -> str:
    machines = dict.fromkeys(entry.machine for run in entries.values() for entry in run)
    return f"\nRun on: {'; '.join(machines)}. Seconds are those of the rounds, on cores shared with other work.\n" if machines else ""


def _said(title: str, entries: Mapping[str, Sequence[Entry]]) -> str:
    """A section of what rounds said, by row, if any did: what was done, in the concrete."""
    said = [f"- {name}, round {entry.finished.round}: {entry.finished.said}\n" for name, run in entries.items() for entry in run]
    return "".join([f"\n## {title}\n\n", *said]) if said else ""
