"""How processes that this one starts report back: progress as JSON lines in one file, the reason of a failure in another."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rglcd import progress
from rglcd.launch.failure import ERROR_FILE, Failure, read_failure
from rglcd.launch.progress_display import following

PROGRESS = "RGLCD_PROGRESS"
"""File that receives progress as JSON lines, for the process that started this one."""


@dataclass(frozen=True)
class Channel:
    """Files through which processes started from here report."""

    progress: Path
    error: Path

    def failure(self) -> Failure | None:
        """What the process that failed said of it, if it said anything."""
        return read_failure(self.error.read_text(encoding="utf-8")) if self.error.is_file() else None


@contextmanager
def children_reporting() -> Iterator[Channel]:
    """Within this context, processes started from here report progress and failure to the files of the channel."""
    with tempfile.TemporaryDirectory(prefix="rglcd-channel-") as folder:
        channel = Channel(Path(folder) / "progress.jsonl", Path(folder) / "error.json")
        with environment({PROGRESS: str(channel.progress), ERROR_FILE: str(channel.error)}):
            yield channel


@contextmanager
def job_progress() -> Iterator[None]:
    """Report a job's progress here, unless the environment names a file for it: the job inherits that."""
    if PROGRESS in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="rglcd-progress-") as folder:
        path = Path(folder) / "progress.jsonl"
        with environment({PROGRESS: str(path)}), following(path, _forward):
            yield


def _forward(event: progress.Event) -> None:
    progress.report(event.task, done=event.done, total=event.total, unit=event.unit, **event.values)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Give processes started within this context ``values`` in their environment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
