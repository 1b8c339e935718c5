"""The logs of a job's pods, followed while it runs: what they say is printed, their progress is reported here."""

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from contextvars import copy_context
from typing import Any

from kubernetes import client
from kubernetes.client.rest import ApiException

from rglcd import progress
from rglcd.launch.cluster_api import Jobs, say
from rglcd.launch.job_reason import has_started


class PodLogs:
    """Prints the log of every pod of a job, restarts included, and hands its progress on."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._threads: dict[str, threading.Thread] = {}

    def __enter__(self) -> "PodLogs":
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads.values():
            thread.join(timeout=2)

    def follow(self, pods: list[dict[str, Any]]) -> None:
        """Begin with the pods that have a log and are not followed yet."""
        for pod in pods:
            uid = pod["metadata"]["uid"]
            if uid not in self._threads and has_started(pod):
                self._threads[uid] = threading.Thread(target=copy_context().run, args=(self._print, pod), daemon=True)
                self._threads[uid].start()

    def finish(self, pods: list[dict[str, Any]]) -> None:
        """Until the logs of ``pods`` are through."""
        for pod in pods:
            if pod["metadata"]["uid"] in self._threads:
                self._threads[pod["metadata"]["uid"]].join(timeout=10)

    def _print(self, pod: dict[str, Any]) -> None:
        # The pod may go while it is read: what it said until then is all there is.
        with contextlib.suppress(ApiException, OSError, client.rest.urllib3.exceptions.HTTPError):
            for said in messages(self._jobs.log_lines(pod)):
                say(said)


def messages(lines: Iterable[str]) -> Iterator[str]:
    """What to print of a pod's log."""
    for line in lines:
        message = _message(line)
        if message is not None:
            yield message


def _message(line: str) -> str | None:
    """What to print of a pod's log line: JSON lines by :mod:`rglcd.launch.pod` are opened, progress goes where progress goes."""
    try:
        content = json.loads(line)
    except ValueError:
        return line
    if not isinstance(content, dict):
        return line
    if "progress" in content:
        event = progress.Event(**content["progress"])
        progress.report(event.task, done=event.done, total=event.total, unit=event.unit, **event.values)
        return None
    return str(content.get("message", line))
