"""``python -m benchmarks.faults``: run what is not run yet of the matrix, row by row, and write docs/reliability.md."""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults.journal import Entry, Journal
from benchmarks.faults.machine import machine
from benchmarks.faults.matrix import MATRIX, row_named
from benchmarks.faults.page import page
from benchmarks.faults.row import Row, run_rounds
from rglcd.launch.console import drawing
from rglcd.launch.execute import process_boundary
from rglcd.progress import report, reporting_to
from rglcd.store.locks import claimed

ROOT = Path("artifacts/faults")
PAGE = Path("docs/reliability.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows asked for; returns 1 if a round failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--row", action="append", choices=[row.name for row in MATRIX], help="only this row (may be given again)")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most so many rounds of each row (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    options = parser.parse_args(arguments)
    rows = [] if options.page else [row_named(name) for name in options.row] if options.row else list(MATRIX)
    ROOT.mkdir(parents=True, exist_ok=True)
    with process_boundary(), drawing(sys.stderr) as sink, reporting_to(sink):
        for row in rows:
            with claimed(ROOT / f".{row.name}.claim", wait=True):  # two commands would share its scratch folder
                _run(row, num_rounds=options.rounds or row.num_rounds, seed=options.seed)
    journals = {row.name: _journal(row) for row in MATRIX}
    PAGE.write_text(page(MATRIX, journals, seed=options.seed), encoding="utf-8")
    failed = [(name, entry) for name, journal in journals.items() for entry in journal.failed(options.seed)]
    for name, entry in failed:
        print(f"{name} round {entry.finished.round} failed: {entry.finished.said}")
    print(f"{PAGE} is written")
    return 1 if failed else 0


def _journal(row: Row) -> Journal:
    return Journal(ROOT / f"{row.name}.jsonl")


def _run(row: Row, *, num_rounds: int, seed: int) -> None:
    journal = _journal(row)
    rounds = journal.unfinished(range(min(num_rounds, row.num_rounds)), seed=seed)
    if not rounds:
        return
    scratch = ROOT / "scratch" / row.name
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    commit, failures = _commit(), 0
    before = num_rounds - len(rounds)
    for done, finished in enumerate(run_rounds(row, rounds, seed=seed, scratch=scratch.resolve()), start=before + 1):
        journal.add(Entry(finished, commit, machine()))
        failures += not finished.passed
        report(f"{row.name} {row.fault[:40]}", done=done, total=num_rounds, unit=row.unit, failures=failures)
    shutil.rmtree(scratch, ignore_errors=True)


def _commit() -> str:
    """The commit of the checkout, and a plus where anything but the page was changed."""
    head = subprocess.run(["git", "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "-uno", "--", ".", f":!{PAGE}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return f"{head}+" if changed else head


if __name__ == "__main__":
    sys.exit(main())
