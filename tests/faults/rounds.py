"""The pytest plug-in of fault rows: a test with the mark ``fault`` is a row of docs/reliability.md, each parameter one of its rounds.

    @pytest.mark.fault("F4", fault="a tar cut ...", must="refused ...", unit="cuts", num_rounds=3200, sample=range(0, 3200, 80))
    def test_cut_tar_is_refused(trial: Trial, tmp_path: Path) -> None: ...

Without options a row's sample is run, with seed 1. With ``--rounds all`` its full figure is: every round that has not passed yet goes
into the journal, and at the end the record and the page are written. ``trial`` is the round: its number, its seed, its random numbers.
"""

import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.faults.figures import Figure, Row, figures_of, read_record, write_record
from tests.faults.journal import Counts, Journal, Outcome
from tests.faults.page import page
from tests.faults.provenance import commit_of, machine

JOURNAL = Path("artifacts/faults/journal.jsonl")
RECORD = Path("docs/reliability.jsonl")
PAGE = Path("docs/reliability.md")
_SAMPLE_SEED = 1
_TRIAL = "fault trial"
_ROWS = pytest.StashKey[dict[str, Row]]()
_RECORDER = pytest.StashKey["_Recorder"]()


class Trial:
    """One round of a row: its number, its seed, and what :meth:`record` was given."""

    def __init__(self, number: int, seed: int, facts: dict[str, object]) -> None:
        self.number, self.seed, self._facts = number, seed, facts

    def rng(self) -> random.Random:
        """The random numbers of this round, from the first: a function of seed and number."""
        return random.Random(f"{self.seed}/{self.number}")

    def record(self, said: str, *, counts: Counts | None = None) -> None:
        """Say in a line what was done and seen: the journal and the page quote it; the page adds up the ``counts`` of all rounds."""
        self._facts |= {"said": said, "counts": counts or {}}


def evenly(count: int, *, of: int) -> range:
    """``count`` rounds of ``of``, evenly spaced."""
    return range(0, of, max(1, of // count))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fault rows (tests/faults)")
    words = "the first N rounds of each row, or all, but for those that passed; then the page"
    group.addoption("--rounds", type=rounds_asked, metavar="N", help=words)
    group.addoption("--seed", type=int, default=0, metavar="S", help="the seed of these rounds (default: 0)")


def rounds_asked(word: str) -> int:
    """The value of ``--rounds``."""
    return sys.maxsize if word == "all" else int(word)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name, *, fault, must, unit, num_rounds, sample): a row of docs/reliability.md")
    config.stash[_ROWS] = {}
    if config.getoption("--rounds") is not None:
        if config.getoption("numprocesses", None):
            raise pytest.UsageError("--rounds is for one process, since rows time what they do: leave out --numprocesses")
        config.stash[_RECORDER] = _Recorder(config)
        config.pluginmanager.register(config.stash[_RECORDER])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("fault")
    if mark is None:
        return
    row = Row(*mark.args, **mark.kwargs)
    if metafunc.config.stash[_ROWS].setdefault(row.name, row) != row:
        raise pytest.UsageError(f"two tests call themselves {row.name}")
    rounds = metafunc.config.getoption("--rounds")
    asked = row.sample if rounds is None else range(min(rounds, row.num_rounds))
    metafunc.parametrize("trial", asked, indirect=True, ids=[f"{row.name}-{number}-of-{row.num_rounds}" for number in asked])


@pytest.fixture(scope="session")
def fault_seed(pytestconfig: pytest.Config) -> int:
    """The seed of this session's rounds."""
    return _SAMPLE_SEED if pytestconfig.getoption("--rounds") is None else pytestconfig.getoption("--seed")


@pytest.fixture
def trial(request: pytest.FixtureRequest, fault_seed: int, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """This round of the row."""
    row = request.config.stash[_ROWS][request.node.get_closest_marker("fault").args[0]]
    facts = {"row": row.name, "round": request.param, "seed": fault_seed, "unit": row.unit, "num_rounds": row.num_rounds, "said": ""}
    facts["scratch"] = str(tmp_path_factory.getbasetemp())
    request.node.user_properties.append((_TRIAL, facts))  # reports carry it, those of pytest-xdist's workers too
    return Trial(request.param, fault_seed, facts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How many rounds of each row were run, of how many."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, ())]
    rounds = [facts for report in reports if (facts := _facts_of(report)) is not None]
    counts = Counter((facts["row"], facts["num_rounds"], facts["unit"]) for facts in rounds)
    if counts:
        terminalreporter.section("fault rows: rounds that were run")
    for (row, num_rounds, unit), count in sorted(counts.items(), key=lambda item: int(item[0][0].lstrip("F"))):
        terminalreporter.line(f"{row}: {count:,} of {num_rounds:,} {unit}")
    if _RECORDER in config.stash:
        config.stash[_RECORDER].summarize(terminalreporter)


def _facts_of(report: pytest.TestReport | pytest.CollectReport) -> dict[str, Any] | None:
    """What the report of a round's call says of it; ``None`` for other reports."""
    return dict(report.user_properties).get(_TRIAL) if isinstance(report, pytest.TestReport) and report.when == "call" else None


class _Recorder:
    """Runs what has not passed yet, journals each round as it ends, and writes the record and the page at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.seed, root = config, config.getoption("--seed"), config.rootpath
        self.journal, self.record, self.page = Journal(root / JOURNAL), root / RECORD, root / PAGE
        self.commit, self.machine = commit_of(root, without=(self.record, self.page)), machine()
        self.figures: list[Figure] = []
        self.all_passed_before = False

    @pytest.hookimpl(trylast=True)  # after -k and -m
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        passed = self.journal.passed(self.seed)
        done = [item for item in items if _round_of(item) in passed]
        left = [item for item in items if _round_of(item) not in passed]
        self.all_passed_before = bool(done) and not left
        config.hook.pytest_deselected(items=done)
        items[:] = sorted(left, key=self._num_rounds, reverse=True)  # rows of many rounds first: theirs are the cheap ones

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        facts = _facts_of(report)
        if facts is None or report.skipped:
            return
        said = facts["said"] if report.passed else _reason_of(report)
        said = " ".join(re.sub(rf"{re.escape(facts['scratch'])}/[^/\s]+/", "", said).split())[:400]  # the same words on any machine
        seconds = round(report.duration, 2)
        place = facts["row"], facts["seed"], facts["round"]
        self.journal.add(Outcome(*place, report.passed, said, seconds, self.commit, self.machine, facts.get("counts", {})))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        rows = self.config.stash[_ROWS].values()
        self.figures = figures_of(rows, self.journal, seed=self.seed, recorded=read_record(self.record))
        write_record(self.record, self.figures)
        self.page.write_text(page(self.figures, seed=self.seed), encoding="utf-8")
        if self.all_passed_before and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK
        if self._failed() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def summarize(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Which rounds have not held to this day, and where the figures are."""
        for line in self._failed():
            terminalreporter.line(line)
        terminalreporter.line(f"{PAGE} is written from {RECORD}; rounds that passed are in {JOURNAL} and are not run again")

    def _num_rounds(self, item: pytest.Item) -> int:
        mark = item.get_closest_marker("fault")
        return 0 if mark is None else self.config.stash[_ROWS][mark.args[0]].num_rounds

    def _failed(self) -> list[str]:
        figures = [figure for figure in self.figures if figure.seed == self.seed]
        return [f"{figure.row} round {failed.number} failed: {failed.said}" for figure in figures for failed in figure.failed]


def _round_of(item: pytest.Item) -> tuple[str, int] | None:
    mark = item.get_closest_marker("fault")
    return (mark.args[0], item.callspec.params["trial"]) if mark is not None and isinstance(item, pytest.Function) else None


def _reason_of(report: pytest.TestReport) -> str:
    """What the assertion said, or the error; without pytest's analysis of the expression."""
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash is not None else report.longreprtext
    return message.partition("\nassert ")[0].removeprefix("AssertionError: ")
