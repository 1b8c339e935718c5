"""Submit a stage to a cluster as a Volcano Job, and stay with it until it ends.

The launcher keeps nothing of its own: what it knows is in the cluster, under a name that follows from the run. So it
may be killed at any time and started again: it finds the job and goes on following it. What it needs to be allowed
is :data:`rglcd.launch.cluster_api.VERBS`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from torchx import specs

from rglcd.errors import TryAgain
from rglcd.launch.attempts import Attempts, earliest
from rglcd.launch.cluster_api import Jobs, attempt_of, began_of, deletion_by_hand, is_finished, phase_of, require_work
from rglcd.launch.cluster_client import Clock, PatientClient, StopRequested
from rglcd.launch.cluster_trouble import duration, say
from rglcd.launch.failure import JobError, exception_of
from rglcd.launch.failure_table import Then
from rglcd.launch.followed_job import FollowedJob, over
from rglcd.launch.job_reason import Reason, ended_by_cluster, failed_pods, failure_of
from rglcd.launch.kept_failures import forget_failure, keep_failure
from rglcd.launch.placement import EarlierAttempts, Placement, job_name
from rglcd.launch.pod_logs import PodLogs
from rglcd.launch.volcano_job import volcano_job, work_of
from rglcd.signals import handling_stops
from rglcd.stages.table import Stage


def run_kubernetes_job(
    app: specs.AppDef,
    *,
    stage: Stage,
    placement: Placement,
    api: PatientClient,
    failure_file: Path | None = None,
    poll_seconds: float = 2.0,
) -> None:
    """Run ``app`` in the cluster that ``api`` reaches, its log streamed to stderr and its progress reported here.

    An unfinished job of the same run and stage is adopted instead of submitting another; a finished one too where earlier attempts
    count (:class:`~rglcd.launch.placement.EarlierAttempts`), so that what must not be tried again is not. What
    :mod:`rglcd.launch.failure_table` says of the end of a job decides on another attempt, from its checkpoint and after a pause that
    grows: a failure is tried again up to ``placement.num_failures`` times; all attempts have ``placement.run_seconds`` together.
    Raises what the first failing rank would have raised here, its reason kept in ``failure_file``. Interrupted (SIGINT, SIGTERM),
    it deletes the job, however long that takes, waits until the pods have saved their state, and raises :class:`TryAgain`.
    """
    jobs, clock = Jobs(api, placement, stage), api.clock
    name: str | None = None
    with _stop_requests(clock), PodLogs(jobs) as logs:
        try:
            attempts, name = _beginning(jobs, placement, work=work_of(app))
            while True:
                if name is None:
                    job = _next_job(app, stage, placement, attempts, clock)
                    name = job["metadata"]["name"]
                    jobs.submit(job)
                followed = FollowedJob(name, jobs, placement, attempts, logs=logs, poll_seconds=poll_seconds)
                reason = followed.to_its_end()
                if reason is None:
                    forget_failure(failure_file)
                    return
                ended, name = name, None
                _before_another(
                    ended, reason, attempts, followed.worked_seconds, stage=stage, placement=placement, clock=clock, at=failure_file
                )
        except StopRequested:
            _cancel(name, jobs, logs, placement=placement, poll_seconds=poll_seconds)


def _beginning(jobs: Jobs, placement: Placement, *, work: str) -> tuple[Attempts, str | None]:
    """Where to begin, and the name of the job to follow if there is one."""
    known = jobs.known()
    if not known:
        return Attempts(), None
    last = known[-1]
    is_counted = placement.earlier_attempts is EarlierAttempts.COUNTED
    if is_finished(last) and not is_counted:
        return Attempts(attempt_of(last) + 1), None
    require_work(last, work)
    name: str = last["metadata"]["name"]
    say(f"{name} is there already; following it")
    failures = sum(_is_failure(job, jobs) for job in known[:-1]) if is_counted else 0
    return Attempts(attempt_of(last), failures, earliest(began_of(job) for job in known)), name


def _is_failure(job: dict[str, Any], jobs: Jobs) -> bool:
    """Whether an earlier attempt failed: by its failed pods, which a terminated job keeps, or else by Volcano's word."""
    if phase_of(job) != "Terminated":
        return False
    failed = failed_pods(jobs.pods(job["metadata"]["name"]))
    return not failed or not ended_by_cluster(failed[0])


def _next_job(app: specs.AppDef, stage: Stage, placement: Placement, attempts: Attempts, clock: Clock) -> dict[str, Any]:
    if attempts.began is None:  # what --dry-run shows, to the letter
        return volcano_job(app, stage=stage, placement=placement, attempt=attempts.number)
    left = attempts.seconds_left(clock.now(), placement.run_seconds)
    if left <= 0:
        name = job_name(stage, placement, attempt=attempts.number - 1)
        raise JobError(f"{name}: {over(placement)}", exit_code=TryAgain.exit_code)
    return volcano_job(app, stage=stage, placement=placement, attempt=attempts.number, began=attempts.began, seconds_left=left)


def _before_another(
    name: str,
    reason: Reason,
    attempts: Attempts,
    worked_seconds: float,
    *,
    stage: Stage,
    placement: Placement,
    clock: Clock,
    at: Path | None,
) -> None:
    """Decide on another attempt and pause before it; raises what ended the run where there is to be none."""
    attempt, pause = attempts.number, attempts.ended(reason, worked_seconds=worked_seconds)
    if reason.then is not Then.AGAIN:
        keep_failure({"stage": stage.name, "attempt": attempt, **reason.as_json()}, at, name=name)
    if reason.then is Then.NEVER or (reason.then is Then.COUNTED and attempts.failures > placement.num_failures):
        raise exception_of(failure_of(reason))
    if attempts.leads_nowhere:
        ends = f"{attempts.quick_ends} attempts in a row ended before they got anywhere; the last: {reason.in_one_line}"
        raise JobError(f"{ends}; mend that, then the same command goes on", exit_code=TryAgain.exit_code)
    say(f"{name} ended ({reason.in_one_line}); going on from its checkpoint in {duration(pause)}")
    clock.pause(pause)
    if clock.stop.is_set():
        raise TryAgain(f"{name} had ended, and was to be tried again when this was stopped; the same command does that")


def _cancel(name: str | None, jobs: Jobs, logs: PodLogs, *, placement: Placement, poll_seconds: float) -> NoReturn:
    """Delete the job, and do not leave before it is deleted, or somebody asks once more."""
    if name is None:
        raise TryAgain("stopped before a job was submitted; the same command begins again")
    say(f"{name}: asked to stop; the job is deleted, its pods save their state")
    by_hand = deletion_by_hand(name, placement.namespace)
    with jobs.api.insisting(f"{name} may still run and is to be deleted (a second Ctrl-C leaves it; by hand: {by_hand})"):
        jobs.delete(name)
    with jobs.api.insisting(f"{name} is deleted, its pods may still save their state"):
        pods = jobs.wait_until_gone(name, seconds=placement.grace_seconds + 30, poll_seconds=poll_seconds)
        if not jobs.api.clock.give_up.is_set():
            logs.finish(pods)
    raise TryAgain(f"{name} was cancelled; the same command goes on from its last checkpoint")


@contextmanager
def _stop_requests(clock: Clock) -> Iterator[None]:
    """SIGTERM and SIGINT ask to stop, and once more to give up what stopping takes; in a thread no signal arrives."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        (clock.give_up if clock.stop.is_set() else clock.stop).set()

    with handling_stops(note):
        yield
