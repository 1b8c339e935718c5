"""The launcher's side of the API server: the Volcano Jobs of one run and stage, their pods, events and logs."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from kubernetes import client
from kubernetes.client.rest import ApiException
from torchx import specs
from torchx.schedulers.kubernetes_scheduler import KubernetesJob, KubernetesScheduler, Opts

from rglcd.errors import InputError, TryAgain
from rglcd.launch.cluster_client import LOG_TIMEOUTS, PatientClient
from rglcd.launch.cluster_trouble import is_answer_of_its_own, said, say
from rglcd.launch.job_reason import refusal_of
from rglcd.launch.placement import Placement
from rglcd.launch.volcano_job import BEGAN, LABEL, WORK
from rglcd.stages.table import Stage

GROUP, VERSION, PLURAL = "batch.volcano.sh", "v1alpha1", "jobs"

VERBS: dict[tuple[str, str], tuple[str, ...]] = {
    (GROUP, "jobs"): ("create", "get", "list", "delete"),
    ("", "pods"): ("list",),
    ("", "pods/log"): ("get",),
    ("", "events"): ("list",),
}
"""Every verb that the launcher uses, by API group and resource: its Role holds these and no more."""

FINISHED = frozenset({"Completed", "Failed", "Terminated", "Aborted"})

_EVENTS_OF_ONE, _PODS_ASKED = 50, 4
"""Bounds of what is read of events: an object's may be hundreds, a namespace's hundreds of thousands."""

_NO_VOLCANO = (
    "the cluster knows no Volcano Jobs (batch.volcano.sh/v1alpha1): install Volcano 1.10 or later "
    "(https://volcano.sh/en/docs/installation), or name another cluster by KUBECONFIG"
)


def end_jobs(api: client.ApiClient, *, run: str, namespace: str) -> list[str]:
    """Delete the jobs of ``run`` that still go on; return their names. Those that ended stay visible for their time."""
    custom = client.CustomObjectsApi(api)
    going = [job["metadata"]["name"] for job in _listed(custom, namespace, f"{LABEL}/run={run}") if not is_finished(job)]
    for name in going:
        _delete(custom, namespace, name)
    return going


class Jobs:
    """The jobs of one run and stage, and their pods."""

    def __init__(self, api: PatientClient, placement: Placement, stage: Stage) -> None:
        self.api = api
        self.namespace = placement.namespace
        self._placement, self._stage = placement, stage
        self._custom, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)

    def submit(self, job: dict[str, Any]) -> str:
        """Create ``job``, or adopt the one of that name; :class:`InputError` when that one does other work."""
        name: str = job["metadata"]["name"]
        options = Opts(queue=self._placement.queue, namespace=self.namespace)
        info: specs.AppDryRunInfo[KubernetesJob] = specs.AppDryRunInfo(KubernetesJob({}, job), repr)
        info.cfg = options
        try:
            KubernetesScheduler("rglcd", client=self.api).schedule(info)
        except ValueError as error:  # what TorchX makes of a conflict
            if not isinstance(error.__cause__, ApiException) or error.__cause__.status != 409:
                raise
            existing = self.get(name)
            if existing is None:
                raise TryAgain(f"{name} was there and is gone; the same command makes another") from None
            require_work(existing, job["metadata"]["annotations"][WORK])
            say(f"{name} exists; following it")
            return name
        except ApiException as error:
            raise _refusal(name, error) from None
        say(f"{name} submitted to queue {self._placement.queue} in namespace {self.namespace}")
        return name

    def known(self) -> list[dict[str, Any]]:
        """The jobs of the run and stage that the cluster still has, first attempt first."""
        selector = f"{LABEL}/run={self._placement.run},{LABEL}/stage={self._stage.name}"
        return sorted(_listed(self._custom, self.namespace, selector), key=attempt_of)

    def get(self, name: str) -> dict[str, Any] | None:
        try:
            job: dict[str, Any] = self._custom.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return job

    def pods(self, name: str) -> list[dict[str, Any]]:
        listed = self._core.list_namespaced_pod(self.namespace, label_selector=f"app.kubernetes.io/instance={name}")
        return self._plain(listed.items)

    def events(self, job: Mapping[str, Any], pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What was said of the job, of its PodGroup (Volcano's, ``<job>-<uid>``) and of the first pods that wait."""
        metadata = job["metadata"]
        waiting = [pod["metadata"]["name"] for pod in pods if pod.get("status", {}).get("phase") == "Pending"]
        names = [metadata["name"], f"{metadata['name']}-{metadata.get('uid', '')}", *sorted(waiting)[:_PODS_ASKED]]
        return [event for name in names for event in self._events_of(name)]

    def _events_of(self, name: str) -> list[dict[str, Any]]:
        selector = f"involvedObject.name={name}"
        return self._plain(self._core.list_namespaced_event(self.namespace, field_selector=selector, limit=_EVENTS_OF_ONE).items)

    def delete(self, name: str) -> None:
        """Delete the job; Kubernetes deletes its pods, which get their time to save."""
        _delete(self._custom, self.namespace, name)

    def wait_until_gone(self, name: str, *, seconds: float, poll_seconds: float) -> list[dict[str, Any]]:
        """Wait for the pods of a deleted job, or until asked to give up; return them as last seen."""
        last = self.pods(name)
        for _ in range(int(seconds / poll_seconds)):
            pods = self.pods(name)
            if not pods or self.api.clock.give_up.is_set():
                break
            last = pods
            self.api.clock.pause(poll_seconds)
        return last

    def log_lines(self, pod: Mapping[str, Any], *, since_seconds: int | None = None) -> Iterator[str]:
        """The log of ``pod``, each line with its time at its head, followed until the stream ends."""
        since = {} if since_seconds is None else {"since_seconds": since_seconds}
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
        response = self._core.read_namespaced_pod_log(
            name, self.namespace, container=container, follow=True, timestamps=True, _preload_content=False, **since
        )
        rest = b""
        for chunk in response.stream():
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
        if rest:  # a program that ended in the middle of a line
            yield rest.decode(errors="replace")

    def log_tail(self, pod: Mapping[str, Any]) -> list[str]:
        """The last lines of ``pod``, if it is still there."""
        try:
            response = self._core.read_namespaced_pod_log(
                pod["metadata"]["name"], self.namespace, tail_lines=50, _preload_content=False, _request_timeout=LOG_TIMEOUTS
            )
            return str(response.data.decode(errors="replace")).splitlines()
        except (ApiException, OSError, client.rest.urllib3.exceptions.HTTPError):
            return []

    def _plain(self, items: Any) -> list[dict[str, Any]]:
        plain: list[dict[str, Any]] = self.api.sanitize_for_serialization(items)
        return plain


def phase_of(job: Mapping[str, Any]) -> str:
    """Where a job is in its life; ``Pending`` before Volcano has said anything of it."""
    return str((job.get("status") or {}).get("state", {}).get("phase") or "Pending")


def since_of(job: Mapping[str, Any]) -> datetime:
    """Since when it is there."""
    state = (job.get("status") or {}).get("state", {})
    return datetime.fromisoformat(state.get("lastTransitionTime") or job["metadata"]["creationTimestamp"])


def is_finished(job: Mapping[str, Any]) -> bool:
    """Whether Volcano will do nothing more for the job."""
    return phase_of(job) in FINISHED


def attempt_of(job: Mapping[str, Any]) -> int:
    """Which attempt of its run the job is."""
    return int(job["metadata"]["labels"][f"{LABEL}/attempt"])


def began_of(job: Mapping[str, Any]) -> datetime | None:
    """When the first attempt of the job's run began to work, if a launcher has noted it."""
    noted = (job["metadata"].get("annotations") or {}).get(BEGAN)
    return None if noted is None else datetime.fromisoformat(noted)


def require_work(job: Mapping[str, Any], work: str) -> None:
    """Raises :class:`InputError` if the job does other work than ``work``."""
    metadata = job["metadata"]
    if (metadata.get("annotations") or {}).get(WORK) != work:
        raise InputError(f"job {metadata['name']} exists and does other work: give this run an id of its own (RGLCD_RUN)")


def deletion_by_hand(name: str, namespace: str) -> str:
    """The command that ends a job without the launcher."""
    return f"kubectl delete jobs.batch.volcano.sh {name} -n {namespace}"


def _listed(custom: client.CustomObjectsApi, namespace: str, selector: str) -> list[dict[str, Any]]:
    try:
        listed = custom.list_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, label_selector=selector)
    except ApiException as error:
        if error.status == 404:
            raise InputError(_NO_VOLCANO) from None
        raise InputError(f"the cluster does not list jobs in namespace {namespace}: {error.status}, {said(error)}") from None
    items: list[dict[str, Any]] = listed["items"]
    return items


def _refusal(name: str, error: ApiException) -> Exception:
    if error.status == 404 and not is_answer_of_its_own(error):
        return InputError(_NO_VOLCANO)
    reason = refusal_of(name, said(error))
    message = f"the cluster refuses {name}: {reason.message}" + (f"; {reason.row.advice}" if reason.row and reason.row.advice else "")
    return TryAgain(message) if reason.exit_code == TryAgain.exit_code else InputError(message)


def _delete(custom: client.CustomObjectsApi, namespace: str, name: str) -> None:
    options = client.V1DeleteOptions(propagation_policy="Background")
    try:
        custom.delete_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, name, body=options)
    except ApiException as error:
        if error.status != 404:
            raise
