"""The logs of a job's pods, followed while it runs: what they say is printed, their progress is reported here."""

import contextlib
import json
import re
import threading
from collections.abc import Iterable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from kubernetes import client
from kubernetes.client.rest import ApiException

from rglcd import progress
from rglcd.launch.cluster_api import Jobs
from rglcd.launch.cluster_trouble import say
from rglcd.launch.job_reason import has_started, is_running

_OVERLAP_SECONDS = 5
"""A stream is taken up again this much before its last line, whose time is known: the clocks of node and launcher differ."""
_LONGEST_PAUSE = 60.0

_TIMED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(?:Z|[+-]\d\d:\d\d) ?(.*)", re.DOTALL)
"""A line of a log that was asked for with its times, which are RFC 3339 with as many digits as they need."""


class PodLogs:
    """Prints the log of every pod of a job, restarts included, and hands its progress on.

    Streams end while their pod goes on: the kubelet ends them after four hours, load balancers earlier, and a rotated file ends
    them too (kubernetes/kubernetes#28369, #115701). Such a one is taken up again where it ended.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._streams: dict[str, _Stream] = {}

    def __enter__(self) -> "PodLogs":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.join(2)

    def follow(self, pods: list[dict[str, Any]]) -> None:
        """Begin with the pods that have a log and are not followed yet; take up what has ended."""
        for pod in pods:
            if has_started(pod):
                self._streams.setdefault(pod["metadata"]["uid"], _Stream(self._jobs)).take_up(pod)

    def finish(self, pods: list[dict[str, Any]]) -> None:
        """Until the logs of ``pods`` are through."""
        for pod in pods:
            stream = self._streams.get(pod["metadata"]["uid"])
            if stream is not None:
                stream.join(10)
                stream.take_up(pod, at_once=True)  # what a stream that was cut has left
                stream.join(10)


@dataclass
class _Stream:
    """The log of one pod: how far it is read, and the thread that reads it."""

    jobs: Jobs
    thread: threading.Thread | None = None
    last: tuple[str, str] = ("", "")
    last_read: float | None = None
    repeats: int = 0
    is_whole: bool = False
    cuts: int = 0
    not_before: float = 0.0

    def take_up(self, pod: dict[str, Any], *, at_once: bool = False) -> None:
        now = self.jobs.api.clock.monotonic()
        if self.is_whole or (self.thread is not None and self.thread.is_alive()) or (now < self.not_before and not at_once):
            return
        self.thread = threading.Thread(target=copy_context().run, args=(self._read, pod), daemon=True)
        self.thread.start()

    def join(self, seconds: float) -> None:
        if self.thread is not None:
            self.thread.join(timeout=seconds)

    def _read(self, pod: dict[str, Any]) -> None:
        clock = self.jobs.api.clock
        before, ended_well = (self.last, self.repeats), False
        since = None if self.last_read is None else int(clock.monotonic() - self.last_read) + 1 + _OVERLAP_SECONDS
        # The pod may go while it is read: what it said until then is all there is.
        with contextlib.suppress(ApiException, OSError, client.rest.urllib3.exceptions.HTTPError):
            for message in messages(self._new(self.jobs.log_lines(pod, since_seconds=since))):
                say(message)
            ended_well = True
        self.is_whole = ended_well and not is_running(pod)
        # A stream that ends at once each time is not asked for at every poll.
        self.cuts = 0 if (self.last, self.repeats) != before else self.cuts + 1
        self.not_before = clock.monotonic() + min(2.0**self.cuts, _LONGEST_PAUSE)

    def _new(self, lines: Iterable[str]) -> Iterator[str]:
        """The lines that have not been read yet, without their times."""
        again = 0
        for line in lines:
            timed = _TIMED.match(line)
            if timed is None:
                yield line
                continue
            at = (timed[1], (timed[2] or "").ljust(9, "0"))
            if at < self.last:
                continue
            if at == self.last:  # lines of the same moment differ in their number
                again += 1
                if again <= self.repeats:
                    continue
            else:
                again = 1
            self.last, self.repeats, self.last_read = at, again, self.jobs.api.clock.monotonic()
            yield timed[3]


def messages(lines: Iterable[str]) -> Iterator[str]:
    """What to print of a pod's log."""
    for line in lines:
        message = _message(line)
        if message is not None:
            yield message


def _message(line: str) -> str | None:
    """What to print of a pod's log line: JSON lines by :mod:`rglcd.launch.pod` are opened, progress goes where progress goes.

    Anything else is a line like any other, JSON of another program's included.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(content, dict):
        return line
    if "progress" in content:
        event = _event(content["progress"])
        if event is None:
            return line
        progress.report(event.task, done=event.done, total=event.total, unit=event.unit, **event.values)
        return None
    return str(content.get("message", line))


def _event(content: Any) -> progress.Event | None:
    """The event that :mod:`rglcd.launch.pod` wrote; ``None`` if somebody else wrote something of that name."""
    try:
        event = progress.Event(**content)
    except TypeError:
        return None
    are_counts = all(isinstance(count, int) and not isinstance(count, bool) for count in (event.done, event.total))
    are_words = isinstance(event.task, str) and isinstance(event.unit, str)
    are_figures = isinstance(event.values, dict) and all(isinstance(figure, int | float) for figure in event.values.values())
    taken = {"task", "done", "total", "unit"}
    return event if are_counts and are_words and are_figures and not taken & event.values.keys() else None
