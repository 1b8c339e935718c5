"""Locks between processes: exclusive against exclusive, exclusive against shared, released by a kill, and safe against removal."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from rglcd.errors import InputError
from rglcd.store.locks import exclusive_lock, shared_lock, try_exclusive_lock

HOLDER = """
import sys, time
from pathlib import Path
from rglcd.store import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2])):
    print("locked", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(lock: str, path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that holds ``lock`` on ``path``; killed at the latest when the block ends."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, lock, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        try:
            yield process
        finally:
            process.kill()


def is_free(path: Path) -> bool:
    with try_exclusive_lock(path) as is_mine:
        return is_mine


@pytest.mark.parametrize("lock", ["exclusive_lock", "shared_lock"])
def test_a_lock_of_another_process_excludes_ours_until_that_is_killed(tmp_path: Path, lock: str) -> None:
    path = tmp_path / "lock"
    with another_process(lock, path) as process:
        assert not is_free(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert is_free(path)


def test_a_reader_waits_for_the_writer_of_another_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def read() -> bool:
        with shared_lock(path):
            return True

    with another_process("exclusive_lock", path) as process, ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        with pytest.raises(TimeoutError):
            reader.result(timeout=0.3)
        process.kill()
        assert reader.result(timeout=10)


def test_readers_of_several_processes_share_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with another_process("shared_lock", path), shared_lock(path), shared_lock(path):
        assert not is_free(path)
    assert is_free(path)


def test_locks_within_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with try_exclusive_lock(path) as mine, try_exclusive_lock(path) as yours:
        assert (mine, yours) == (True, False)
    with shared_lock(path):
        assert not is_free(path)


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with exclusive_lock(path):
        child = multiprocessing.get_context("fork").Process(target=signal.pause)
        child.start()
    assert child.pid is not None
    try:
        assert is_free(path)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.join()


@pytest.mark.parametrize("lock", [exclusive_lock, shared_lock])
def test_waiting_for_a_lock_file_that_is_removed_ends_in_locking_the_new_one(tmp_path: Path, lock: object) -> None:
    """Else two would hold locks of one name at a time: one on the removed file, one on the new."""
    assert callable(lock)
    path = tmp_path / "lock"

    def wait() -> bool:
        with lock(path):
            return is_free(path)

    with ThreadPoolExecutor(1) as pool:
        with exclusive_lock(path):
            waiting = pool.submit(wait)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            path.unlink()
        assert waiting.result(timeout=10) is False
    assert path.exists()


def test_locking_a_file_leaves_its_content(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    with exclusive_lock(path), try_exclusive_lock(path) as is_mine:
        assert not is_mine
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("lock", [exclusive_lock, shared_lock])
def test_a_file_system_without_locks_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: Callable[[Path], AbstractContextManager[object]], number: int
) -> None:
    """Lustre without `-o flock` and NFS without its lock daemon: it was an unexpected error, to be reported."""

    def refused(_file: object, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with (
        pytest.raises(InputError, match=r"lock: the file system there has no locks \(.*\), .* name a folder on another disk"),
        lock(tmp_path / "lock"),
    ):
        pass
