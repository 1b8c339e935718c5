"""docs/reliability.md, from the recorded figures."""

from collections.abc import Mapping, Sequence

from tests.faults.figures import Figure, Round

_HEAD = """# Reliability

Faults are injected on purpose, many times; this page says what must hold after each, and whether it did. A row is a parametrised test
of `tests/faults`, a round is one of its parameters: a function of its number and of a seed (here {seed}). CI runs a sample of each row
(seed 1), whose size the test ids and the end of pytest's output say. `make faults` runs every round that has not passed yet, goes on
where it was stopped, and writes this page; `make faults FAULTS="-k F4-"` does so for one row. The rounds are journalled in
`artifacts/faults/`; this page is made from `docs/reliability.jsonl`, which holds a line for each row, with the commits
at which its rounds were run; a line is replaced when as many rounds have been run anew, or when one of them fails.

| row | fault | what must hold | held | seconds | commit |
|---|---|---|---|--:|---|
"""

_NEVER = "not run"


def page(figures: Sequence[Figure], *, seed: int) -> str:
    """The page for those of ``figures`` that were made with ``seed``."""
    shown = [figure for figure in figures if figure.seed == seed]
    sections = [
        _section("What did not hold", {figure.row: figure.failed for figure in shown}),
        _section("What did not hold at first, and held when it was run again", {figure.row: figure.failed_at_first for figure in shown}),
        _section("The last round of each", {figure.row: figure.last for figure in shown}),
    ]
    return "".join([_HEAD.format(seed=seed), *map(_line, shown), _machines(shown), _counts(shown), *sections])


def _line(figure: Figure) -> str:
    result = f"{figure.num_held:,} of {figure.num_run:,} {figure.unit}" if figure.num_run else _NEVER
    if 0 < figure.num_run < figure.num_rounds:
        result += f" ({figure.num_rounds:,} are the full figure)"
    seconds = f"{figure.seconds:,}" if figure.num_run else ""
    return f"| {figure.row} | {figure.fault} | {figure.must} | {result} | {seconds} | {', '.join(figure.commits)} |\n"


def _machines(figures: Sequence[Figure]) -> str:
    machines = dict.fromkeys(machine for figure in figures for machine in figure.machines)
    return f"\nRun on: {'; '.join(machines)}. Seconds are those of the rounds, on cores shared with other work.\n" if machines else ""


def _counts(figures: Sequence[Figure]) -> str:
    """What became of the cases of rows whose rounds are made of many."""
    lines = [
        f"- {figure.row}, {kind}: " + ", ".join(f"{what} {count:,}" for what, count in counts.items()) + "\n"
        for figure in figures
        for kind, counts in figure.counts.items()
    ]
    return "".join(["\n## What became of the cases\n\n", *lines]) if lines else ""


def _section(title: str, rounds: Mapping[str, Sequence[Round]]) -> str:
    """A section that quotes rounds by row, if there are any: what was done and seen, in the concrete."""
    lines = [f"- {row}, round {round_.number}: {round_.said}\n" for row, quoted in rounds.items() for round_ in quoted]
    return "".join([f"\n## {title}\n\n", *lines]) if lines else ""
