"""Submit a stage to a cluster as a Volcano Job, and stay with it until it ends.

The launcher keeps nothing of its own: what it knows is in the cluster, under a name that follows from the run. So it
may be killed at any moment and started again: it finds the job and goes on following it. What it needs to be allowed
is :data:`VERBS`.
"""

import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from kubernetes import client
from kubernetes.client.rest import ApiException
from torchx import specs
from torchx.schedulers.kubernetes_scheduler import KubernetesJob, KubernetesScheduler, Opts

from rglcd import progress
from rglcd.errors import InputError, TrainingDiverged, TryAgain
from rglcd.launch.failure import JobError, exception_of
from rglcd.launch.job_reason import Reason, ended_by_cluster, failed_pods, failure_of, has_started, reason_of, stuck, why_waiting
from rglcd.launch.placement import EarlierAttempts, Placement
from rglcd.launch.volcano_job import LABEL, volcano_job
from rglcd.signals import handling_stops
from rglcd.stages.table import Stage
from rglcd.store.manifest import write_json

GROUP, VERSION, PLURAL = "batch.volcano.sh", "v1alpha1", "jobs"

VERBS: dict[tuple[str, str], tuple[str, ...]] = {
    (GROUP, "jobs"): ("create", "get", "list", "delete"),
    ("", "pods"): ("list",),
    ("", "pods/log"): ("get",),
    ("", "events"): ("list",),
}
"""Every verb that the launcher uses, by API group and resource: its Role holds these and no more."""

_FINISHED = frozenset({"Completed", "Failed", "Terminated", "Aborted"})
_WORK = f"{LABEL}/work"
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
    jobs = _Jobs(api, placement, stage, work=work_of(app))
    attempt, name, failures = jobs.beginning(placement.earlier_attempts)
    with _stop_requests() as stop, _Logs(jobs) as logs:
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
            _say(f"{name} ended ({reason.reason.in_one_line}); going on from its checkpoint")
            attempt, name = attempt + 1, None


def work_of(app: specs.AppDef) -> str:
    """What tells a job's work from another's, whoever launches it: the digest of its command, its image and its size."""
    (role,) = app.roles
    return hashlib.sha256(json.dumps([role.args, role.image, role.num_replicas]).encode()).hexdigest()


def end_jobs(api: client.ApiClient, *, run: str, namespace: str) -> list[str]:
    """Delete the jobs of ``run`` that still go on; return their names. Those that ended stay visible for their time."""
    custom = client.CustomObjectsApi(api)
    listed = custom.list_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, label_selector=f"{LABEL}/run={run}")
    going = [job["metadata"]["name"] for job in listed["items"] if not _is_finished(job)]
    for name in going:
        _delete(custom, namespace, name)
    return going


# --- following -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _End:
    """How a job ended that did not complete: was it the program's fault, or did the cluster take it away."""

    reason: Reason
    is_failure: bool


def _follow(name: str, jobs: "_Jobs", *, logs: "_Logs", stop: threading.Event, placement: Placement, poll_seconds: float) -> _End | None:
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
        phase = _phase(job)
        if phase in _FINISHED:
            logs.finish(pods)
            return None if phase == "Completed" else _end_of(name, phase, seen, jobs)
        cannot = stuck(pods)
        if cannot is not None:
            jobs.delete(name)
            raise InputError(f"{name} cannot start: {cannot.in_one_line}")
        if phase in ("Pending", "Inqueue"):  # fewer pods run than the gang needs
            explained = _wait_in_queue(name, job, pods, jobs, explained=explained, placement=placement)
        stop.wait(poll_seconds)
    _say(f"{name}: told to stop; the job is deleted, its pods save their state")
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


def _end_of(name: str, phase: str, seen: _Seen, jobs: "_Jobs") -> _End:
    if phase == "Aborted":
        raise JobError(f"{name} was aborted by somebody else; run the same command to go on", exit_code=TryAgain.exit_code)
    failed = seen.latest()
    if not failed:
        return _End(Reason(name, phase, 1, "its pods were taken away before they could say why", None, ()), is_failure=False)
    first = failed[0]
    return _End(reason_of(first, log=jobs.log_tail(first)), is_failure=not ended_by_cluster(first))


def _wait_in_queue(
    name: str, job: Mapping[str, Any], pods: list[dict[str, Any]], jobs: "_Jobs", *, explained: str | None, placement: Placement
) -> str | None:
    """Say why the job waits, whenever that changes; end it when it has waited too long."""
    why = why_waiting(jobs.events(name, pods)) or explained
    if why is not None and why != explained:
        _say(f"{name} waits: {why}")
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


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


# --- the API server ------------------------------------------------------------------------------


class _Jobs:
    """The jobs of one run and stage, and their pods."""

    def __init__(self, api: client.ApiClient, placement: Placement, stage: Stage, *, work: str) -> None:
        self._api, self._placement, self._stage, self._work = api, placement, stage, work
        self._namespace = placement.namespace
        self._custom, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)

    def submit(self, job: dict[str, Any]) -> str:
        """Create ``job``, or adopt the one of that name; :class:`InputError` when that one does other work."""
        name: str = job["metadata"]["name"]
        job["metadata"]["annotations"][_WORK] = self._work
        options = Opts(queue=self._placement.queue, namespace=self._namespace)
        info: specs.AppDryRunInfo[KubernetesJob] = specs.AppDryRunInfo(KubernetesJob({}, job), repr)
        info.cfg = options
        try:
            KubernetesScheduler("rglcd", client=self._api).schedule(info)
        except ValueError as error:  # what TorchX makes of a conflict
            existing = self.get(name)
            if not isinstance(error.__cause__, ApiException) or error.__cause__.status != 409 or existing is None:
                raise
            self._check_work(existing)
            _say(f"{name} exists; following it")
            return name
        except ApiException as error:
            raise InputError(f"the cluster refuses {name}: {_said(error)}") from None
        _say(f"{name} submitted to queue {self._placement.queue} in namespace {self._namespace}")
        return name

    def beginning(self, earlier: EarlierAttempts) -> tuple[int, str | None, int]:
        """Where to begin: attempt, the name of its job if there is one to follow, and the failures before it."""
        known = sorted(self._all(), key=_attempt)
        if not known:
            return 1, None, 0
        last = known[-1]
        name: str = last["metadata"]["name"]
        counted = earlier is EarlierAttempts.COUNTED
        failures = sum(_phase(job) == "Terminated" for job in known[:-1]) if counted else 0
        if _is_finished(last) and not counted:
            return _attempt(last) + 1, None, 0
        self._check_work(last)
        _say(f"{name} is there already; following it")
        return _attempt(last), name, failures

    def get(self, name: str) -> dict[str, Any] | None:
        try:
            job: dict[str, Any] = self._custom.get_namespaced_custom_object(GROUP, VERSION, self._namespace, PLURAL, name)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return job

    def pods(self, name: str) -> list[dict[str, Any]]:
        listed = self._core.list_namespaced_pod(self._namespace, label_selector=f"app.kubernetes.io/instance={name}")
        return self._plain(listed.items)

    def events(self, name: str, pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names = {name, *(pod["metadata"]["name"] for pod in pods)}
        listed = self._plain(self._core.list_namespaced_event(self._namespace).items)
        return [event for event in listed if event["involvedObject"].get("name", "") in names]

    def delete(self, name: str) -> None:
        """Delete the job; Kubernetes deletes its pods, which get their time to save."""
        _delete(self._custom, self._namespace, name)

    def wait_until_gone(self, name: str, *, seconds: float, poll_seconds: float) -> list[dict[str, Any]]:
        """Wait for the pods of a deleted job; return them as last seen."""
        never, last = threading.Event(), self.pods(name)
        for _ in range(int(seconds / poll_seconds)):
            pods = self.pods(name)
            if not pods:
                break
            last = pods
            never.wait(poll_seconds)
        return last

    def log_lines(self, pod: Mapping[str, Any]) -> Iterator[str]:
        """The log of ``pod``, followed to its end."""
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
        response = self._core.read_namespaced_pod_log(name, self._namespace, container=container, follow=True, _preload_content=False)
        rest = b""
        for chunk in response.stream():
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)

    def log_tail(self, pod: Mapping[str, Any]) -> list[str]:
        """The last lines of ``pod``, if it is still there."""
        try:
            text: str = self._core.read_namespaced_pod_log(pod["metadata"]["name"], self._namespace, tail_lines=50)
        except ApiException:
            return []
        return [said for said in (_message(line) for line in text.splitlines()) if said is not None]

    def _check_work(self, job: Mapping[str, Any]) -> None:
        metadata = job["metadata"]
        if metadata.get("annotations", {}).get(_WORK) != self._work:
            raise InputError(f"job {metadata['name']} exists and does other work: give this run an id of its own (RGLCD_RUN)")

    def _all(self) -> list[dict[str, Any]]:
        selector = f"{LABEL}/run={self._placement.run},{LABEL}/stage={self._stage.name}"
        listed = self._custom.list_namespaced_custom_object(GROUP, VERSION, self._namespace, PLURAL, label_selector=selector)
        items: list[dict[str, Any]] = listed["items"]
        return items

    def _plain(self, items: Any) -> list[dict[str, Any]]:
        plain: list[dict[str, Any]] = self._api.sanitize_for_serialization(items)
        return plain


def _phase(job: Mapping[str, Any]) -> str:
    return str(job.get("status", {}).get("state", {}).get("phase", "Pending"))


def _is_finished(job: Mapping[str, Any]) -> bool:
    return _phase(job) in _FINISHED


def _delete(custom: client.CustomObjectsApi, namespace: str, name: str) -> None:
    options = client.V1DeleteOptions(propagation_policy="Background")
    try:
        custom.delete_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, name, body=options)
    except ApiException as error:
        if error.status != 404:
            raise


def _attempt(job: Mapping[str, Any]) -> int:
    return int(job["metadata"]["labels"][f"{LABEL}/attempt"])


def _said(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, TypeError, KeyError):
        return str(error.reason)


# --- logs ----------------------------------------------------------------------------------------


class _Logs:
    """Prints the log of every pod of a job, restarts included, and hands its progress on."""

    def __init__(self, jobs: _Jobs) -> None:
        self._jobs = jobs
        self._threads: dict[str, threading.Thread] = {}

    def __enter__(self) -> "_Logs":
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
            for line in self._jobs.log_lines(pod):
                said = _message(line)
                if said is not None:
                    _say(said)


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


def cluster_client() -> client.ApiClient:
    """A client by the pod's ServiceAccount, or by kubeconfig outside a cluster; :class:`InputError` without either."""
    from kubernetes import config

    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=configuration)
        except config.ConfigException as error:
            raise InputError(f"no cluster: {' '.join(str(error).split())}; set KUBECONFIG, or run in a pod with a ServiceAccount") from None
    return client.ApiClient(configuration)
