"""Run a TorchX app on this machine, wait, show its log, and end as it ended."""

import json
import logging
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchx import specs
from torchx.runner import Runner, get_runner
from torchx.schedulers.local_scheduler import SignalException

from rglcd.launch.failure import Failure, exception_of, read_failure, says_failure
from rglcd.signals import stops_restored

SCHEDULER = "local_cwd"


def run_local_job(app: specs.AppDef) -> None:
    """Submit ``app`` to TorchX's local scheduler and wait for it, its log streamed to stderr line by line.

    Raises what the replica that failed would have raised here (:func:`rglcd.launch.failure.exception_of`). Interrupted
    (SIGINT, SIGTERM), it passes the signal on, waits for the replicas to save their state, and ends as they end.
    """
    with tempfile.TemporaryDirectory(prefix="rglcd-job-") as log_dir, _signals_restored(), get_runner() as runner:
        logging.getLogger("torchx").setLevel(logging.ERROR)
        handle = runner.run(app, scheduler=SCHEDULER, cfg={"log_dir": log_dir})
        try:
            _stream_log(runner, handle, app.roles[0].name)
        except (KeyboardInterrupt, SignalException):
            runner.cancel(handle)
        status = runner.wait(handle, wait_interval=0.1)
        if status is None or status.state != specs.AppState.SUCCEEDED:
            raise exception_of(_failure(app, Path(log_dir)))


def _stream_log(runner: Runner, handle: specs.AppHandle, role: str) -> None:
    for line in runner.log_lines(handle, role, k=0, should_tail=True):
        if not says_failure(line):  # whoever waits for the job says it, once
            print(line.rstrip("\n"), file=sys.stderr, flush=True)


def _failure(app: specs.AppDef, log_dir: Path) -> Failure:
    """The replica's own exit code, which TorchX notes beside the logs, with its message if it left one."""
    (record,) = log_dir.glob("*/*/SUCCESS")  # written when the logs are closed, whatever the end
    replica = json.loads(record.read_text(encoding="utf-8"))["roles"][app.roles[0].name][0]
    code = int(replica["exitcode"])
    code = code if code >= 0 else 128 - code
    error_file = Path(replica["error_file"])
    said = read_failure(error_file.read_text(encoding="utf-8")) if error_file.is_file() else None
    return Failure(said.message if said else f"{app.name} ended with exit code {code}; its log is above", code)


@contextmanager
def _signals_restored() -> Iterator[None]:
    """TorchX's local scheduler installs handlers of its own; they must not outlive the job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with stops_restored():
        yield
