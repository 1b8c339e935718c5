"""Submit a stage to a cluster as a Volcano Job, and stay with it until it ends.

The launcher keeps nothing of its own: what it knows is in the cluster, under a name that follows from the run. So it
may be killed at any time and started again: it finds the job and goes on following it. What it needs to be allowed
is :data:`rglcd.launch.cluster_api.VERBS`.
"""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from kubernetes import client
from torchx import specs

from rglcd.errors import InputError, TrainingDiverged, TryAgain
from rglcd.launch.cluster_api import FINISHED, Jobs, phase_of, say
from rglcd.launch.failure import JobError, exception_of
from rglcd.launch.job_reason import Reason, ended_by_cluster, failed_pods, failure_of, reason_of, stuck, why_waiting
from rglcd.launch.placement import Placement
from rglcd.launch.pod_logs import PodLogs, messages
from rglcd.launch.volcano_job import volcano_job
from rglcd.signals import handling_stops
from rglcd.stages.table import Stage
from rglcd.store.manifest import write_json

_NEVER_AGAIN = (InputError.exit_code, TrainingDiverged.exit_code)


def run_kubernetes_job(
    app: specs.AppDef,
    *,
    stage: Stage,
    placement: Placement,
    api: client.ApiClient,
    failure_file: Path | None = None,
    poll_seconds: float = 2.0,
) -> None:
    """Run ``app`` in the cluster that ``api`` reaches, its log streamed to stderr and its progress reported here.

    An unfinished job of the same run and stage is adopted instead of submitting another; a finished one too where earlier attempts
    count (:class:`~rglcd.launch.placement.EarlierAttempts`), so that what must not be tried again is not. A job that failed is
    tried again up to ``placement.num_failures`` times, from its checkpoint; one that was evicted always. Raises what the first
    failing rank would have raised here, its reason kept in ``failure_file``. Interrupted (SIGINT, SIGTERM), it deletes the job,
    waits until the pods have saved their state, and raises :class:`TryAgain`.
    """
    jobs = Jobs(api, placement, stage, work=work_of(app))
    attempt, name, failures = jobs.beginning(placement.earlier_attempts)
    with _stop_requests() as stop, PodLogs(jobs) as logs:
        while True:
            if name is None:
                name = jobs.submit(volcano_job(app, stage=stage, placement=placement, attempt=attempt))
            reason = _follow(name, jobs, logs=logs, stop=stop, placement=placement, poll_seconds=poll_seconds)
            if reason is None:
                if failure_file is not None:
                    failure_file.unlink(missing_ok=True)
                return
            if reason.is_failure:
                failures += 1
                _keep(reason.reason, failure_file, name=name, stage=stage)
                if failures > placement.num_failures or reason.reason.exit_code in _NEVER_AGAIN:
                    raise exception_of(failure_of(reason.reason))
            say(f"{name} ended ({reason.reason.in_one_line}); going on from its checkpoint")
            attempt, name = attempt + 1, None


def work_of(app: specs.AppDef) -> str:
    """Identifies a job's work, whoever launches it: the digest of its command, its image and its number of nodes."""
    (role,) = app.roles
    return hashlib.sha256(json.dumps([role.args, role.image, role.num_replicas]).encode()).hexdigest()


@dataclass(frozen=True)
class _End:
    """How a job ended that did not complete: was it the program's fault, or did the cluster take it away."""

    reason: Reason
    is_failure: bool


def _follow(name: str, jobs: Jobs, *, logs: PodLogs, stop: threading.Event, placement: Placement, poll_seconds: float) -> _End | None:
    """Follow job ``name`` to its end; ``None`` when it completed."""
    seen = _Seen()
    explained: str | None = None
    while not stop.is_set():
        job = jobs.get(name)
        if job is None:
            raise JobError(f"{name} was deleted by somebody else; run the same command to go on", exit_code=TryAgain.exit_code)
        pods = jobs.pods(name)
        seen.note(pods)
        logs.follow(pods)
        phase = phase_of(job)
        if phase in FINISHED:
            logs.finish(pods)
            return None if phase == "Completed" else _end_of(name, phase, seen, jobs)
        cannot = stuck(pods)
        if cannot is not None:
            jobs.delete(name)
            raise InputError(f"{name} cannot start: {cannot.in_one_line}")
        if phase in ("Pending", "Inqueue"):  # fewer pods run than the job needs
            explained = _wait_in_queue(name, job, pods, jobs, explained=explained, placement=placement)
        stop.wait(poll_seconds)
    say(f"{name}: asked to stop; the job is deleted, its pods save their state")
    jobs.delete(name)
    logs.finish(jobs.wait_until_gone(name, seconds=placement.grace_seconds + 30, poll_seconds=poll_seconds))
    raise TryAgain(f"{name} was cancelled; the same command goes on from its last checkpoint")


@dataclass
class _Seen:
    """Failed pods as they were when last seen: Volcano may delete them, and with them what they said (volcano-sh/volcano#1688)."""

    failed: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def note(self, pods: list[dict[str, Any]]) -> None:
        self.failed |= {pod["metadata"]["uid"]: pod for pod in failed_pods(pods)}

    def latest(self) -> list[Mapping[str, Any]]:
        """The failed pods of the job's last start, first failure first."""
        version = max((_version(pod) for pod in self.failed.values()), default=0)
        return failed_pods(pod for pod in self.failed.values() if _version(pod) == version)


def _version(pod: Mapping[str, Any]) -> int:
    return int(pod["metadata"].get("annotations", {}).get("volcano.sh/job-version", 0))


def _end_of(name: str, phase: str, seen: _Seen, jobs: Jobs) -> _End:
    if phase == "Aborted":
        raise JobError(f"{name} was aborted by somebody else; run the same command to go on", exit_code=TryAgain.exit_code)
    failed = seen.latest()
    if not failed:
        return _End(Reason(name, phase, 1, "its pods were taken away before they could say why", None, ()), is_failure=False)
    first = failed[0]
    return _End(reason_of(first, log=messages(jobs.log_tail(first))), is_failure=not ended_by_cluster(first))


def _wait_in_queue(
    name: str, job: Mapping[str, Any], pods: list[dict[str, Any]], jobs: Jobs, *, explained: str | None, placement: Placement
) -> str | None:
    """Say why the job waits, whenever that changes; end it when it has waited too long."""
    why = why_waiting(jobs.events(name, pods)) or explained
    if why is not None and why != explained:
        say(f"{name} waits: {why}")
    state = job.get("status", {}).get("state", {})
    since = datetime.fromisoformat(state.get("lastTransitionTime") or job["metadata"]["creationTimestamp"])
    if (datetime.now(UTC) - since).total_seconds() > placement.queue_seconds:
        jobs.delete(name)
        why = why or "the scheduler says nothing"
        raise JobError(
            f"{name} had no nodes after {placement.queue_seconds} s: {why}; run the same command to wait again",
            exit_code=TryAgain.exit_code,
        )
    return why


def _keep(reason: Reason, path: Path | None, *, name: str, stage: Stage) -> None:
    for line in reason.last_lines:
        print(f"  {line}", file=sys.stderr, flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"job": name, "stage": stage.name, **reason.as_json()})


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; in a thread, where no signal arrives, one that nothing sets."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    with handling_stops(note):
        yield stop
