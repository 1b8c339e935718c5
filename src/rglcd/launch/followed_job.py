"""One Volcano Job, followed to its end: what it waits for is said, what hangs is given up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rglcd.errors import InputError, TryAgain
from rglcd.launch.attempts import Attempts
from rglcd.launch.cluster_api import FINISHED, Jobs, phase_of, since_of
from rglcd.launch.cluster_client import Clock, StopRequested
from rglcd.launch.cluster_trouble import SAID_EVERY_SECONDS, duration, say
from rglcd.launch.failure import JobError
from rglcd.launch.job_reason import Reason, failed_pods, is_placed, last_word, reason_of, refused_pods, stuck, why_waiting
from rglcd.launch.placement import Placement
from rglcd.launch.pod_logs import PodLogs, messages

_EVENTS_EVERY_SECONDS = 15.0
_ENDING_SECONDS = 900.0
"""How much longer than the pods' own grace a job may take to stop or to restart: a pod on a dead node takes for ever."""

_STARTS, _ENDS = ("Pending", "Inqueue"), ("Restarting", "Terminating", "Aborting", "Completing")


class FollowedJob:
    """Job ``name`` as the launcher sees it, poll by poll."""

    def __init__(self, name: str, jobs: Jobs, placement: Placement, attempts: Attempts, *, logs: PodLogs, poll_seconds: float) -> None:
        self._name, self._jobs, self._placement, self._attempts = name, jobs, placement, attempts
        self._logs, self._poll_seconds = logs, poll_seconds
        self._clock: Clock = jobs.api.clock
        self._seen = _Seen()
        self._said = _Reminder(self._clock)
        self._heard: dict[str, dict[str, Any]] = {}
        self._asked: float | None = None
        self._stuck_since: float | None = None
        self._nodes_since: float | None = None
        self._last_word: Reason | None = None
        self._ending_since: float | None = None
        self._works_since: datetime | None = None

    @property
    def worked_seconds(self) -> float:
        """How long all its pods have run."""
        return 0.0 if self._works_since is None else (self._clock.now() - self._works_since).total_seconds()

    def to_its_end(self) -> Reason | None:
        """Follow it; ``None`` when it completed. Raises :class:`StopRequested`; :class:`JobError` or :class:`InputError` when given up."""
        while not self._clock.stop.is_set():
            job = self._jobs.get(self._name)
            if job is None:
                raise JobError(f"{self._name} was deleted by somebody else; run the same command to go on", exit_code=TryAgain.exit_code)
            pods = self._jobs.pods(self._name)
            self._seen.note(pods)
            self._logs.follow(pods)
            phase = phase_of(job)
            if phase in FINISHED:
                self._logs.finish(pods)
                return None if phase == "Completed" else self._end(phase, job, pods)
            self._require_progress(phase, job, pods)
            self._clock.pause(self._poll_seconds)
        raise StopRequested

    # --- waiting

    def _require_progress(self, phase: str, job: Mapping[str, Any], pods: list[dict[str, Any]]) -> None:
        if phase == "Running" and self._works_since is None:
            self._works_since = since_of(job)
            self._attempts.note_work(self._works_since)
        if self._attempts.seconds_left(self._clock.now(), self._placement.run_seconds) <= 0:
            self._delete_after_its_time()
        self._require_start(job, pods)
        if phase in _STARTS:  # fewer pods run than the job needs
            self._wait_in_queue(job, pods)
        if phase in _ENDS:
            self._heard = {}  # of pods that go
            self._wait_for_its_stop(phase, pods)
        else:
            self._ending_since = None

    def _delete_after_its_time(self) -> None:
        say(f"{self._name}: {over(self._placement)}; the job is deleted, its pods save their state")
        self._jobs.delete(self._name)
        gone = self._jobs.wait_until_gone(self._name, seconds=self._placement.grace_seconds + 30, poll_seconds=self._poll_seconds)
        self._logs.finish(gone)
        raise JobError(f"{self._name}: {over(self._placement)}", exit_code=TryAgain.exit_code)

    def _require_start(self, job: Mapping[str, Any], pods: list[dict[str, Any]]) -> None:
        """Give up a container that does not start, when its row of the table says so."""
        reason, now = stuck(pods, self._events(job, pods) if any(map(is_placed, pods)) else ()), self._clock.monotonic()
        if reason is None or reason.row is None:
            self._stuck_since, self._last_word = None, None
            return
        reason = self._last_word = last_word(self._last_word, reason)
        assert reason.row is not None
        self._stuck_since = now if self._stuck_since is None else self._stuck_since
        waited, patience = now - self._stuck_since, self._placement.start_seconds if reason.row.may_wait else 0.0
        if waited >= patience:
            self._jobs.delete(self._name)
            after = f" for {duration(waited)}" if patience else ""
            message = f"{self._name} cannot start{after}: {reason.in_one_line}"
            raise InputError(message) if reason.exit_code == InputError.exit_code else JobError(message, exit_code=reason.exit_code)
        self._said.say(
            f"{self._name} does not start: {reason.pod}: {reason.cause}: {reason.message}",
            f"given up after {duration(patience)}",
        )

    def _wait_in_queue(self, job: Mapping[str, Any], pods: list[dict[str, Any]]) -> None:
        """Say why the job waits, at once when that changes and once a minute; end it when it has waited too long.

        What got its nodes at last has ``start_seconds`` to start there, however long it had waited for them.
        """
        now, waited = self._clock.monotonic(), (self._clock.now() - since_of(job)).total_seconds()
        if not pods or any("nodeName" not in pod["spec"] for pod in pods):
            self._nodes_since = None
        elif self._nodes_since is None:
            self._nodes_since = now
        is_new_there = self._nodes_since is not None and now - self._nodes_since <= self._placement.start_seconds
        is_over = waited > self._placement.queue_seconds and not is_new_there
        why = why_waiting(self._events(job, pods, at_once=is_over))
        if is_over:
            self._jobs.delete(self._name)
            raise JobError(
                f"{self._name} did not start within {self._placement.queue_seconds} s: {why or 'the scheduler says nothing'}; "
                "run the same command to wait again",
                exit_code=TryAgain.exit_code,
            )
        if self._stuck_since is None:
            self._said.say(f"{self._name} waits: {why or 'nothing is said of it yet'}", f"for {duration(waited)} now")

    def _events(self, job: Mapping[str, Any], pods: list[dict[str, Any]], *, at_once: bool = False) -> list[dict[str, Any]]:
        """What has been said of the job and its pods, asked for now and then.

        It is kept here: Kubernetes forgets an event after an hour, and that a volume is attached elsewhere is said once.
        """
        now = self._clock.monotonic()
        if at_once or self._asked is None or now - self._asked >= _EVENTS_EVERY_SECONDS:
            self._asked = now
            self._heard |= {event["metadata"]["name"]: event for event in self._jobs.events(job, pods)}
        return list(self._heard.values())

    def _wait_for_its_stop(self, phase: str, pods: list[dict[str, Any]]) -> None:
        """A pod that is being deleted on a node that no longer answers holds its job back without end (kubernetes/kubernetes#102026)."""
        now, limit = self._clock.monotonic(), self._placement.grace_seconds + _ENDING_SECONDS
        self._ending_since = now if self._ending_since is None else self._ending_since
        waited = now - self._ending_since
        held = _held_by(pods)
        if waited >= limit:
            self._jobs.delete(self._name)
            raise JobError(
                f"{self._name} has been {phase} for {duration(waited)}{held}; it is given up and deleted. See whether the node is alive "
                "(kubectl get nodes; a dead one: kubectl delete pod --force), then run the same command to go on",
                exit_code=TryAgain.exit_code,
            )
        if waited >= self._placement.grace_seconds:
            self._said.say(f"{self._name} is {phase}{held}", f"for {duration(waited)} now; given up after {duration(limit)}")

    # --- its end

    def _end(self, phase: str, job: Mapping[str, Any], pods: list[dict[str, Any]]) -> Reason:
        if phase == "Aborted":
            raise JobError(f"{self._name} was aborted by somebody else; run the same command to go on", exit_code=TryAgain.exit_code)
        failed = self._seen.latest()
        if failed:
            return reason_of(failed[0], log=messages(self._jobs.log_tail(failed[0])))
        refused = None if self._seen.any_pod else refused_pods(self._name, self._jobs.events(job, pods))
        return refused or Reason(self._name, phase, 1, "its pods were taken away before they could say why", None, ())


def over(placement: Placement) -> str:
    """That a run has had its time."""
    return f"the run has had its {duration(placement.run_seconds)} (run_seconds); the same command begins anew from the last checkpoint"


@dataclass
class _Seen:
    """Failed pods as they were when last seen: Volcano may delete them, and with them what they said (volcano-sh/volcano#1688)."""

    failed: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    any_pod: bool = False

    def note(self, pods: list[dict[str, Any]]) -> None:
        self.any_pod = self.any_pod or bool(pods)
        self.failed |= {pod["metadata"]["uid"]: pod for pod in failed_pods(pods)}

    def latest(self) -> list[Mapping[str, Any]]:
        """The failed pods of the job's last start, first failure first."""
        version = max((_version(pod) for pod in self.failed.values()), default=0)
        return failed_pods(pod for pod in self.failed.values() if _version(pod) == version)


@dataclass
class _Reminder:
    """Says a thing when it is new, and once a minute while it lasts."""

    clock: Clock
    text: str | None = None
    at: float = 0.0

    def say(self, text: str, since: str) -> None:
        now = self.clock.monotonic()
        if text == self.text and now - self.at < SAID_EVERY_SECONDS:
            return
        say(text if text != self.text else f"{text} ({since})")
        self.text, self.at = text, now


def _version(pod: Mapping[str, Any]) -> int:
    return int((pod["metadata"].get("annotations") or {}).get("volcano.sh/job-version", 0))


def _held_by(pods: list[dict[str, Any]]) -> str:
    held = [pod for pod in pods if "deletionTimestamp" in pod["metadata"]]
    if not held:
        return ""
    name, node = held[0]["metadata"]["name"], held[0].get("spec", {}).get("nodeName", "no node")
    since = str(held[0]["metadata"]["deletionTimestamp"]).replace("+00:00", "Z")
    return f" (pod {name} on {node} is being deleted since {since})"
