"""What docs/reliability.md says of each row: counted from the journal, recorded in docs/reliability.jsonl, one line a row.

The journal is large and stays on the machine that wrote it; the record is small, tracked, and names the commits of its rounds.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tests.faults.journal import Counts, Journal, Outcome


@dataclass(frozen=True)
class Row:
    """A fault, what must hold after it, how many rounds are the full figure, and which of them are CI's sample."""

    name: str
    fault: str
    must: str
    unit: str
    num_rounds: int
    sample: Sequence[int]

    def __post_init__(self) -> None:
        if not self.sample or not set(self.sample) <= set(range(self.num_rounds)):
            raise ValueError(f"{self.name}: the sample must be some of its {self.num_rounds} rounds, not {list(self.sample)}")


@dataclass(frozen=True)
class Round:
    """A round that the page quotes."""

    number: int
    said: str


@dataclass(frozen=True)
class Figure:
    """The line of one row: its claim, and what came of the rounds that were run with ``seed``."""

    row: str
    seed: int
    fault: str
    must: str
    unit: str
    num_rounds: int
    num_run: int = 0
    num_held: int = 0
    seconds: int = 0
    commits: list[str] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)
    failed: list[Round] = field(default_factory=list)
    failed_at_first: list[Round] = field(default_factory=list)
    last: list[Round] = field(default_factory=list)
    counts: Counts = field(default_factory=dict)


def figures_of(rows: Iterable[Row], journal: Journal, *, seed: int, recorded: Sequence[Figure]) -> list[Figure]:
    """What was ``recorded``, with the figures of ``rows`` brought up to date, in the order of the rows' numbers.

    A recorded figure is replaced when as many rounds have been run here, or when one of them has failed; what the row claims
    is always what its test says today.
    """
    by_row = {(figure.row, figure.seed): figure for figure in recorded}
    for row in rows:
        claim = {"fault": row.fault, "must": row.must, "unit": row.unit, "num_rounds": row.num_rounds}
        before = replace(by_row.get((row.name, seed), Figure(row.name, seed, **claim)), **claim)
        here = _counted(before, journal.latest(row.name, seed), journal.failed_at_first(row.name, seed))
        by_row[row.name, seed] = here if here.failed or here.num_run >= max(1, before.num_run) else before
    return sorted(by_row.values(), key=lambda figure: (figure.seed, int(figure.row.lstrip("F"))))


def _counted(figure: Figure, outcomes: Sequence[Outcome], failed_at_first: Sequence[Outcome]) -> Figure:
    """``figure`` with the counts of ``outcomes``."""
    failed = [outcome for outcome in outcomes if not outcome.passed]
    return replace(
        figure,
        num_run=len(outcomes),
        num_held=len(outcomes) - len(failed),
        seconds=round(sum(outcome.seconds for outcome in outcomes)),
        commits=list(dict.fromkeys(outcome.commit for outcome in outcomes)),
        machines=list(dict.fromkeys(outcome.machine for outcome in outcomes)),
        failed=_quoted(failed),
        failed_at_first=_quoted(failed_at_first),
        last=_quoted(outcomes[-1:]),
        counts=_summed(outcomes),
    )


def _summed(outcomes: Iterable[Outcome]) -> Counts:
    sums: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        for kind, counts in outcome.counts.items():
            sums.setdefault(kind, Counter()).update(counts)
    return {kind: dict(counts) for kind, counts in sums.items()}


def _quoted(outcomes: Iterable[Outcome]) -> list[Round]:
    return [Round(outcome.round, outcome.said) for outcome in outcomes]


def read_record(path: Path) -> list[Figure]:
    """The figures in ``path``; none if there is no such file."""
    return [_parsed(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _parsed(values: dict[str, object]) -> Figure:
    quoted = {name: [Round(**each) for each in values[name]] for name in ("failed", "failed_at_first", "last")}
    return Figure(**values | quoted)


def write_record(path: Path, figures: Iterable[Figure]) -> None:
    """Write ``figures`` to ``path``, one a line."""
    filled = [{name: value for name, value in asdict(figure).items() if name != "counts" or value} for figure in figures]
    lines = [json.dumps(values, ensure_ascii=False) + "\n" for values in filled]
    path.write_text("".join(lines), encoding="utf-8")
