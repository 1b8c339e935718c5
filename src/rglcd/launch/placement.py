"""Where in a cluster one job runs, as whom, and for how long: plain values (:mod:`rglcd.launch.settings` makes them)."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from rglcd.errors import InputError
from rglcd.launch.resources import Pool
from rglcd.stages.table import Stage

IDENTITY = {"azure.workload.identity/use": "true"}
"""Label that Azure Workload Identity requires on pods; the other clouds ignore it.
https://azure.github.io/azure-workload-identity/docs/topics/service-account-labels-and-annotations.html"""

STORE_KEYS = "rglcd-store"
"""Secret of the namespace, for an object store that knows no workload identity: its keys are variables of every pod. It may be absent."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LONGEST_RUN_IN_A_NAME = 20


@dataclass(frozen=True)
class Owner:
    """The pod that launches, as owner reference of the job: when Kubernetes removes the pod, the job goes with it."""

    name: str
    uid: str


class Accelerators(StrEnum):
    """``simulated``: the nodes only say that they have GPUs (a cluster for tests), so no pod looks for them."""

    REAL = "real"
    SIMULATED = "simulated"


class CpuStages(StrEnum):
    """Where pods without GPUs may run: ``apart`` from the nodes that have some, or ``anywhere``, as on a cluster of one node."""

    APART = "apart"
    ANYWHERE = "anywhere"


class EarlierAttempts(StrEnum):
    """Whether failures of earlier launchers of the same run count: ``forgotten`` for a retry by hand, which begins anew, ``counted``
    for an automatic one, as Kubeflow's, which has changed nothing."""

    FORGOTTEN = "forgotten"
    COUNTED = "counted"


@dataclass(frozen=True)
class Placement:
    """Everything a job needs to know of the cluster, beside its stage.

    ``run`` names the run on every object; ``image`` is what the pods run, by digest; ``store`` a mount path and the
    claim mounted there, for artifacts that lie in a volume, and for checkpoints. ``object_store`` is where the artifacts' bytes go
    instead. ``gpu_label`` is the label, as ``label=value`` or ``label``, of the nodes that training belongs on, ``any_gpu_label`` of
    those that have GPUs at all; ``pool`` says what one of them holds; ``node_selector`` and ``tolerations`` (``key=value:Effect``, as
    ``kubectl taint`` has it) narrow and widen the choice, ``cpu_...`` that of pods without GPUs. ``secrets`` are ``secret/KEY``, each a
    variable of the pods. Times are in seconds:
    ``queue_seconds`` a job may wait for its nodes, ``start_seconds`` a pod that has one may fail to get its volumes or its image,
    ``run_seconds`` all attempts together may take from when the first has its nodes, ``grace_seconds`` a job has to save its state when
    it is asked to stop, ``keep_seconds`` it stays visible when done,
    ``collective_timeout_seconds`` a rank waits for its peers in a collective operation (None: half an hour). ``num_failures``
    is how many times a failure may be tried again, as :mod:`rglcd.launch.failure_table` counts. ``devices`` is what each node of
    a ``gpu-gang`` asks for beside its GPUs, by Kubernetes' name of it (``vpc.amazonaws.com/efa``). ``environment`` is handed on to
    the pods.
    Raises :class:`InputError` for a run id that Kubernetes would not take in a name.
    """

    run: str
    image: str
    namespace: str = "rglcd"
    queue: str = "rglcd"
    service_account: str = "rglcd-stage"
    pool: Pool = field(default_factory=Pool)
    gpu_label: str = "nvidia.com/gpu.family=ampere"
    any_gpu_label: str = "nvidia.com/gpu.present"
    cpu_stages: CpuStages = CpuStages.APART
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[str, ...] = ()
    cpu_node_selector: Mapping[str, str] = field(default_factory=dict)
    cpu_tolerations: tuple[str, ...] = ()
    pull_secrets: tuple[str, ...] = ()
    priority: str | None = None
    secrets: tuple[str, ...] = ()
    num_nodes: int = 1
    processes_per_node: int = 1
    store: tuple[str, str] | None = None
    object_store: str | None = None
    queue_seconds: int = 6 * 3600
    start_seconds: int = 600
    run_seconds: int = 7 * 24 * 3600
    grace_seconds: int = 300
    keep_seconds: int = 24 * 3600
    collective_timeout_seconds: int | None = None
    num_failures: int = 2
    devices: Mapping[str, str] = field(default_factory=dict)
    rendezvous_port: int = 29500
    metrics_port: int = 9400
    accelerators: Accelerators = Accelerators.REAL
    earlier_attempts: EarlierAttempts = EarlierAttempts.FORGOTTEN
    owner: Owner | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.run) or len(self.run) > 63:
            raise InputError(f"run id {self.run!r}: use at most 63 lower case letters, digits and hyphens, no hyphen at either end")


def toleration(text: str) -> dict[str, str]:
    """``key=value:Effect``, ``key:Effect``, ``key=value`` or ``key``, as Kubernetes has it."""
    taint, _, effect = text.partition(":")
    key, _, value = taint.partition("=")
    match = {"key": key, "operator": "Equal", "value": value} if value else {"key": key, "operator": "Exists"}
    return {**match, **({"effect": effect} if effect else {})}


def node_with(label: str) -> dict[str, object]:
    """The match expression of nodes with ``label=value``, or with ``label`` whatever its value."""
    key, _, value = label.partition("=")
    return {"key": key, "operator": "In", "values": [value]} if value else {"key": key, "operator": "Exists"}


def job_name(stage: Stage, placement: Placement, *, attempt: int) -> str:
    """``rglcd-<stage>-<run>-<attempt>``: the same for the same run, so that submitting twice cannot make two jobs.

    With the longest suffix that Volcano adds it stays below a host name's 63 characters; a long run id is shortened to a digest.
    """
    run = placement.run
    if len(run) > _LONGEST_RUN_IN_A_NAME:
        run = hashlib.sha256(run.encode()).hexdigest()[:12]
    return f"rglcd-{stage.name}-{run}-{attempt}"
