"""The pipeline on this machine, by Kubeflow's local runner: a process per task.

A task is a stage, so this needs all that the stages need; compiling and submitting, which the light image does, need only kfp.
"""

import contextlib
import io
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil
from kfp import local

from pipelines.rg_lcd import arguments, pipeline, source_reference
from rglcd.config import Config
from rglcd.errors import TryAgain
from rglcd.launch.child_processes import children_reporting
from rglcd.launch.failure import JobError, exception_of
from rglcd.launch.progress_display import drawing, following
from rglcd.signals import handling_stops

_LOG_LINES_SHOWN = 40
_SHELLS = frozenset({"sh", "dash", "bash"})
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def run(config: Config, *, root: Path) -> None:
    """Run the pipeline on this machine, a process per task, and draw its progress.

    Artifacts go to ``artifacts/`` under ``root``, as by every other way in: what is done there is not done again.
    Raises what the stage that failed raised, or :class:`JobError` with the end of its log if it crashed.
    """
    store = (root / "artifacts").resolve()
    values = arguments(config, source=source_reference(root), store=str(store))
    kfp_root = store / ".kfp"
    log = io.StringIO()
    try:
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(kfp_root))
        with (
            drawing(sys.stderr) as draw,
            children_reporting() as channel,
            following(channel.progress, draw),
            _kfp_quiet(log),
            _terminating_as_interrupted(),
        ):
            try:
                pipeline(config, cluster=None)(**values)
            except RuntimeError as error:
                failure = channel.failure()
                raise exception_of(failure) if failure else _crash(error, log) from None
            except KeyboardInterrupt:  # the running task has got the signal too
                _wait_for_task()
                failure = channel.failure()
                raise exception_of(failure) if failure else TryAgain("interrupted; the same command goes on from here") from None
    finally:
        shutil.rmtree(kfp_root, ignore_errors=True)
    print(f"done; the report is {store / 'report' / 'index.html'}")


@contextlib.contextmanager
def _kfp_quiet(log: io.StringIO) -> Iterator[None]:
    """Kubeflow's local runner prints every task's output between lines of its own: keep all that in ``log``, for a crash."""
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(log):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _terminating_as_interrupted() -> Iterator[None]:
    """Within this context SIGTERM, which comes to this process alone, goes to the running task too, as a terminal's Ctrl-C does."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() not in _SHELLS:  # they wait for the task that they have started
                    process.terminate()
        raise KeyboardInterrupt

    with handling_stops(stop, stops=(signal.SIGTERM,)):
        yield


def _wait_for_task() -> None:
    """Kubeflow gives an interrupted task a quarter of a second; it may take as long as it needs to save its state."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def _crash(error: RuntimeError, log: io.StringIO) -> JobError:
    lines = [line for line in log.getvalue().splitlines() if line.strip()]
    print("\n".join(lines[-_LOG_LINES_SHOWN:]), file=sys.stderr)
    return JobError(_COLOUR.sub("", str(error)), exit_code=1)
