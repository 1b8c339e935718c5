"""The launcher's side of the API server: the Volcano Jobs of one run and stage, their pods, events and logs."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from kubernetes import client
from kubernetes.client.rest import ApiException
from torchx import specs
from torchx.schedulers.kubernetes_scheduler import KubernetesJob, KubernetesScheduler, Opts

from rglcd.errors import InputError
from rglcd.launch.placement import EarlierAttempts, Placement
from rglcd.launch.volcano_job import LABEL
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
_WORK = f"{LABEL}/work"


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


def end_jobs(api: client.ApiClient, *, run: str, namespace: str) -> list[str]:
    """Delete the jobs of ``run`` that still go on; return their names. Those that ended stay visible for their time."""
    custom = client.CustomObjectsApi(api)
    listed = custom.list_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, label_selector=f"{LABEL}/run={run}")
    going = [job["metadata"]["name"] for job in listed["items"] if not is_finished(job)]
    for name in going:
        _delete(custom, namespace, name)
    return going


class Jobs:
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
            say(f"{name} exists; following it")
            return name
        except ApiException as error:
            raise InputError(f"the cluster refuses {name}: {_said(error)}") from None
        say(f"{name} submitted to queue {self._placement.queue} in namespace {self._namespace}")
        return name

    def beginning(self, earlier: EarlierAttempts) -> tuple[int, str | None, int]:
        """Where to begin: attempt, the name of its job if there is one to follow, and the failures before it."""
        known = sorted(self._all(), key=_attempt)
        if not known:
            return 1, None, 0
        last = known[-1]
        name: str = last["metadata"]["name"]
        counted = earlier is EarlierAttempts.COUNTED
        failures = sum(phase_of(job) == "Terminated" for job in known[:-1]) if counted else 0
        if is_finished(last) and not counted:
            return _attempt(last) + 1, None, 0
        self._check_work(last)
        say(f"{name} is there already; following it")
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
        last = self.pods(name)
        for _ in range(int(seconds / poll_seconds)):
            pods = self.pods(name)
            if not pods:
                break
            last = pods
            time.sleep(poll_seconds)
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
        return text.splitlines()

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


def phase_of(job: Mapping[str, Any]) -> str:
    """Where a job is in its life; ``Pending`` before Volcano has said anything of it."""
    return str(job.get("status", {}).get("state", {}).get("phase", "Pending"))


def is_finished(job: Mapping[str, Any]) -> bool:
    """Whether Volcano will do nothing more for the job."""
    return phase_of(job) in FINISHED


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


def say(message: str) -> None:
    """One line for the person who launched."""
    print(message, file=sys.stderr, flush=True)
