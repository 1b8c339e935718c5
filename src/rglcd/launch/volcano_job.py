"""A TorchX app as a Volcano Job: TorchX renders it, :func:`complete` adds what a real cluster asks for.

TorchX knows neither tolerations, affinity, security context, minimum number of pods, lifetimes nor the size of /dev/shm
(meta-pytorch/torchx#1068, #1067, #753; NVIDIA/nccl#290). All of that is added here, in one pure function on plain data.
"""

import copy
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from torchx import specs
from torchx.schedulers.kubernetes_scheduler import KubernetesScheduler, Opts

from rglcd.errors import InputError, TrainingDiverged, TryAgain
from rglcd.launch.appdef import TERMINATION_MESSAGE
from rglcd.launch.kept_failures import FAILURES_FOLDER
from rglcd.launch.placement import IDENTITY, STORE_KEYS, CpuStages, Placement, job_name, node_with, toleration
from rglcd.launch.provenance import as_label
from rglcd.launch.resources import ACCELERATOR, Resources, resources_of
from rglcd.stages.table import Profile, Stage

LABEL = "rg-lcd"
"""Prefix of the labels that tie run, job, pods and volumes together."""

WORK = f"{LABEL}/work"
"""Annotation that identifies a job's work, whoever launches it."""
BEGAN = f"{LABEL}/began"
"""Annotation of further attempts: when the first one began to work. The deadline of the run counts from there."""

USER = 10001
"""The pods' user and group; the images make it."""

SCRATCH = {"tmp": "/tmp", "cache": "/cache"}  # noqa: S108 (the pod's own)
"""Folders that may be written to, by volume; the root file system may not."""

NETWORK = "rglcd-network"
"""ConfigMap of environment variables for the network between nodes; a cloud's component brings it, plain TCP needs none."""

RESTARTS = 1000
"""How often Volcano may restart a job that was evicted or saved its state. Volcano counts those like failures
(volcano-sh/volcano#2560); no such restart is a failure, so the count must never decide."""

_FLIGHT_RECORDERS = ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE")

_PRIORITIES = {"evaluate": "rglcd-evaluation"}

# In this order: Volcano takes the first policy that matches, and a failed pod matches by its exit code and as an event.
POLICIES: list[dict[str, Any]] = [
    {"exitCode": TryAgain.exit_code, "action": "RestartJob"},
    {"event": "PodEvicted", "action": "RestartJob"},
    {"exitCode": InputError.exit_code, "action": "TerminateJob"},
    {"exitCode": TrainingDiverged.exit_code, "action": "TerminateJob"},
    # Whether a crash is worth another attempt is the launcher's to say. Terminated, the job keeps its failed pods and their
    # logs, which a restart on the last try deletes (volcano-sh/volcano#1688); Aborted, it would never be cleaned up:
    # Volcano's garbage collector takes Completed, Failed and Terminated for finished, and nothing else.
    {"event": "PodFailed", "action": "TerminateJob"},
]


def volcano_job(
    app: specs.AppDef,
    *,
    stage: Stage,
    placement: Placement,
    attempt: int = 1,
    began: datetime | None = None,
    seconds_left: float | None = None,
) -> dict[str, Any]:
    """The object to submit for ``app``: what TorchX renders, completed. Needs no cluster.

    A further attempt notes when its run ``began`` to work, and may take only ``seconds_left`` of its time.
    """
    options = Opts(
        queue=placement.queue,
        namespace=placement.namespace,
        service_account=placement.service_account,
        priority_class=priority_of(stage, placement),
        validate_spec=False,
        reserved_millicpu=0,
        reserved_memmb=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        request = KubernetesScheduler("rglcd")._submit_dryrun(app, options).request
    if seconds_left is not None:
        placement = replace(placement, run_seconds=max(1, int(seconds_left)))
    job = complete(_plain(request.resource), stage=stage, placement=placement, attempt=attempt)
    job["metadata"]["annotations"] |= {WORK: work_of(app)} | ({} if began is None else {BEGAN: began.isoformat(timespec="seconds")})
    return job


def priority_of(stage: Stage, placement: Placement) -> str:
    """The PriorityClass of the stage's pods."""
    return placement.priority or _PRIORITIES.get(stage.name, "rglcd-training")


def work_of(app: specs.AppDef) -> str:
    """Identifies a job's work: the digest of its command, its image and its number of nodes."""
    (role,) = app.roles
    return hashlib.sha256(json.dumps([role.args, role.image, role.num_replicas]).encode()).hexdigest()


def complete(job: Mapping[str, Any], *, stage: Stage, placement: Placement, attempt: int) -> dict[str, Any]:
    """``job`` as TorchX renders it, with everything that it leaves out. Pure: equal arguments, equal result."""
    completed: dict[str, Any] = copy.deepcopy(dict(job))
    name = job_name(stage, placement, attempt=attempt)
    labels = _labels(stage, placement, attempt=attempt)
    completed["metadata"] = {"name": name, "namespace": placement.namespace, "labels": labels, "annotations": _annotations(placement)}
    if placement.owner is not None:
        owner = {"apiVersion": "v1", "kind": "Pod", "name": placement.owner.name, "uid": placement.owner.uid}
        completed["metadata"]["ownerReferences"] = [owner]
    spec = completed["spec"]
    spec["minAvailable"] = sum(task["replicas"] for task in spec["tasks"])
    spec["policies"] = copy.deepcopy(POLICIES)
    spec["maxRetry"] = RESTARTS
    spec["ttlSecondsAfterFinished"] = placement.keep_seconds
    for task in spec["tasks"]:
        _complete_pod(
            task["template"], name=name, labels=labels, asked=resources_of(stage.profile, placement.pool), stage=stage, placement=placement
        )
    return completed


def _labels(stage: Stage, placement: Placement, *, attempt: int) -> dict[str, str]:
    named = {"run": placement.run, "stage": stage.name, "attempt": str(attempt)}
    # A label's value holds at most 63 characters, one fewer than a SHA-256; the annotation has all.
    provenance = {key: as_label(value.removeprefix("sha256:")[:46]) for key, value in placement.provenance.items()}
    return {"app.kubernetes.io/part-of": "rg-lcd", **{f"{LABEL}/{key}": value for key, value in (named | provenance).items()}}


def _annotations(placement: Placement) -> dict[str, str]:
    return {f"{LABEL}/{key}": value for key, value in placement.provenance.items()}


def _complete_pod(
    template: dict[str, Any], *, name: str, labels: Mapping[str, str], asked: Resources, stage: Stage, placement: Placement
) -> None:
    metadata, spec = template["metadata"], template["spec"]
    # TorchX makes a random name for the app; the job has a better one.
    metadata["labels"] |= {**labels, "app.kubernetes.io/instance": name, **IDENTITY}
    spec |= {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": placement.grace_seconds,
        "activeDeadlineSeconds": placement.run_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    spec.pop("nodeSelector", None)
    spec |= _choice_of_nodes(asked, placement, stage)
    if placement.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in placement.pull_secrets]
    volumes, mounts = _volumes(asked, placement)
    spec["volumes"] = volumes
    (container,) = spec["containers"]
    limits = _limits(asked, placement)
    container |= {
        "resources": {"limits": limits, "requests": dict(limits)},
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": TERMINATION_MESSAGE,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "ports": [
            {"name": "rendezvous", "containerPort": placement.rendezvous_port},
            {"name": "metrics", "containerPort": placement.metrics_port},
        ],
        "envFrom": [{"configMapRef": {"name": NETWORK, "optional": True}}, {"secretRef": {"name": STORE_KEYS, "optional": True}}],
        # First: an argument may refer to them.
        "env": [*_environment(placement), *map(partial(_of_attempt, name=name), container.get("env", []))],
    }
    folder = next((entry["value"] for entry in container["env"] if entry["name"] == FAILURES_FOLDER), SCRATCH["cache"])
    # The new name beside the old one, which torch 2.13 still reads. NCCL adds the rank.
    container["env"] += [{"name": variable, "value": f"{folder}/nccl-flight-recorder-"} for variable in _FLIGHT_RECORDERS]


def _of_attempt(entry: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    return {**entry, "value": f"{entry['value']}/{name}"} if entry["name"] == FAILURES_FOLDER else dict(entry)


def _choice_of_nodes(asked: Resources, placement: Placement, stage: Stage) -> dict[str, Any]:
    """Affinity, selector and tolerations: of the pool for pods with GPUs, of the rest for others."""
    on_gpu = asked.gpus > 0
    selector = placement.node_selector if on_gpu else placement.cpu_node_selector
    tolerations = [toleration(text) for text in (placement.tolerations if on_gpu else placement.cpu_tolerations)]
    if on_gpu:
        tolerations = [{"key": ACCELERATOR, "operator": "Exists", "effect": "NoSchedule"}, *tolerations]
    chosen = {"affinity": _affinity(asked, stage, placement), "nodeSelector": dict(selector), "tolerations": tolerations}
    return {field: value for field, value in chosen.items() if value}


def _limits(asked: Resources, placement: Placement) -> dict[str, str]:
    limits = {"cpu": str(asked.cpus), "memory": f"{asked.memory_gib}Gi", "ephemeral-storage": f"{asked.disk_gib}Gi"}
    return {**limits, **({placement.pool.gpu_resource: str(asked.gpus)} if asked.gpus else {}), **placement.devices}


def _volumes(asked: Resources, placement: Placement) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = [
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{asked.shared_memory_gib}Gi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": f"{max(1, asked.disk_gib // 8)}Gi"}},
        {"name": "cache", "emptyDir": {"sizeLimit": f"{asked.disk_gib * 3 // 4}Gi"}},
    ]
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]  # noqa: S108 (the pod's own)
    mounts += [{"name": name, "mountPath": path} for name, path in SCRATCH.items()]
    if placement.store is not None:
        path, claim = placement.store
        volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "store", "mountPath": path})
    return volumes, mounts


def _affinity(asked: Resources, stage: Stage, placement: Placement) -> dict[str, Any]:
    """GPU pods on GPU nodes, training on the label of its pool; pods of no GPU elsewhere; one whole-node pod a node."""
    if asked.gpus:
        nodes = node_with(placement.any_gpu_label if stage.profile is Profile.GPU else placement.gpu_label)
    elif placement.cpu_stages is CpuStages.ANYWHERE or placement.pool.gpus == 0:
        return {}
    else:
        nodes = {"key": placement.any_gpu_label.partition("=")[0], "operator": "DoesNotExist"}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [nodes]}]}
    affinity: dict[str, Any] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    if asked.gpus > 1:
        same = {f"{LABEL}/run": placement.run, f"{LABEL}/stage": stage.name}
        one_a_node = {"labelSelector": {"matchLabels": same}, "topologyKey": "kubernetes.io/hostname"}
        affinity["podAntiAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [one_a_node]}
    return affinity


def _environment(placement: Placement) -> list[dict[str, Any]]:
    fields = {"RGLCD_POD_IP": "status.podIP", "RGLCD_POD_NAME": "metadata.name"}
    values = {
        "HOME": "/tmp",  # noqa: S108 (the pod's own)
        "HF_HOME": "/cache/huggingface",
        "TMPDIR": "/tmp",  # noqa: S108
        # Elastic kills its workers 30 s after SIGTERM unless this says that there is more time.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, placement.grace_seconds - 10)),
        "NCCL_DEBUG": "WARN",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        **_store_environment(placement),
        **_timeout_environment(placement),
        **placement.environment,
    }
    from_fields = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    from_secrets = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for secret, _, key in (each.partition("/") for each in placement.secrets)
    ]
    return from_fields + from_secrets + [{"name": name, "value": value} for name, value in values.items()]


def _timeout_environment(placement: Placement) -> dict[str, str]:
    seconds = placement.collective_timeout_seconds
    return {} if seconds is None else {"RGLCD_COLLECTIVE_TIMEOUT": str(seconds)}


def _store_environment(placement: Placement) -> dict[str, str]:
    """Where the object store is, and where its files and unfinished work lie meanwhile: on the claim they outlive the pod."""
    cache = SCRATCH["cache"] if placement.store is None else placement.store[0]
    store = {} if placement.object_store is None else {"RGLCD_STORE": placement.object_store}
    return {**store, "RGLCD_CACHE": f"{cache}/.cache"}


def _plain(resource: Any) -> dict[str, Any]:
    from kubernetes import client

    plain: dict[str, Any] = client.ApiClient(client.Configuration()).sanitize_for_serialization(resource)
    return plain
