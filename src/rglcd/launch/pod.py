"""``python -m rglcd.launch.pod``: what a training pod runs, around torch's elastic launch.

Beside what :mod:`rglcd.launch.process_group` does, a pod reports in the forms that a cluster expects: its log is JSON lines with
run and rank (rank 0's; the others' last lines are kept in case one fails), its progress is on a Prometheus port,
and the first failing rank's reason is the container's termination message.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO, cast

from rglcd import progress
from rglcd.errors import TryAgain
from rglcd.launch.child_processes import PROGRESS
from rglcd.launch.failure import Failure, write_failure
from rglcd.launch.kept_failures import folder_of_this_attempt, keep_last_words
from rglcd.launch.process_group import RankFailure, run_ranks
from rglcd.launch.progress_display import following

_LINES_KEPT = 20
# A termination message holds 4096 bytes; of a longer one the kubelet keeps the end, which is no JSON.
_BYTES_OF_LINES, _BYTES_OF_MESSAGE = 2500, 1200
_HEADER = "[rank${rank}]:"


def main(arguments: Sequence[str]) -> int:
    """Run the ranks; return the exit code of the first that failed, its reason written where Kubernetes looks for it."""
    given = _parser().parse_args(arguments)
    log = JsonLog(sys.stdout, run=given.run)
    metrics = _Metrics(given.metrics_address, given.metrics_port) if given.metrics_port else None

    def observe(event: progress.Event) -> None:
        # The line last: whoever has read it finds the metrics at least as new.
        if metrics:
            metrics.observe(event)
        log.progress(event)

    with tempfile.TemporaryDirectory(prefix="rglcd-pod-") as folder:
        events = Path(folder) / "progress.jsonl"
        os.environ |= {PROGRESS: str(events), "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": _HEADER}
        ranks = ["--tee", "3", "--log-dir", str(Path(folder) / "ranks"), *given.torchrun]
        with folder_of_this_attempt(), redirect_stdout(log.stream()), redirect_stderr(log.stream()), following(events, observe):
            try:
                failed = run_ranks(ranks)
            except TryAgain as stopped:
                failure = Failure(str(stopped), stopped.exit_code)
            else:
                if failed is None:
                    return 0
                keep_last_words(Failure(_message(failed), failed.exit_code, failed.rank, tuple(log.last_lines(failed.rank))))
                failure = _failure(failed, log)
    log.say(failure.message, rank=failure.rank, level="error")
    write_failure(Path(given.error_file), failure)
    return failure.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rglcd.launch.pod")
    parser.add_argument("--run", required=True, help="the run's id, in every line of the log")
    parser.add_argument("--metrics-address", default="", help="address that serves the metrics (default: all)")
    parser.add_argument("--metrics-port", type=int, default=0, help="port that serves Prometheus metrics (default: none)")
    parser.add_argument("--error-file", required=True, help="file that receives the reason of a failure")
    parser.add_argument("torchrun", nargs="+", help="after `--`: torchrun's own arguments")
    return parser


def _failure(failed: RankFailure, log: "JsonLog") -> Failure:
    """What the termination message has room for: the head of the message, the end of the log."""
    message, lines = _message(failed), log.last_lines(failed.rank)
    while _written_bytes(message) > _BYTES_OF_MESSAGE:
        message = message[: len(message) * 3 // 4]
    while _written_bytes("\n".join(lines)) > _BYTES_OF_LINES:
        lines = lines[1:] or [lines[0][len(lines[0]) // 2 :]]
    return Failure(message, failed.exit_code, rank=failed.rank, last_lines=tuple(lines))


def _written_bytes(text: str) -> int:
    """As JSON writes it: a bar's block takes six."""
    return len(json.dumps(text))


def _message(failed: RankFailure) -> str:
    return failed.message or f"rank {failed.rank} ended with exit code {failed.exit_code}"


class JsonLog:
    """Lines as JSON objects: ``time``, ``run``, ``rank`` (null for the launcher itself), and ``message`` or ``progress``."""

    def __init__(self, out: TextIO, *, run: str) -> None:
        self._out, self._run = out, run
        self._lock = threading.Lock()
        self._last: dict[int | None, deque[str]] = defaultdict(lambda: deque(maxlen=_LINES_KEPT))

    def say(self, message: str, *, rank: int | None, level: str = "info") -> None:
        """One line of ``rank``: kept, and written if it is rank 0's or the launcher's."""
        with self._lock:
            self._last[rank].append(message)
            if rank in (0, None) or level == "error":
                self._write({"rank": rank, "level": level, "message": message})

    def progress(self, event: progress.Event) -> None:
        """How far rank 0 is."""
        with self._lock:
            self._write({"rank": 0, "level": "info", "progress": vars(event)})

    def last_lines(self, rank: int) -> list[str]:
        with self._lock:
            return list(self._last[rank])

    def stream(self) -> TextIO:
        """A stream to write to in place of stdout or stderr: elastic puts each rank's lines there, the rank at their head."""
        return cast(TextIO, _Lines(self))

    def _write(self, content: dict[str, object]) -> None:
        head = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "run": self._run}
        self._out.write(json.dumps(head | content, ensure_ascii=False) + "\n")
        self._out.flush()


class _Lines(io.TextIOBase):
    """Cuts what is written into lines, and each line into its rank and its text."""

    def __init__(self, log: JsonLog) -> None:
        self._log = log
        # Elastic writes each rank's lines from a thread of its own.
        self._open: dict[int, str] = defaultdict(str)

    def write(self, text: str) -> int:
        me = threading.get_ident()
        *whole, self._open[me] = (self._open[me] + text).split("\n")
        for line in whole:
            rank, message = _rank_of(line)
            # A bar redrawn in place is one line to a log: its last state.
            message = message.rstrip("\r").rpartition("\r")[2]
            if message.strip():
                self._log.say(message, rank=rank)
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        # Python's fault handler writes to a file descriptor: there, a crash of this process is better raw than lost.
        return sys.__stderr__.fileno() if sys.__stderr__ else super().fileno()


def _rank_of(line: str) -> tuple[int | None, str]:
    head, _, message = line.partition("]:")
    word = head.removeprefix("[rank")
    return (int(word), message) if head.startswith("[rank") and word.isdecimal() else (None, line)


class _Metrics:
    """Gauges of what rank 0 reports, served on a port: none, on the pods that rank 0 is not in."""

    def __init__(self, address: str, port: int) -> None:
        from prometheus_client import CollectorRegistry, Gauge, start_http_server

        registry = CollectorRegistry()
        self._done = Gauge("rglcd_progress_done", "Units of a task that are behind us", ["task", "unit"], registry=registry)
        self._total = Gauge("rglcd_progress_total", "Units of a task in all", ["task", "unit"], registry=registry)
        self._figure = Gauge("rglcd_figure", "A figure that training reports", ["task", "name"], registry=registry)
        self._at = Gauge("rglcd_progress_timestamp_seconds", "When the task last reported", ["task"], registry=registry)
        start_http_server(port, addr=address or "0.0.0.0", registry=registry)  # noqa: S104 (a network policy says who may ask)

    def observe(self, event: progress.Event) -> None:
        self._done.labels(event.task, event.unit).set(event.done)
        self._total.labels(event.task, event.unit).set(event.total)
        self._at.labels(event.task).set_to_current_time()
        for name, value in event.values.items():
            self._figure.labels(event.task, name).set(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
