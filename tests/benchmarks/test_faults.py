"""A sample of each row of the fault matrix, and the matrix's own bookkeeping: what was run is neither forgotten nor run again."""

import os
import signal
from pathlib import Path

import pytest

from benchmarks.faults.apart import apart, touches_of
from benchmarks.faults.journal import Entry, Journal
from benchmarks.faults.matrix import MATRIX
from benchmarks.faults.page import page
from benchmarks.faults.row import Finished, Row, Suite, run_rounds


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.suite is Suite.SLOW else []) for row in MATRIX]
)
def test_a_sample_of_each_row_holds(row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished = list(run_rounds(row, row.sample, seed=1, scratch=tmp_path))
    with capsys.disabled():
        print(f" {row.name}: {len(finished):,} of {row.num_rounds:,} {row.unit}", end=" ", flush=True)
    assert [round_.said for round_ in finished if not round_.passed] == []
    assert len(finished) == len(row.sample)


def test_rows_have_names_of_their_own_and_samples_within_their_rounds() -> None:
    assert len({row.name for row in MATRIX}) == len(MATRIX)
    for row in MATRIX:
        assert row.sample
        assert set(row.sample) <= set(range(row.num_rounds))


def entry(number: int, *, passed: bool = True, seed: int = 0) -> Entry:
    return Entry(Finished(seed, number, passed, f"round {number}", 1.5), "abc", "a machine")


class TestJournal:
    def test_what_passed_is_not_run_again_and_what_failed_is(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "F0.jsonl")
        assert journal.unfinished(range(4), seed=0) == [0, 1, 2, 3]
        for number, passed in ((0, True), (2, False)):
            journal.add(entry(number, passed=passed))
        journal.add(entry(1, seed=9))
        assert journal.unfinished(range(4), seed=0) == [1, 2, 3]
        journal.add(entry(2))
        assert journal.unfinished(range(4), seed=0) == [1, 3]
        assert [found.finished.passed for found in journal.entries(0)] == [True, True]

    def test_a_line_that_a_kill_has_cut_is_as_if_it_had_not_been_written(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "F0.jsonl")
        for number in range(3):
            journal.add(entry(number))
        journal.path.write_bytes(journal.path.read_bytes()[:-20])
        assert journal.unfinished(range(3), seed=0) == [2]
        journal.add(entry(2))
        assert journal.unfinished(range(3), seed=0) == []


class TestPage:
    def page_of(self, folder: Path, row: Row, *entries: Entry) -> str:
        """The page when ``row`` alone was run."""
        journals = {each.name: Journal(folder / f"{each.name}.jsonl") for each in MATRIX}
        for each in entries:
            journals[row.name].add(each)
        return page(MATRIX, journals, seed=0)

    def test_it_says_how_many_rounds_held_of_how_many_and_which_did_not(self, tmp_path: Path) -> None:
        row = MATRIX[0]
        text = self.page_of(tmp_path, row, entry(0), entry(1, passed=False), entry(2))
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {row.name} ")]
        assert f"2 of 3 {row.unit} ({row.num_rounds:,} are the full figure)" in line
        assert f"## What did not hold\n\n- {row.name}, round 1: round 1\n" in text
        assert text.count("not run") == len(MATRIX) - 1

    def test_what_held_only_when_it_was_run_again_is_told(self, tmp_path: Path) -> None:
        row = MATRIX[0]
        text = self.page_of(tmp_path, row, entry(0, passed=False), entry(1), entry(0))
        assert f"2 of 2 {row.unit}" in text
        assert "What did not hold\n" not in text
        assert f"## What did not hold at first, and held when it was run again\n\n- {row.name}, round 0: round 0\n" in text

    def test_what_is_whole_says_no_more(self, tmp_path: Path) -> None:
        row = min(MATRIX, key=lambda row: row.num_rounds)
        text = self.page_of(tmp_path, row, *(entry(number) for number in range(row.num_rounds)))
        assert f"| {row.num_rounds:,} of {row.num_rounds:,} {row.unit} |" in text
        assert "did not hold" not in text


class TestApart:
    def test_what_the_work_returns_or_raises_crosses_over(self) -> None:
        assert apart(lambda: [1, 2]).value == [1, 2]
        assert repr(apart(lambda: 1 / 0).error) == repr(ZeroDivisionError("division by zero"))

    def test_a_signal_and_a_hang_are_told_by_the_exit_code(self) -> None:
        assert apart(lambda: os.kill(os.getpid(), signal.SIGUSR1)).exit_code == -signal.SIGUSR1
        hung = apart(signal.pause, within=0.2)
        assert hung.was_killed
        assert hung.seconds < 10

    def test_its_peak_is_its_own(self) -> None:
        idle = apart(lambda: None).peak_bytes
        assert apart(lambda: len(bytearray(b"x") * (200 << 20))).peak_bytes - idle > 150 << 20

    def test_it_is_killed_before_the_touch_asked_for(self, tmp_path: Path) -> None:
        def work(kill_at: int | None = None) -> list[str]:
            touched = touches_of(tmp_path, kill_at=kill_at)
            (tmp_path / "a").write_text("a")
            (tmp_path / "a").rename(tmp_path / "b")
            (tmp_path / "b").unlink()
            return touched

        assert apart(work).value == ["open /a", "os.rename /b", "os.remove /b"]
        for kill_at, left in ((1, []), (2, ["a"]), (3, ["b"])):
            ended = apart(lambda kill_at=kill_at: work(kill_at))
            assert ended.was_killed
            assert sorted(path.name for path in tmp_path.iterdir()) == left
            for path in tmp_path.iterdir():
                path.unlink()
