"""The next step's samples are read while this one is computed, and whatever goes wrong there is raised here."""

import threading

import pytest

from rglcd.training.reading import ReadAhead


class Reads:
    """Reads a number, says in which thread, and fails at one of them."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.threads: dict[int, threading.Thread] = {}
        self.done = {step: threading.Event() for step in range(10)}
        self._fails_at = fails_at

    def __call__(self, step: int) -> int:
        self.threads[step] = threading.current_thread()
        self.done[step].set()
        if step == self._fails_at:
            raise OSError(f"shard of step {step} is gone")
        return 10 * step


def test_the_next_step_is_read_in_a_thread_before_it_is_asked_for() -> None:
    reads = Reads()
    ahead = ReadAhead(reads, num_steps=3)
    assert ahead(0) == 0
    assert reads.done[1].wait(30)
    assert [ahead(1), ahead(2)] == [10, 20]
    here = threading.current_thread()
    assert [reads.threads[step] is here for step in range(3)] == [True, False, False]


def test_no_thread_is_left_after_the_last_step() -> None:
    reads = Reads()
    ahead = ReadAhead(reads, num_steps=2)
    for step in range(2):
        ahead(step)
    reads.threads[1].join(30)
    assert not reads.threads[1].is_alive()
    assert set(reads.threads) == {0, 1}


def test_another_step_than_the_next_is_read_for_itself() -> None:
    reads = Reads()
    ahead = ReadAhead(reads, num_steps=10)
    assert [ahead(0), ahead(5), ahead(6), ahead(2)] == [0, 50, 60, 20]
    here = threading.current_thread()
    assert reads.threads[5] is here
    assert reads.threads[6] is not here


def test_what_fails_in_the_thread_is_raised_at_the_step_it_was_read_for() -> None:
    ahead = ReadAhead(Reads(fails_at=2), num_steps=10)
    assert [ahead(0), ahead(1)] == [0, 10]
    with pytest.raises(OSError, match="shard of step 2 is gone"):
        ahead(2)
