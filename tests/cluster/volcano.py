"""A stand-in for Volcano's job controller and its garbage collector, by their documentation and source.

Results that rest on it say so. What it follows, of volcano-sh/volcano (Apache-2.0):

    pods named <job>-<task>-<i>, annotations, labels     pkg/controllers/job/job_controller_util.go (createJobPod, MakePodName)
    which event a pod's change is                        pkg/controllers/job/job_controller_handler.go (updatePod, deletePod)
    policies: task's before job's, first match wins,     pkg/controllers/job/job_controller_util.go (applyPolicies)
    requests of an older version are only a sync
    what each action does, and which pods it keeps       pkg/controllers/job/state/{pending,running,restarting,terminating,aborting}.go
    version is bumped and the pod group deleted by kill  pkg/controllers/job/job_controller_actions.go (killJob)
    hosts, service and network policy of the svc plugin  pkg/controllers/job/plugins/svc/svc.go
    VC_TASK_INDEX and VK_TASK_INDEX                      pkg/controllers/job/plugins/env/env.go
    minAvailable where a job says none                   pkg/webhooks/admission/jobs/mutate/mutate_job.go
    TTL: Completed, Failed and Terminated are finished   pkg/controllers/garbagecollector/garbagecollector.go

What it does not have: Volcano's scheduler (the pods are placed one by one by kube-scheduler's profile ``volcano``, so
there is no gang scheduling and no queue), admission webhooks, Commands, and scaling.
"""

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubernetes.client.rest import ApiException

from tests.cluster.control_plane import Cluster
from tests.cluster.rest import Rest
from tests.cluster.volcano_pods import owner_of, pod_of

_POLL_SECONDS = 0.3
_BATCH = "/apis/batch.volcano.sh/v1alpha1"
_FINISHED = ("Completed", "Failed", "Terminated")


@dataclass
class Faults:
    """Volcano's known faults, as switches.

    ``eviction_burns_retries``  volcano-sh/volcano#2560: a restart after an eviction counts towards maxRetry like any other
    ``failed_pods_vanish``      volcano-sh/volcano#1688: when a job ends, its failed pods are deleted, and their logs with them
    """

    eviction_burns_retries: bool = True
    failed_pods_vanish: bool = False


@dataclass(frozen=True)
class _Event:
    name: str
    task: str
    exit_code: int
    version: int


class VolcanoStandIn:
    """Keeps every Volcano Job of a cluster moving until :meth:`stop`."""

    def __init__(self, cluster: Cluster, *, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self._rest = Rest(cluster.client())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        # What each pod was when last seen: a change is an event.
        self._seen: dict[str, dict[str, dict[str, Any]]] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            with contextlib.suppress(ApiException):
                for job in self._rest.items(f"{_BATCH}/jobs"):
                    if "deletionTimestamp" not in job["metadata"]:
                        with contextlib.suppress(ApiException):  # a conflict: the next round sees what changed
                            self._look_after(job)

    def _look_after(self, job: dict[str, Any]) -> None:
        pods = self._pods(job)
        status = job.get("status") or {}
        job["status"] = status = {"version": 0, "retryCount": 0, "state": {"phase": "Pending"}} | status
        if self._collect_garbage(job):
            return
        for event in self._events(job, pods):
            action = _action(job, event)
            if action is not None:
                self._act(job, pods, action, event)
                return
        self._step(job, pods)

    # --- events and policies ---

    def _events(self, job: Mapping[str, Any], pods: Mapping[str, dict[str, Any]]) -> list[_Event]:
        before = self._seen.get(job["metadata"]["uid"], {})
        self._seen[job["metadata"]["uid"]] = dict(pods)
        events = []
        for uid in before.keys() | pods.keys():
            old, new = before.get(uid), pods.get(uid)
            went = new is None or "deletionTimestamp" in new["metadata"]
            if old is not None and went and "deletionTimestamp" not in old["metadata"]:
                events.append(_event("PodEvicted", old))
            elif (
                new is not None and not went and new["status"]["phase"] == "Failed" and (old is None or old["status"]["phase"] != "Failed")
            ):
                events.append(_event("PodFailed", new))
        return events

    # --- actions: each ends in a phase and keeps some pods ---

    def _act(self, job: dict[str, Any], pods: Mapping[str, dict[str, Any]], action: str, event: _Event) -> None:
        if job["status"]["state"]["phase"] not in ("Pending", "Running"):
            return
        if action == "RestartJob":
            if event.name != "PodEvicted" or self.faults.eviction_burns_retries:
                job["status"]["retryCount"] += 1
            self._kill(job, pods, keep=(), phase="Restarting")
        elif action in ("AbortJob", "TerminateJob"):
            self._kill(job, pods, keep=("Succeeded", "Failed"), phase={"AbortJob": "Aborting", "TerminateJob": "Terminating"}[action])

    def _kill(self, job: dict[str, Any], pods: Mapping[str, dict[str, Any]], *, keep: tuple[str, ...], phase: str) -> None:
        metadata = job["metadata"]
        for pod in pods.values():
            if pod["status"]["phase"] not in keep and "deletionTimestamp" not in pod["metadata"]:
                self._rest.delete(f"/api/v1/namespaces/{metadata['namespace']}/pods/{pod['metadata']['name']}")
        job["status"]["version"] += 1
        self._write(job, pods, phase)

    # --- phases ---

    def _step(self, job: dict[str, Any], pods: Mapping[str, dict[str, Any]]) -> None:
        phase, spec = job["status"]["state"]["phase"], job["spec"]
        remaining = [pod for pod in pods.values() if pod["status"]["phase"] not in ("Succeeded", "Failed")]
        match phase:
            case "Pending" | "Running":
                self._sync(job, pods)
            case "Restarting" if job["status"]["retryCount"] >= spec["maxRetry"]:
                self._finish(job, pods, "Failed")
            case "Restarting" if not pods:
                self._write(job, pods, "Pending")
            case "Terminating" | "Aborting" if not remaining:
                self._finish(job, pods, {"Terminating": "Terminated", "Aborting": "Aborted"}[phase])
            case "Aborted" if remaining:  # TorchX cancels a job by writing this phase
                self._kill(job, pods, keep=("Succeeded", "Failed"), phase="Aborted")

    def _sync(self, job: dict[str, Any], pods: Mapping[str, dict[str, Any]]) -> None:
        spec = job["spec"]
        self._make_plugins_objects(job)
        names = {pod["metadata"]["name"] for pod in pods.values()}
        for task in spec["tasks"]:
            for index in range(task["replicas"]):
                if f"{job['metadata']['name']}-{task['name']}-{index}" not in names:
                    self._rest.create(f"/api/v1/namespaces/{job['metadata']['namespace']}/pods", pod_of(job, task, index))
        count = _count(pods)
        total = sum(task["replicas"] for task in spec["tasks"])
        if count["succeeded"] + count["failed"] == total:
            self._finish(job, pods, "Completed" if count["succeeded"] >= _min_available(spec) else "Failed")
        else:
            runs = count["running"] + count["succeeded"] + count["failed"] >= _min_available(spec)
            self._write(job, pods, "Running" if runs else "Pending")

    def _finish(self, job: dict[str, Any], pods: Mapping[str, dict[str, Any]], phase: str) -> None:
        if self.faults.failed_pods_vanish and phase != "Completed":
            for pod in pods.values():
                self._rest.delete(f"/api/v1/namespaces/{job['metadata']['namespace']}/pods/{pod['metadata']['name']}")
        self._write(job, pods, phase)

    def _write(self, job: dict[str, Any], pods: Mapping[str, dict[str, Any]], phase: str) -> None:
        status, spec = job["status"], job["spec"]
        counts = {name: number for name, number in _count(pods).items() if number}
        tasks: dict[str, Any] = {}
        for pod in pods.values():
            phases = tasks.setdefault(pod["metadata"]["annotations"]["volcano.sh/task-spec"], {"phase": {}})["phase"]
            phases[pod["status"]["phase"]] = phases.get(pod["status"]["phase"], 0) + 1
        state = status["state"]
        if state["phase"] != phase or "lastTransitionTime" not in state:
            state = {"phase": phase, "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        kept = {name: status[name] for name in ("version", "retryCount")}
        new = {**kept, **counts, "state": state, "minAvailable": _min_available(spec), "taskStatusCount": tasks}
        if new != status:
            metadata = job["metadata"]
            self._rest.replace(f"{_BATCH}/namespaces/{metadata['namespace']}/jobs/{metadata['name']}/status", {**job, "status": new})

    def _collect_garbage(self, job: Mapping[str, Any]) -> bool:
        state, ttl = job["status"]["state"], job["spec"].get("ttlSecondsAfterFinished")
        if ttl is None or state["phase"] not in _FINISHED:
            return False
        age = datetime.now(UTC) - datetime.fromisoformat(state["lastTransitionTime"])
        if age.total_seconds() < ttl:
            return False
        metadata = job["metadata"]
        path = f"{_BATCH}/namespaces/{metadata['namespace']}/jobs/{metadata['name']}"
        self._rest.delete(path, propagationPolicy="Foreground", preconditions={"uid": metadata["uid"]})
        return True

    # --- plugins ---

    def _make_plugins_objects(self, job: Mapping[str, Any]) -> None:
        if "svc" not in job["spec"].get("plugins", {}):
            return
        metadata = job["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        if self._rest.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}-svc") is not None:
            return
        hosts: dict[str, str] = {}
        for task in job["spec"]["tasks"]:
            key = task["name"].replace("-", "_")
            members = [f"{name}-{task['name']}-{index}.{name}" for index in range(task["replicas"])]
            hosts |= {f"{key}.host": "\n".join(members), f"VC_{key.upper()}_HOSTS": ",".join(members)}
            hosts[f"VC_{key.upper()}_NUM"] = str(len(members))
        selector = {"volcano.sh/job-name": name, "volcano.sh/job-namespace": namespace}
        peers = {"podSelector": {"matchLabels": selector}}
        owned = {"namespace": namespace, "ownerReferences": [owner_of(job)]}
        service = {"clusterIP": "None", "selector": selector, "publishNotReadyAddresses": True}
        policy = peers | {"ingress": [{"from": [peers]}], "policyTypes": ["Ingress"]}
        core, network = f"/api/v1/namespaces/{namespace}", f"/apis/networking.k8s.io/v1/namespaces/{namespace}"
        self._rest.create(f"{core}/services", {"metadata": {"name": name, **owned}, "spec": service})
        self._rest.create(f"{network}/networkpolicies", {"metadata": {"name": name, **owned}, "spec": policy})
        self._rest.create(f"{core}/configmaps", {"metadata": {"name": f"{name}-svc", **owned}, "data": hosts})

    def _pods(self, job: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        metadata = job["metadata"]
        listed = self._rest.items(
            f"/api/v1/namespaces/{metadata['namespace']}/pods", labelSelector=f"volcano.sh/job-name={metadata['name']}"
        )
        return {
            pod["metadata"]["uid"]: pod
            for pod in listed
            if any(owner["uid"] == metadata["uid"] for owner in pod["metadata"].get("ownerReferences", []))
        }


def _min_available(spec: Mapping[str, Any]) -> int:
    """All pods, where a job does not say (TorchX's own do not)."""
    return int(spec.get("minAvailable") or sum(task["replicas"] for task in spec["tasks"]))


def _action(job: Mapping[str, Any], event: _Event) -> str | None:
    """The first policy that matches, the task's own before the job's; none for what an older version of the job did."""
    if event.version < job["status"]["version"]:
        return None
    (task,) = (task for task in job["spec"]["tasks"] if task["name"] == event.task)
    for policy in (*task.get("policies", []), *job["spec"].get("policies", [])):
        events = {policy.get("event"), *policy.get("events", [])}
        if event.name in events or "*" in events or (event.exit_code and policy.get("exitCode") == event.exit_code):
            return str(policy["action"])
    return None


def _event(name: str, pod: Mapping[str, Any]) -> _Event:
    annotations = pod["metadata"]["annotations"]
    exit_code = 0
    if name == "PodFailed":
        for status in pod["status"].get("containerStatuses", [])[:1]:
            exit_code = status["state"].get("terminated", {}).get("exitCode", 0)
    return _Event(name, annotations["volcano.sh/task-spec"], exit_code, int(annotations["volcano.sh/job-version"]))


def _count(pods: Mapping[str, dict[str, Any]]) -> dict[str, int]:
    count = dict.fromkeys(("pending", "running", "succeeded", "failed", "terminating"), 0)
    for pod in pods.values():
        count["terminating" if "deletionTimestamp" in pod["metadata"] else pod["status"]["phase"].lower()] += 1
    return count
