"""Work done at the same time by processes of one computing thread each: for networks too small to keep several threads busy."""

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final

import torch

from rglcd import progress
from rglcd.errors import TryAgain
from rglcd.signals import end_with_parent, noting_stops

Work = Callable[[str], None]
"""What a process does, given a name. It must be importable (a function of a module, or a partial of one) and so must its arguments."""

_LOOKED_EVERY: Final = 0.2
"""Seconds between looks at whether this process was asked to stop."""
_PATIENCE: Final = 60.0
"""Seconds that a process asked to stop has for saving its state."""


@dataclass
class _Job:
    name: str
    process: SpawnProcess
    connection: Connection
    error: BaseException | None = None
    was_asked: bool = False


def run_side_by_side(work: Work, names: Sequence[str], *, at_once: int) -> None:
    """Call ``work`` with each of ``names``, each in a process of its own, ``at_once`` at a time; they report progress here.

    SIGTERM and SIGINT are handed on, so that work which saves its state does. The first error ends the others in the same way, and is
    raised once all have ended: what ``work`` raised, or :class:`TryAgain` for a process that was stopped or killed. A process does not
    outlive this one. For the main thread only.
    """
    waiting, running, ended = list(names), list[_Job](), list[_Job]()
    with noting_stops() as stop, _none_left_behind(running):
        while running or (waiting and not stop and _may_go_on(ended)):
            while waiting and len(running) < at_once and not stop and _may_go_on(ended):
                running.append(_started(work, waiting.pop(0)))
            for connection in wait([job.connection for job in running], timeout=_LOOKED_EVERY):
                job = next(job for job in running if job.connection is connection)
                if not _hear(job):
                    running.remove(job)
                    ended.append(job)
            if stop or not _may_go_on(ended):
                _stop(running)
    errors = [job.error for job in ended if job.error is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, TryAgain)), errors[0])
    if stop:
        raise TryAgain("stopped; run the same command to go on")


def _may_go_on(ended: Sequence[_Job]) -> bool:
    return all(job.error is None for job in ended)


def _started(work: Work, name: str) -> _Job:
    context = get_context("spawn")  # a fork would inherit locks that other threads hold
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(work, name, theirs, os.getpid()), name=name, daemon=True)
    # Ctrl-C reaches every process of a terminal. The new one is not to meet it while it imports: SIGTERM, from here, ends it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Job(name, process, ours)


def _run(work: Work, name: str, connection: Connection, parent: int) -> None:
    """The process's life. What it raises is handed over; an error that nobody expected may not survive that, and goes as its traceback."""
    end_with_parent(parent)
    torch.set_num_threads(1)
    try:
        with progress.reporting_to(partial(_tell, connection)):
            work(name)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            error = RuntimeError(f"{type(error).__name__} in the process of {name}:\n{traceback.format_exc()}")
        _tell(connection, error)


def _tell(connection: Connection, message: object) -> None:
    """Send to the process that started this one; if that has been killed, end."""
    try:
        connection.send(message)
    except OSError:
        os._exit(1)


def _hear(job: _Job) -> bool:
    """Take what a process sent; False once it has ended."""
    try:
        message: Any = job.connection.recv()
    except EOFError:
        job.process.join()
        if job.error is None and job.process.exitcode:
            why = f"signal {-job.process.exitcode}" if job.process.exitcode < 0 else f"exit code {job.process.exitcode}"
            job.error = TryAgain(f"{job.name}: its process ended by {why}; run the same command to go on from what is saved")
        return False
    if isinstance(message, BaseException):
        job.error = message
    else:
        progress.report(message.task, done=message.done, total=message.total, unit=message.unit, **message.values)
    return True


def _stop(running: Sequence[_Job]) -> None:
    """Ask the processes to stop, once: one that has nothing to save yet ends at once."""
    for job in running:
        if not job.was_asked:
            job.was_asked = True
            job.process.terminate()


@contextmanager
def _none_left_behind(running: list[_Job]) -> Iterator[None]:
    try:
        yield
    finally:
        _stop(running)
        deadline = time.monotonic() + _PATIENCE
        for job in running:
            job.process.join(max(0.0, deadline - time.monotonic()))
            job.process.kill()
