"""Work in a process of its own: forked, so that it starts warm, watched, and ended without a word if that is asked."""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_TOUCHES = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"})


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (of a signal: negative), what its work returned, or what it raised."""

    exit_code: int
    value: Any
    error: BaseException | None
    seconds: float
    peak_bytes: int

    @property
    def was_killed(self) -> bool:
        return self.exit_code == -signal.SIGKILL


def apart(work: Callable[[], Any], *, within: float = 600.0) -> Ended:
    """Do ``work`` in a process of its own; it is killed when it takes longer than ``within`` seconds.

    The peak is the kernel's; it begins at the size of this process. Nothing is known of a killed one's.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_work, args=(work, writer))
    started = time.perf_counter()
    process.start()
    writer.close()
    value: Any = None
    error: BaseException | None = None
    peak_bytes = 0
    try:
        if reader.poll(within):
            value, error, peak_bytes = reader.recv()
    except EOFError:
        pass  # killed, or crashed: the exit code says which
    if process.is_alive() and value is None and error is None and not peak_bytes:
        process.kill()
    process.join()
    reader.close()
    return Ended(process.exitcode or 0, value, error, time.perf_counter() - started, peak_bytes)


def _work(work: Callable[[], Any], writer: Connection) -> None:
    value: Any = None
    error: BaseException | None = None
    try:
        value = work()
    except Exception as raised:
        error = raised
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        writer.send((value, error, peak_bytes))
    except Exception:  # an error that cannot cross the border as it is
        writer.send((None, RuntimeError(f"{type(error).__name__}: {error}"), peak_bytes))


def touches_of(folder: Path, *, kill_at: int | None = None) -> list[str]:
    """From now on, the list of what this process is about to do to the file system below ``folder``: it grows as it happens.

    At its ``kill_at``-th entry the process is killed, before the act. Python's own acts only: what libraries write by
    themselves is counted when the file is renamed. For a process of its own (:func:`apart`): this cannot be taken back.
    """
    root, touched = str(folder), list[str]()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
        elif event in _TOUCHES:
            path = arguments[1] if event == "os.rename" else arguments[0]
        else:
            return
        name = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        # A tree is removed by names relative to its folders.
        if name.startswith(root) or (event in ("os.remove", "os.rmdir") and name and not name.startswith("/")):
            touched.append(f"{event} {name.removeprefix(root)}")
            if len(touched) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return touched
