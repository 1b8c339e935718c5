"""The plug-in, the journal and the page: what passed is not run again, what failed is reported and fails the run, the page says no more."""

import importlib
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.figures import Figure, Row, figures_of, read_record, write_record
from tests.faults.journal import Journal, Outcome
from tests.faults.page import page
from tests.faults.rounds import JOURNAL, PAGE, RECORD

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
ROW = Row("F3", "a fault", "a criterion", "rounds", 4, range(0, 4, 2))


def outcome(number: int, *, passed: bool = True, seed: int = 0, row: str = "F3", commit: str = "abc") -> Outcome:
    return Outcome(row, seed, number, passed, f"round {number}", 1.5, commit, "a machine")


class TestRows:
    """Those of this folder."""

    @pytest.fixture
    def rows(self) -> list[Row]:
        modules = [importlib.import_module(f"tests.faults.{path.stem}") for path in Path(__file__).parent.glob("test_*.py")]
        marks = [mark for module in modules for test in vars(module).values() for mark in getattr(test, "pytestmark", ())]
        return [Row(*mark.args, **mark.kwargs) for mark in marks if mark.name == "fault"]

    def test_rows_have_names_of_their_own(self, rows: list[Row]) -> None:
        assert len({row.name for row in rows}) == len(rows) == 26

    def test_rounds_and_samples_are_as_many_as_ever(self, rows: list[Row]) -> None:
        sizes = {row.name: (row.num_rounds, len(row.sample)) for row in rows}
        assert sizes == {
            **{"F1": (120, 6), "F4": (3200, 40), "F5": (1000, 100), "F6": (1000, 25), "F7": (200, 40), "F8": (100, 1), "F9": (50, 3)},
            **{
                "F10": (50, 2),
                "F12": (40, 1),
                "F13": (64, 16),
                "F14": (35, 4),
                "F15": (50, 1),
                "F16": (60, 3),
                "F17": (200, 6),
                "F18": (97, 12),
                "F19": (3, 1),
                "F20": (20, 1),
            },
            **{"F2": (81, 2), "F3": (36, 1), "F11": (36, 2), "F21": (200, 7), "F22": (24, 24), "F23": (40, 2), "F24": (20, 1)},
            "F25": (400, 10),
            "F28": (10, 1),
        }

    def test_record_claims_what_the_tests_say(self, rows: list[Row]) -> None:
        recorded = {figure.row: (figure.fault, figure.must, figure.unit, figure.num_rounds) for figure in read_record(ROOT / RECORD)}
        assert recorded == {row.name: (row.fault, row.must, row.unit, row.num_rounds) for row in rows}

    def test_page_is_made_from_the_record(self) -> None:
        assert (ROOT / PAGE).read_text(encoding="utf-8") == page(read_record(ROOT / RECORD), seed=0)

    @pytest.mark.parametrize("sample", [(), (4,)])
    def test_sample_outside_the_rounds_is_refused(self, sample: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="F3: the sample must be some of its 4 rounds"):
            replace(ROW, sample=sample)


class TestJournal:
    def test_only_rounds_that_passed_last_are_passed(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "new" / "journal.jsonl")
        assert journal.passed(0) == set()
        for number, passed in ((0, True), (2, False)):
            journal.add(outcome(number, passed=passed))
        journal.add(outcome(1, seed=9))
        journal.add(outcome(1, row="F30"))
        assert journal.passed(0) == {("F3", 0), ("F30", 1)}
        journal.add(outcome(2))
        assert journal.passed(0) == {("F3", 0), ("F3", 2), ("F30", 1)}
        assert [found.passed for found in journal.latest("F3", 0)] == [True, True]
        journal.add(outcome(0, passed=False))
        assert journal.passed(0) == {("F3", 2), ("F30", 1)}

    def test_line_cut_by_a_kill_is_ignored(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "journal.jsonl")
        for number in range(3):
            journal.add(outcome(number))
        journal.path.write_bytes(journal.path.read_bytes()[:-20])
        assert journal.passed(0) == {("F3", 0), ("F3", 1)}
        journal.add(outcome(2))
        assert journal.passed(0) == {("F3", 0), ("F3", 1), ("F3", 2)}


class TestFigures:
    @pytest.fixture
    def journal(self, tmp_path: Path) -> Journal:
        return Journal(tmp_path / "journal.jsonl")

    @pytest.fixture
    def recorded(self) -> Figure:
        """The full figure of another machine."""
        return Figure("F3", 0, "a fault", "a criterion", "rounds", 4, 4, 4, 9, commits=["old"], machines=["another"])

    def test_full_record_stands_until_as_many_rounds_were_run_here(self, journal: Journal, recorded: Figure) -> None:
        for number in range(3):
            journal.add(outcome(number))
            assert figures_of([ROW], journal, seed=0, recorded=[recorded]) == [recorded]
        journal.add(outcome(3, commit="new"))
        (figure,) = figures_of([ROW], journal, seed=0, recorded=[recorded])
        assert (figure.num_held, figure.seconds, figure.commits, figure.machines) == (4, 6, ["abc", "new"], ["a machine"])

    def test_one_failed_round_replaces_a_full_record(self, journal: Journal, recorded: Figure) -> None:
        journal.add(outcome(1, passed=False))
        (figure,) = figures_of([ROW], journal, seed=0, recorded=[recorded])
        assert (figure.num_held, figure.num_run, [failed.number for failed in figure.failed]) == (0, 1, [1])

    def test_claim_is_what_the_test_says_today(self, journal: Journal, recorded: Figure) -> None:
        (figure,) = figures_of([replace(ROW, must="more")], journal, seed=0, recorded=[recorded])
        assert figure == replace(recorded, must="more")

    def test_rows_and_seeds_that_were_not_collected_stay(self, journal: Journal, recorded: Figure) -> None:
        others = [replace(recorded, row="F10"), replace(recorded, row="F2"), replace(recorded, seed=7)]
        figures = figures_of([ROW], journal, seed=0, recorded=[recorded, *others])
        assert figures == [others[1], recorded, others[0], others[2]]

    def test_record_is_read_as_it_was_written(self, journal: Journal, tmp_path: Path) -> None:
        for number, passed in ((0, False), (0, True), (1, False)):
            journal.add(outcome(number, passed=passed))
        figures = figures_of([ROW], journal, seed=0, recorded=[])
        assert figures[0].failed
        assert figures[0].failed_at_first
        write_record(tmp_path / "record.jsonl", figures)
        assert read_record(tmp_path / "record.jsonl") == figures


class TestPage:
    def page_of(self, folder: Path, *outcomes: Outcome) -> str:
        """The page when only these rounds of a row were run, and another row never."""
        journal = Journal(folder / "journal.jsonl")
        for each in outcomes:
            journal.add(each)
        return page(figures_of([ROW, replace(ROW, name="F11")], journal, seed=0, recorded=[]), seed=0)

    def test_says_how_many_rounds_held_of_how_many_and_which_failed(self, tmp_path: Path) -> None:
        text = self.page_of(tmp_path, outcome(0), outcome(1, passed=False), outcome(2))
        assert "\n| F3 | a fault | a criterion | 2 of 3 rounds (4 are the full figure) | 4 | abc |\n" in text
        assert "\n## What did not hold\n\n- F3, round 1: round 1\n" in text
        assert "\n## The last round of each\n\n- F3, round 2: round 2\n" in text
        assert "\n| F11 | a fault | a criterion | not run |  |  |\n" in text
        assert "\nRun on: a machine. " in text

    def test_round_that_held_only_when_run_again_is_reported(self, tmp_path: Path) -> None:
        text = self.page_of(tmp_path, outcome(0, passed=False), outcome(1), outcome(0))
        assert "2 of 2 rounds" in text
        assert "What did not hold\n" not in text
        assert "\n## What did not hold at first, and held when it was run again\n\n- F3, round 0: round 0\n" in text

    def test_full_figure_says_nothing_of_failures_or_missing_rounds(self, tmp_path: Path) -> None:
        text = self.page_of(tmp_path, *(outcome(number) for number in range(ROW.num_rounds)))
        assert "| 4 of 4 rounds |" in text
        assert "did not hold" not in text
        assert "full figure)" not in text


ROWS = """
import os
import signal
from pathlib import Path

import pytest


@pytest.mark.fault("F3", fault="a fault", must="a criterion", unit="rounds", num_rounds=4, sample=(0, 2))
def test_holds(trial, tmp_path):
    {body}
    trial.record(f"round {{trial.number}} of seed {{trial.seed}} in {{tmp_path}}/file")


@pytest.mark.slow
@pytest.mark.fault("F30", fault="another", must="another", unit="runs", num_rounds=2, sample=(0,))
def test_holds_too(trial):
    pass
"""

Run = Callable[..., pytest.RunResult]


class TestPlugin:
    """Inside a project of two rows."""

    @pytest.fixture
    def project(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a second each
        pytester.makeini("[pytest]\nmarkers = slow: costly\n")
        pytester.mkdir("docs")
        self.write(pytester)
        return pytester

    def write(self, project: pytest.Pytester, body: str = "pass") -> None:
        """Let each round of F3 do ``body``."""
        project.path.joinpath("test_rows.py").write_text(ROWS.format(body=body))

    def run(self, project: pytest.Pytester, *words: str) -> pytest.RunResult:
        return project.runpytest_subprocess("-p", "tests.faults.rounds", "-p", "no:cacheprovider", "-v", *words)

    def lines(self, project: pytest.Pytester) -> list[dict[str, object]]:
        return [json.loads(line) for line in (project.path / JOURNAL).read_text().splitlines()]

    def test_sample_is_run_with_seed_1_and_journals_nothing(self, project: pytest.Pytester) -> None:
        self.write(project, "assert trial.seed == 1")
        result = self.run(project)
        result.assert_outcomes(passed=3)
        result.stdout.fnmatch_lines(["*test_holds[[]F3-0-of-4[]]*", "*test_holds[[]F3-2-of-4[]]*", "F3: 2 of 4 rounds", "F30: 1 of 2 runs"])
        assert not (project.path / JOURNAL).exists()
        assert not (project.path / PAGE).exists()

    def test_every_round_is_journalled_once_and_the_page_written(self, project: pytest.Pytester) -> None:
        self.run(project, "--rounds", "all").assert_outcomes(passed=6)
        lines = self.lines(project)
        assert [(line["row"], line["round"], line["seed"], line["passed"]) for line in lines] == [
            *(("F3", number, 0, True) for number in range(4)),
            *(("F30", number, 0, True) for number in range(2)),
        ]
        assert lines[3]["said"] == "round 3 of seed 0 in file"  # the same words on any machine
        text = (project.path / PAGE).read_text()
        assert "| 4 of 4 rounds |" in text
        assert "| 2 of 2 runs |" in text
        again = self.run(project, "--rounds", "all")
        again.assert_outcomes(deselected=6)
        assert again.ret == pytest.ExitCode.OK
        assert len(self.lines(project)) == 6
        assert (project.path / PAGE).read_text() == text

    def test_failing_criterion_is_recorded_and_fails_every_run_until_it_passes(self, project: pytest.Pytester) -> None:
        self.write(project, 'assert trial.number != 1, f"the disk of {tmp_path}/a is not whole"')
        result = self.run(project, "--rounds", "all")
        result.assert_outcomes(passed=5, failed=1)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(["F3 round 1 failed: the disk of a is not whole"])
        assert "\n## What did not hold\n\n- F3, round 1: the disk of a is not whole\n" in (project.path / PAGE).read_text()
        elsewhere = self.run(project, "--rounds", "all", "-k", "F30-")
        elsewhere.assert_outcomes(deselected=6)
        assert elsewhere.ret == pytest.ExitCode.TESTS_FAILED
        self.write(project)
        again = self.run(project, "--rounds", "all")
        again.assert_outcomes(passed=1, deselected=5)
        text = (project.path / PAGE).read_text()
        assert "| 4 of 4 rounds |" in text
        assert "held when it was run again\n\n- F3, round 1: the disk of a is not whole\n" in text

    def test_error_that_nobody_thought_of_is_a_failed_round(self, project: pytest.Pytester) -> None:
        self.write(project, 'raise KeyError("no such place")')
        self.run(project, "--rounds", "1").assert_outcomes(failed=1, passed=1)
        assert [(line["passed"], line["said"]) for line in self.lines(project)] == [(False, "KeyError: 'no such place'"), (True, "")]

    def test_killed_run_goes_on_where_it_was(self, project: pytest.Pytester) -> None:
        self.write(project, 'trial.number == 2 and not Path("killed").mkdir() and os.kill(os.getpid(), signal.SIGKILL)')
        assert self.run(project, "--rounds", "all").ret == -signal.SIGKILL
        assert [line["round"] for line in self.lines(project)] == [0, 1]
        self.write(project)
        self.run(project, "--rounds", "all").assert_outcomes(passed=4, deselected=2)
        assert "| 4 of 4 rounds |" in (project.path / PAGE).read_text()

    def test_one_row_can_be_run_and_a_misspelled_one_is_an_error(self, project: pytest.Pytester) -> None:
        self.run(project, "--rounds", "all", "-k", "F3-").assert_outcomes(passed=4, deselected=2)
        assert {line["row"] for line in self.lines(project)} == {"F3"}
        assert self.run(project, "--rounds", "all", "-k", "F31-").ret == pytest.ExitCode.NO_TESTS_COLLECTED

    def test_rows_of_many_rounds_come_first(self, project: pytest.Pytester) -> None:
        path = project.path / "test_rows.py"
        path.write_text(path.read_text().replace("num_rounds=2", "num_rounds=5"))
        self.run(project, "--rounds", "all").assert_outcomes(passed=9)
        assert [line["row"] for line in self.lines(project)] == ["F30"] * 5 + ["F3"] * 4

    def test_first_rounds_of_each_row_are_run_for_another_seed(self, project: pytest.Pytester) -> None:
        self.write(project, "assert trial.seed == 5")
        self.run(project, "--rounds", "1").assert_outcomes(failed=1, passed=1)
        result = self.run(project, "--rounds", "3", "--seed", "5")
        result.assert_outcomes(passed=5)
        assert result.ret == pytest.ExitCode.OK  # what failed with another seed is that seed's
        assert {(line["round"], line["seed"]) for line in self.lines(project)} == {(0, 0), (0, 5), (1, 5), (2, 5)}
        assert "3 of 3 rounds (4 are the full figure)" in (project.path / PAGE).read_text()

    def test_rounds_that_are_no_number_are_a_usage_error(self, project: pytest.Pytester) -> None:
        assert self.run(project, "--rounds", "many").ret == pytest.ExitCode.USAGE_ERROR

    def test_two_rows_of_one_name_are_refused(self, project: pytest.Pytester) -> None:
        path = project.path / "test_rows.py"
        path.write_text(path.read_text().replace('"F30"', '"F3"'))
        result = self.run(project)
        assert result.ret != pytest.ExitCode.OK
        result.stdout.fnmatch_lines(["*two tests call themselves F3*"])

    def test_workers_of_xdist_run_samples_and_no_journal(self, project: pytest.Pytester) -> None:
        sample = self.run(project, "-p", "xdist", "--numprocesses", "2")
        sample.assert_outcomes(passed=3)
        sample.stdout.fnmatch_lines(["F3: 2 of 4 rounds", "F30: 1 of 2 runs"])
        refused = self.run(project, "--rounds", "all", "-p", "xdist", "--numprocesses", "2")
        assert refused.ret == pytest.ExitCode.USAGE_ERROR
        assert not (project.path / JOURNAL).exists()
