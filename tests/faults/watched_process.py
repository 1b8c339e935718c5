"""Run a function in a forked process: its result or error, exit code, seconds and peak memory; kill it at a chosen file operation."""

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

_OPERATIONS = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"})


@dataclass(frozen=True)
class Ended:
    """How a forked process ended: its exit code (of a signal: negative), what the function returned, or what it raised."""

    exit_code: int
    value: Any
    error: BaseException | None
    seconds: float
    peak_bytes: int

    @property
    def was_killed(self) -> bool:
        return self.exit_code == -signal.SIGKILL


def run_forked(work: Callable[[], Any], *, timeout: float = 600.0) -> Ended:
    """Call ``work`` in a fork of this process, which is warm at once; it is killed when it takes longer than ``timeout`` seconds.

    The peak is the kernel's; it begins at the size of this process. It is 0 for a process that was killed.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_call, args=(work, writer))
    started = time.perf_counter()
    process.start()
    writer.close()
    value: Any = None
    error: BaseException | None = None
    peak_bytes = 0
    try:
        if reader.poll(timeout):
            value, error, peak_bytes = reader.recv()
    except EOFError:
        pass  # killed, or crashed: the exit code says which
    if process.is_alive() and value is None and error is None and not peak_bytes:
        process.kill()
    process.join()
    reader.close()
    return Ended(process.exitcode or 0, value, error, time.perf_counter() - started, peak_bytes)


def _call(work: Callable[[], Any], writer: Connection) -> None:
    value: Any = None
    error: BaseException | None = None
    try:
        value = work()
    except Exception as raised:
        error = raised
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        writer.send((value, error, peak_bytes))
    except Exception:  # an error that cannot be pickled
        writer.send((None, RuntimeError(f"{type(error).__name__}: {error}"), peak_bytes))


def file_operations(folder: Path, *, kill_at: int | None = None, sent: signal.Signals = signal.SIGKILL, within: str = "") -> list[str]:
    """From now on, what this process is about to write, rename or remove below ``folder``: the list grows as it happens.

    At the ``kill_at``-th of its entries that have ``within`` in them the process is ``sent`` a signal, before the operation. Python's
    own operations only: what libraries write by themselves is counted when the file is renamed. Only for a forked process: an audit
    hook cannot be removed.
    """
    root, operations, num_within = str(folder), list[str](), 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal num_within
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
        elif event in _OPERATIONS:
            path = arguments[1] if event == "os.rename" else arguments[0]
        else:
            return
        name = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        # A tree is removed by names relative to its folders.
        if name.startswith(root) or (event in ("os.remove", "os.rmdir") and name and not name.startswith("/")):
            operations.append(f"{event} {name.removeprefix(root)}")
            num_within += within in operations[-1]
            if num_within == kill_at and within in operations[-1]:
                os.kill(os.getpid(), sent)

    sys.addaudithook(watch)
    return operations
