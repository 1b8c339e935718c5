"""One small pod, as restricted as a job's, for what only a pod sees: image, names, its user's right to the claim. It is deleted again."""

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from kubernetes import client
from kubernetes.client.rest import ApiException
from torchx import specs

from rglcd.errors import InputError
from rglcd.launch.appdef import TERMINATION_MESSAGE
from rglcd.launch.cluster_client import PatientClient
from rglcd.launch.cluster_trouble import duration, said
from rglcd.launch.finding import Finding
from rglcd.launch.job_reason import Reason, is_placed, refusal_of, stuck
from rglcd.launch.placement import Placement
from rglcd.launch.volcano_job import USER, volcano_job
from rglcd.stages.table import stage_named

_SECONDS, _STUCK_SECONDS = 300.0, 120.0
"""How long a pod may take in all, and how long its container may fail to start before that is the answer."""
_POLL_SECONDS = 2.0

_LOOKS = """
import json, socket, sys, tempfile
def tried(act):
    try:
        act()
    except OSError as error:
        return str(error)
names = tried(lambda: socket.getaddrinfo("kubernetes.default", 443))
store = tried(lambda: tempfile.TemporaryFile(dir=sys.argv[1]).close()) if sys.argv[1] else None
with open(sys.argv[2], "w") as log:
    json.dump({"names": names, "store": store}, log)
"""
_NAMES = (
    "a component of manifests/ opens the way to what answers names here: node-local-dns, cloud-dns or openshift-dns (docs/operations.md)"
)


def trial(api: PatientClient, placement: Placement) -> Iterator[Finding]:
    """Start the pod, say what it found, delete it."""
    core, name = client.CoreV1Api(api), f"rglcd-doctor-{secrets.token_hex(4)}"
    mount = placement.store[0] if placement.store is not None else ""
    what = f"a pod of {placement.image}"
    try:
        core.create_namespaced_pod(placement.namespace, _pod(name, placement, mount=mount))
    except ApiException as error:
        if error.status != 409:  # made, and the answer was lost
            reason = refusal_of(name, said(error))
            yield Finding(f"{what}: {reason.message}", False, reason.row.advice if reason.row and reason.row.advice else "see its words")
            return
    except InputError as error:
        yield Finding(what, None, f"{error}; somebody who may create pods can look")
        return
    try:
        yield from _found(what, _watched(core, api, name, placement.namespace), has_claim=bool(mount))
    finally:
        _delete(core, name, placement.namespace)


def _pod(name: str, placement: Placement, *, mount: str) -> dict[str, Any]:
    """The pod of a stage without GPUs, but for its program and its size."""
    role = specs.Role(name="doctor", image=placement.image, entrypoint="python", args=["-c", _LOOKS, mount, TERMINATION_MESSAGE])
    job = volcano_job(specs.AppDef(name=name, roles=[role]), stage=stage_named("shard"), placement=replace(placement, run="doctor"))
    spec = job["spec"]["tasks"][0]["template"]["spec"]
    spec |= {"terminationGracePeriodSeconds": 5, "activeDeadlineSeconds": int(_SECONDS)}
    (container,) = spec["containers"]
    small = {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "256Mi"}
    container["resources"] = {"requests": small, "limits": dict(small)}
    spec["volumes"] = [_small(volume) for volume in spec["volumes"]]
    # Where Istio puts a proxy beside each container, as in a Profile of Kubeflow's, a pod with an end must not get one.
    alone = {"sidecar.istio.io/inject": "false"}
    labels = {"app.kubernetes.io/part-of": "rg-lcd", "app.kubernetes.io/name": "rglcd-doctor", **alone}
    metadata = {"name": name, "namespace": placement.namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _small(volume: Mapping[str, Any]) -> dict[str, Any]:
    return {**volume, "emptyDir": {**volume["emptyDir"], "sizeLimit": "64Mi"}} if "emptyDir" in volume else dict(volume)


def _watched(core: client.CoreV1Api, api: PatientClient, name: str, namespace: str) -> tuple[dict[str, Any], Reason | None, float]:
    """The pod when it has ended, or when it will not; why it does not start, if it does not; and how long that took."""
    began = api.clock.monotonic()
    while True:
        pod: dict[str, Any] = api.sanitize_for_serialization(core.read_namespaced_pod(name, namespace))
        waited = api.clock.monotonic() - began
        reason = stuck([pod], _events_of(core, api, name, namespace) if is_placed(pod) else ())
        patience = _SECONDS
        if reason is not None and reason.row is not None:
            patience = _STUCK_SECONDS if reason.row.may_wait else 0.0
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed") or waited >= patience:
            return pod, reason, waited
        api.clock.pause(_POLL_SECONDS)


def _events_of(core: client.CoreV1Api, api: PatientClient, name: str, namespace: str) -> list[dict[str, Any]]:
    try:
        found = core.list_namespaced_event(namespace, field_selector=f"involvedObject.name={name}", limit=50)
    except (ApiException, InputError):  # no right to look
        return []
    return list(api.sanitize_for_serialization(found.items))


def _found(what: str, seen: tuple[dict[str, Any], Reason | None, float], *, has_claim: bool) -> Iterator[Finding]:
    pod, reason, waited = seen
    answer = _answer_of(pod)
    if reason is not None and reason.row is not None:
        yield Finding(f"{what} does not start: {reason.cause}: {reason.message}", False, reason.row.advice)
    elif answer is None:
        yield Finding(f"{what} has not run within {duration(waited)}: {_why(pod)}", False, "kubectl describe pod says more of another try")
    else:
        yield Finding(f"{what} starts ({duration(waited)})", True)
        yield Finding("names are found in a pod" + _because(answer["names"]), answer["names"] is None, _NAMES)
        if has_claim:
            advice = f"the Job of manifests/fresh-claim gives it to user {USER} (docs/operations.md, A fresh claim)"
            yield Finding(f"the claim is writable for user {USER}" + _because(answer["store"]), answer["store"] is None, advice)


def _because(error: str | None) -> str:
    return "" if error is None else f" ({error})"


def _answer_of(pod: Mapping[str, Any]) -> dict[str, Any] | None:
    for status in pod.get("status", {}).get("containerStatuses") or ():
        try:
            answer = json.loads(status["state"]["terminated"]["message"])
        except (KeyError, TypeError, ValueError):
            continue
        if isinstance(answer, dict) and answer.keys() >= {"names", "store"}:
            return answer
    return None


def _why(pod: Mapping[str, Any]) -> str:
    """The newest word on a pod that does not run: its own, or the scheduler's."""
    status = pod.get("status", {})
    words = [status.get("message"), *(each.get("message") for each in status.get("conditions") or () if each.get("status") == "False")]
    return " ".join(next(filter(None, words), "nothing is said of it").split())


def _delete(core: client.CoreV1Api, name: str, namespace: str) -> None:
    try:
        core.delete_namespaced_pod(name, namespace, grace_period_seconds=5)
    except ApiException as error:
        if error.status != 404:
            raise
