"""What is recorded, and what is in force."""

import json
import resource
from pathlib import Path

import pytest

from rglcd.errors import InputError
from rglcd.study.ballots import Ballots, EntryError, RefusedError, Undo, Vote, parse_entry
from rglcd.study.raters import Rater, rater_with, read_raters, with_raters
from rglcd.study.records import Answer
from rglcd.study.vote_log import VOTES, entry_line, open_log, read_log
from tests.faults.watched_process import run_forked
from tests.study.studies import new_id

RATERS = [Rater(0, "a" * 32, False), Rater(1, "b" * 32, False)]


def vote(number: int, *, task: str = "task", rater: int = 0, answer: Answer = Answer.LEFT) -> Vote:
    return Vote(new_id("vote", number), rater, task, answer, 900, "now")


def undo(number: int, of: Vote, *, rater: int = 0) -> Undo:
    return Undo(new_id("undo", number), rater, of.id, "now")


def test_the_same_vote_sent_again_counts_once() -> None:
    ballots = Ballots()
    assert ballots.add(vote(1))
    assert not ballots.add(vote(1))
    assert ballots.in_force() == [vote(1)]


@pytest.mark.parametrize("other", [vote(1, answer=Answer.TIE), vote(1, task="other"), vote(1, rater=1)])
def test_an_id_that_is_taken_by_another_vote_is_refused(other: Vote) -> None:
    ballots = Ballots()
    ballots.add(vote(1))
    with pytest.raises(RefusedError, match="another entry"):
        ballots.add(other)


def test_a_second_answer_to_a_task_is_refused_until_the_first_is_undone() -> None:
    ballots = Ballots()
    ballots.add(vote(1))
    with pytest.raises(RefusedError, match="answered already"):
        ballots.add(vote(2))
    ballots.add(undo(1, vote(1)))
    assert ballots.in_force() == []
    ballots.add(vote(2))
    assert ballots.in_force() == [vote(2)]
    assert not ballots.add(vote(1)), "the undone vote, sent again by a slow tab, does not come back"
    assert ballots.in_force() == [vote(2)]


def test_nobody_undoes_anothers_vote_or_one_that_is_not_in_force() -> None:
    ballots = Ballots()
    ballots.add(vote(1))
    for refused in (undo(1, vote(1), rater=1), undo(2, vote(7)), Undo(new_id("u"), 0, new_id("undo", 1), "now")):
        with pytest.raises(RefusedError, match="no such answer"):
            ballots.add(refused)
    assert ballots.add(undo(3, vote(1)))
    assert not ballots.add(undo(3, vote(1)))
    with pytest.raises(RefusedError, match="no such answer"):
        ballots.add(undo(4, vote(1)))


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        "vote",
        {},
        {"kind": "delete"},
        {"kind": "vote", "id": new_id(1), "task": "t", "answer": "middle"},
        {"kind": "vote", "id": new_id(1), "task": "t", "answer": ["left"]},
        {"kind": "vote", "id": "short", "task": "t", "answer": "left"},
        {"kind": "vote", "id": "../../../../etc/passwd", "task": "t", "answer": "left"},
        {"kind": "vote", "id": new_id(1), "task": 7, "answer": "left"},
        {"kind": "vote", "id": new_id(1), "task": "t" * 101, "answer": "left"},
        {"kind": "vote", "id": new_id(1), "task": "t", "answer": "left", "milliseconds": -1},
        {"kind": "vote", "id": new_id(1), "task": "t", "answer": "left", "milliseconds": True},
        {"kind": "vote", "id": new_id(1), "task": "t", "answer": "left", "milliseconds": 1e300},
        {"kind": "vote", "id": new_id(1), "task": "t", "answer": "left", "rater": 1},
        {"kind": "undo", "id": new_id(1)},
    ],
)
def test_what_is_no_entry_is_refused(fields: object) -> None:
    with pytest.raises(EntryError):
        parse_entry(fields, rater=0, at="now")


# --- the log -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with_raters(tmp_path, 2, simulated=False)
    return tmp_path


def append(folder: Path, *entries: Vote | Undo) -> None:
    with open_log(folder, read_raters(folder)) as log:
        for entry in entries:
            log.append(entry, simulated=False)


def entries(folder: Path) -> list[Vote | Undo]:
    return read_log(folder / VOTES, read_raters(folder)).entries


def test_what_was_recorded_is_read_back_and_an_undoing_is_a_line_of_its_own(folder: Path) -> None:
    append(folder, vote(1), undo(1, vote(1)), vote(2))
    assert entries(folder) == [vote(1), undo(1, vote(1)), vote(2)]
    assert len((folder / VOTES).read_text().splitlines()) == 3


def test_a_line_torn_at_any_byte_costs_that_line_alone_and_nothing_is_cut_off(folder: Path) -> None:
    append(folder, vote(1))
    before, line = (folder / VOTES).read_bytes(), entry_line(vote(2, task="second"), simulated=False)
    for length in (*range(1, len(line), 9), len(line) - 2, len(line) - 1):
        (folder / VOTES).write_bytes(before + line[:length])
        append(folder, vote(3, task="third"))
        is_whole = length == len(line) - 1  # all but the end of the line
        assert entries(folder) == [vote(1), *([vote(2, task="second")] if is_whole else []), vote(3, task="third")]
        assert (folder / VOTES).read_bytes().startswith(before + line[:length])
        assert read_log(folder / VOTES, read_raters(folder)).num_torn == (not is_whole)


def test_a_kill_in_the_midst_of_ending_a_torn_line_leaves_nothing_that_cannot_be_read(folder: Path) -> None:
    append(folder, vote(1))
    before = (folder / VOTES).read_bytes()
    (folder / VOTES).write_bytes(before + b'{"kind":"vo')
    append(folder)
    ended = (folder / VOTES).read_bytes().removeprefix(before + b'{"kind":"vo')
    for length in (*range(0, len(ended), 7), len(ended) - 1):
        (folder / VOTES).write_bytes(before + b'{"kind":"vo' + ended[:length])
        append(folder, vote(2, task="second"))
        assert entries(folder) == [vote(1), vote(2, task="second")]


def test_a_reader_passes_over_a_line_that_a_server_is_writing(folder: Path) -> None:
    append(folder, vote(1))
    with (folder / VOTES).open("ab") as stream:
        stream.write(b'{"kind":"vote","id":"')
    assert entries(folder) == [vote(1)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"garbage\n", "line 2 is damaged"),
        (entry_line(vote(9), simulated=False), "line 2: this was answered already"),
        (entry_line(vote(9, task="x", rater=7), simulated=False), "line 2: it names no rater"),
        (entry_line(vote(9, task="x"), simulated=True), "line 2: rater 1 is a person"),
    ],
)
def test_a_log_that_no_server_wrote_is_refused_by_line(folder: Path, line: bytes, said: str) -> None:
    append(folder, vote(1), vote(2, task="second"))
    first, second = (folder / VOTES).read_bytes().splitlines(keepends=True)
    (folder / VOTES).write_bytes(first + line + second)
    with pytest.raises(InputError, match=said):
        entries(folder)


def test_a_vote_that_does_not_fit_on_the_disk_is_not_recorded_and_leaves_no_trace(folder: Path) -> None:
    append(folder, vote(1))
    before = (folder / VOTES).read_bytes()

    def fill() -> str:
        with open_log(folder, read_raters(folder)) as log:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, resource.RLIM_INFINITY))
            try:
                log.append(vote(2, task="second"), simulated=False)
            except OSError as error:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                assert (folder / VOTES).read_bytes() == before
                assert log.append(vote(2, task="second"), simulated=False), "sent again, with space"
                return str(error)
        return ""

    assert "a part of a line" in run_forked(fill).value
    assert entries(folder) == [vote(1), vote(2, task="second")]


def test_one_server_at_a_time_has_the_log(folder: Path) -> None:
    with open_log(folder, read_raters(folder)):
        assert "another server" in str(run_forked(lambda: append(folder, vote(1))).error)
    append(folder, vote(1))


# --- raters --------------------------------------------------------------------------------------


def test_raters_keep_their_links_and_more_can_be_added(tmp_path: Path) -> None:
    two = with_raters(tmp_path, 2, simulated=False)
    program = with_raters(tmp_path, 1, simulated=True)
    three = with_raters(tmp_path, 3, simulated=False)
    assert three[:2] == two
    assert [rater.number for rater in (*three, *program)] == [0, 1, 3, 2]
    assert len({rater.token for rater in read_raters(tmp_path)}) == 4
    assert (tmp_path / "raters.json").stat().st_mode & 0o777 == 0o600
    assert rater_with(two[1].token, read_raters(tmp_path)) == two[1]
    assert rater_with("ü" + two[1].token[1:], read_raters(tmp_path)) is None
    assert rater_with("", read_raters(tmp_path)) is None


@pytest.mark.parametrize("text", ["{", "{}", '[{"number": 1, "token": "x", "simulated": false}]', "[3]"])
def test_a_file_of_raters_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "raters.json").write_text(text)
    with pytest.raises(InputError, match="raters"):
        read_raters(tmp_path)


def test_the_log_holds_no_link(folder: Path) -> None:
    append(folder, vote(1))
    text = (folder / VOTES).read_text()
    assert not [rater for rater in read_raters(folder) if rater.token in text]
    assert json.loads(text)["simulated"] is False
