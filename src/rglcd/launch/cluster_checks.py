"""Whether a cluster has what the first job needs, asked before it is submitted. Nothing is created in it."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from kubernetes import client
from kubernetes.client.rest import ApiException
from kubernetes.utils import parse_quantity

from rglcd.errors import InputError
from rglcd.launch.cluster_api import GROUP, PLURAL, VERBS, VERSION
from rglcd.launch.cluster_client import PatientClient
from rglcd.launch.cluster_trouble import said
from rglcd.launch.finding import Finding
from rglcd.launch.kubeflow_checks import kubeflow
from rglcd.launch.placement import Placement
from rglcd.launch.released_image import is_published
from rglcd.launch.resources import Resources
from rglcd.launch.volcano_job import priority_of
from rglcd.stages.table import Stage

OLDEST = (1, 27)
_APPLY = "kubectl apply -k manifests/overlays/a100 (or local) makes it"


@dataclass(frozen=True)
class Asked:
    """A stage, and what one of its pods asks for."""

    stage: Stage
    resources: Resources
    placement: Placement


def findings(api: PatientClient, asked: list[Asked]) -> Iterator[Finding]:
    """All that is looked at, in the order in which it is missed. Raises :class:`InputError` where there is no cluster to look at."""
    placement = asked[0].placement
    namespace, core = placement.namespace, client.CoreV1Api(api)
    yield _version(api)
    yield _seen(
        f"Volcano's jobs in namespace {namespace}",
        lambda: client.CustomObjectsApi(api).list_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, limit=1),
        "install Volcano 1.10 or later (https://volcano.sh/en/docs/installation)",
    )
    yield from _rights(api, namespace)
    yield _seen(
        f"queue {placement.queue}",
        lambda: client.CustomObjectsApi(api).get_cluster_custom_object("scheduling.volcano.sh", "v1beta1", "queues", placement.queue),
        f"{_APPLY}; queue in cluster.yaml names another",
    )
    yield _seen(
        f"service account {placement.service_account}",
        lambda: core.read_namespaced_service_account(placement.service_account, namespace),
        f"{_APPLY}; service_account in cluster.yaml names another",
    )
    for name in sorted({priority_of(each.stage, each.placement) for each in asked}):
        yield _seen(f"priority class {name}", partial(client.SchedulingV1Api(api).read_priority_class, name), _APPLY)
    if placement.store is not None:
        name = placement.store[1]
        look = partial(core.read_namespaced_persistent_volume_claim, name, namespace)
        yield _seen(f"claim {name}", look, f"{_APPLY}; store_claim in cluster.yaml names another", then=_phase)
    for secret in sorted({*placement.pull_secrets, *(each.partition("/")[0] for each in placement.secrets)}):
        yield _seen(f"secret {secret}", partial(core.read_namespaced_secret, secret, namespace), "create it in the namespace")
    yield Finding(
        f"image {placement.image}", is_published(placement.image), "a digest of zeros, nobody has published it: make images first"
    )
    yield from _nodes(core, placement)
    yield from _limits(core, namespace, asked)
    yield from kubeflow(api, namespace)


def _version(api: PatientClient) -> Finding:
    version, needed = client.VersionApi(api).get_code(), ".".join(map(str, OLDEST))
    # A distribution's own build may leave major and minor empty, and say v0.0.0-master+$Format:%H$.
    text = f"{version.major}.{version.minor}" if version.major else version.git_version.removeprefix("v")
    found = re.match(r"(\d+)\.(\d+)", text)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    is_well = number >= OLDEST if number > (0, 0) else None
    return Finding(f"Kubernetes {version.git_version}", is_well, f"{needed} or later is needed (docs/operations.md)")


def _rights(api: PatientClient, namespace: str) -> Iterator[Finding]:
    """Exactly the verbs that the launcher uses."""
    reviews = client.AuthorizationV1Api(api)
    for (group, resource), verbs in VERBS.items():
        name, _, part = resource.partition("/")
        for verb in verbs:
            attributes = client.V1ResourceAttributes(group=group, resource=name, subresource=part or None, verb=verb, namespace=namespace)
            review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes))
            may = bool(reviews.create_self_subject_access_review(review).status.allowed)
            if not may:
                advice = (
                    f"the Role rglcd-launcher of manifests/ grants it: kubectl create rolebinding -n {namespace} --role=rglcd-launcher ..."
                )
                yield Finding(f"you may {verb} {resource} in {namespace}", False, advice)
    yield Finding("rights that the launcher uses were asked for one by one", True)


def _seen(what: str, look: Callable[[], Any], advice: str, *, then: Callable[[str, Any], Finding] | None = None) -> Finding:
    """Whether ``look`` finds what it asks for; ``then`` goes on from what it found."""
    try:
        found = look()
    except ApiException as error:
        return Finding(what, False, advice) if error.status == 404 else Finding(what, None, f"{error.status}, {said(error)}")
    except InputError as error:  # no right to look is no fault: the launcher does not look either
        return Finding(what, None, str(error))
    return Finding(what, True) if then is None else then(what, found)


def _phase(what: str, claim: client.V1PersistentVolumeClaim) -> Finding:
    phase = claim.status.phase
    return Finding(f"{what} ({phase})", phase == "Bound" or None, "it is bound when a pod mounts it, if its class waits for one")


def _nodes(core: client.CoreV1Api, placement: Placement) -> Iterator[Finding]:
    if placement.pool.gpus == 0:
        return
    label = placement.gpu_label.partition("=")[0]
    what = f"nodes with {placement.gpu_label} and {placement.pool.gpus} {placement.pool.gpu_resource}"
    selector = ",".join([placement.gpu_label, *(f"{key}={value}" for key, value in placement.node_selector.items())])
    try:
        nodes = core.list_node(label_selector=selector, limit=100).items
        fit = [node for node in nodes if int(_allocatable(node).get(placement.pool.gpu_resource, 0)) >= placement.pool.gpus]
        others = [] if fit else core.list_node(label_selector=placement.any_gpu_label, limit=100).items
    except (ApiException, InputError):
        yield Finding(what, None, f"you may not list nodes; somebody who may: kubectl get nodes -L {label}")
        return
    ready = [node for node in fit if _takes_pods(node)]
    if fit and not ready:
        yield Finding(
            f"{what}: 0", False, f"{len(fit)} would do, but take no pods now (cordoned, or not ready): kubectl get nodes -l {selector}"
        )
        return
    there = ", ".join(sorted({_gpus_of(node, label) for node in others})) or f"no node with {placement.any_gpu_label}"
    advice = (
        f"there is {there}: gpu_label, gpus and gpu_resource in cluster.yaml say what to use; a pool that scales from nothing shows none"
    )
    yield Finding(f"{what}: {len(ready)}", bool(ready), advice)


def _allocatable(node: client.V1Node) -> dict[str, str]:
    """What pods may ask for of a node; nothing of one whose kubelet has not said it yet."""
    return dict(node.status.allocatable or {})


def _takes_pods(node: client.V1Node) -> bool:
    """Whether the scheduler may use it at all; one that says nothing of its health is taken for well."""
    is_well = all(each.status == "True" for each in node.status.conditions or () if each.type == "Ready")
    return is_well and not (node.spec is not None and node.spec.unschedulable)


def _gpus_of(node: client.V1Node, label: str) -> str:
    """What a node has to offer, in the words of cluster.yaml: its value of ``label``, and what is allocatable of each kind of GPU."""
    offered = [f"{amount} {name}" for name, amount in sorted(_allocatable(node).items()) if name.startswith("nvidia.com/")]
    said = f"{label}={node.metadata.labels[label]}" if label in (node.metadata.labels or {}) else f"a node without {label}"
    return f"{said} with {' and '.join(offered) or 'no GPU that can be asked for'}"


def _limits(core: client.CoreV1Api, namespace: str, asked: list[Asked]) -> Iterator[Finding]:
    """Every stage against the LimitRange's maximum and the whole of each quota."""
    try:
        ranges = core.list_namespaced_limit_range(namespace).items
        quotas = core.list_namespaced_resource_quota(namespace).items
    except (ApiException, InputError):
        yield Finding(
            f"LimitRange and quota of {namespace}", None, f"you may not list them; kubectl describe namespace {namespace} shows them"
        )
        return
    most: dict[str, list[tuple[str, Decimal]]] = {}
    for item in ranges:
        for limit in item.spec.limits:
            _note(most, limit.max if limit.type in ("Container", "Pod") else None, f"LimitRange {item.metadata.name}")
    for item in quotas:
        # A pod's requests are its limits, and `cpu` is another name for requests.cpu.
        for name, value in (item.spec.hard or {}).items():
            _note(most, {name.removeprefix("requests.").removeprefix("limits."): value}, f"ResourceQuota {item.metadata.name}")
    for each in asked:
        over = list(_over(each, most))
        advice = "ask for less in cluster.yaml (gpus, cpus, memory_gib, disk_gib), or raise it"
        yield Finding(f"{each.stage.name} fits" if not over else f"{each.stage.name}: {'; '.join(over)}", not over, advice)


def _note(most: dict[str, list[tuple[str, Decimal]]], limits: Mapping[str, str] | None, by: str) -> None:
    for name, value in (limits or {}).items():
        most.setdefault(name, []).append((by, parse_quantity(value)))


def _over(asked: Asked, most: Mapping[str, list[tuple[str, Decimal]]]) -> Iterator[str]:
    resources, nodes = asked.resources, asked.placement.num_nodes
    wanted = {
        "cpu": f"{resources.cpus}",
        "memory": f"{resources.memory_gib}Gi",
        "ephemeral-storage": f"{resources.disk_gib}Gi",
        asked.placement.pool.gpu_resource: f"{resources.gpus}",
    }
    for name, value in wanted.items():
        for by, limit in most.get(name, ()):
            times = nodes if by.startswith("ResourceQuota") else 1
            if parse_quantity(value) * times > limit:
                yield f"{name} {value}{f' on {times} nodes' if times > 1 else ''} is more than {by} admits ({limit.normalize():f})"
