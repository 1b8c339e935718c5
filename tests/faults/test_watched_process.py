"""A forked process hands over what it returned, raised, took and did, and is killed where that is asked."""

import os
import signal
from pathlib import Path

from tests.faults.watched_process import file_operations, run_forked


def test_result_and_error_are_handed_over() -> None:
    assert run_forked(lambda: [1, 2]).value == [1, 2]
    assert repr(run_forked(lambda: 1 / 0).error) == repr(ZeroDivisionError("division by zero"))


def test_exit_code_tells_a_signal_and_a_timeout() -> None:
    assert run_forked(lambda: os.kill(os.getpid(), signal.SIGUSR1)).exit_code == -signal.SIGUSR1
    hung = run_forked(signal.pause, timeout=0.2)
    assert hung.was_killed
    assert hung.seconds < 10


def test_peak_memory_is_its_own() -> None:
    idle = run_forked(lambda: None).peak_bytes
    assert run_forked(lambda: len(bytearray(b"x") * (200 << 20))).peak_bytes - idle > 150 << 20


def test_killed_before_the_file_operation_asked_for(tmp_path: Path) -> None:
    def work(kill_at: int | None = None) -> list[str]:
        operations = file_operations(tmp_path, kill_at=kill_at)
        (tmp_path / "a").write_text("a")
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "b").unlink()
        return operations

    assert run_forked(work).value == ["open /a", "os.rename /b", "os.remove /b"]
    for kill_at, left in ((1, []), (2, ["a"]), (3, ["b"])):
        ended = run_forked(lambda kill_at=kill_at: work(kill_at))
        assert ended.was_killed
        assert sorted(path.name for path in tmp_path.iterdir()) == left
        for path in tmp_path.iterdir():
            path.unlink()
