"""Where in a cluster a job runs, as whom, and for how long: plain values."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rglcd.errors import InputError
from rglcd.launch.resources import RESOURCES
from rglcd.stages.table import Profile, Stage

NUM_PROCESSES = "RGLCD_NUM_PROCESSES"
PATIENCE = "RGLCD_PATIENCE"

IDENTITY = {"azure.workload.identity/use": "true"}
"""What pods must be labelled with for a cloud to tell them who they are: Azure's webhook looks for it, the others' agents for nothing.
https://azure.github.io/azure-workload-identity/docs/topics/service-account-labels-and-annotations.html"""

STORE_KEYS = "rglcd-store"
"""Secret of the namespace, for an object store that knows no workload identity: its keys are variables of every pod. It may be absent."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LONGEST_RUN_IN_A_NAME = 20


@dataclass(frozen=True)
class Owner:
    """The pod that launches: when Kubernetes removes it, the job goes with it."""

    name: str
    uid: str


class Accelerators(StrEnum):
    """``simulated``: the nodes only say that they have GPUs (a cluster for tests), so no pod looks for them."""

    REAL = "real"
    SIMULATED = "simulated"


class EarlierAttempts(StrEnum):
    """What a launcher makes of attempts of its run that have ended: ``forgotten``, as for a person who asks again having mended
    something, or ``counted``, as for Kubeflow, which starts a task again without having changed anything."""

    FORGOTTEN = "forgotten"
    COUNTED = "counted"


@dataclass(frozen=True)
class Placement:
    """Everything a job needs to know of the cluster, beside its stage.

    ``run`` names the run on every object; ``image`` is what the pods run, by digest; ``store`` a mount path and the
    claim mounted there, for artifacts that lie in a volume, and for checkpoints. ``object_store`` is where the artifacts' bytes go
    instead (``RGLCD_STORE``). Times are in seconds:
    ``queue_seconds`` a job may wait for its nodes, ``run_seconds`` it may work, ``grace_seconds`` it has to save its
    state when told to stop, ``keep_seconds`` it stays visible when done, ``patience_seconds`` a rank waits for
    its peers before it gives them up (None: torch's own time). ``num_failures`` is how many times a real
    failure may be tried again; evictions are not counted. ``devices`` is what each node of a gang asks for beside its GPUs, by Kubernetes'
    name of it (``vpc.amazonaws.com/efa``). ``environment`` is handed on to the pods.
    Raises :class:`InputError` for a run id that Kubernetes would not take in a name.
    """

    run: str
    image: str
    namespace: str = "rglcd"
    queue: str = "rglcd"
    service_account: str = "rglcd-stage"
    num_nodes: int = 1
    processes_per_node: int = 1
    store: tuple[str, str] | None = None
    object_store: str | None = None
    queue_seconds: int = 6 * 3600
    run_seconds: int = 7 * 24 * 3600
    grace_seconds: int = 300
    keep_seconds: int = 24 * 3600
    patience_seconds: int | None = None
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


def job_name(stage: Stage, placement: Placement, *, attempt: int) -> str:
    """``rglcd-<stage>-<run>-<attempt>``: the same for the same run, so that submitting twice cannot make two jobs.

    With the longest suffix that Volcano adds it stays below a host name's 63 characters; a long run id is shortened to a digest.
    """
    run = placement.run
    if len(run) > _LONGEST_RUN_IN_A_NAME:
        run = hashlib.sha256(run.encode()).hexdigest()[:12]
    return f"rglcd-{stage.name}-{run}-{attempt}"


_WORDS = {
    "run": "RGLCD_RUN",
    "image": "RGLCD_IMAGE",
    "namespace": "RGLCD_NAMESPACE",
    "queue": "RGLCD_QUEUE",
    "service_account": "RGLCD_SERVICE_ACCOUNT",
    "object_store": "RGLCD_STORE",
}
_NUMBERS = {
    "queue_seconds": "RGLCD_QUEUE_SECONDS",
    "run_seconds": "RGLCD_RUN_SECONDS",
    "grace_seconds": "RGLCD_GRACE_SECONDS",
    "num_failures": "RGLCD_FAILURES",
    "patience_seconds": PATIENCE,
    "rendezvous_port": "RGLCD_RENDEZVOUS_PORT",
}
_PROVENANCE = {"git-commit": "RGLCD_GIT_COMMIT", "dvc-lock": "RGLCD_DVC_LOCK"}


def placement_from(environment: Mapping[str, str], *, stage: Stage, request: Any) -> Placement:
    """Where ``environment`` wants ``stage`` to run; what it does not say is :class:`Placement`'s default.

    ``RGLCD_RUN``            the run's id, on every object (default: a digest of ``request``, what the stage is asked)
    ``RGLCD_IMAGE``          the image of the pods, by digest; needed
    ``RGLCD_NAMESPACE``, ``RGLCD_QUEUE``, ``RGLCD_SERVICE_ACCOUNT``
    ``RGLCD_NUM_NODES``      nodes of a ``gpu-gang``
    ``RGLCD_NUM_PROCESSES``  processes on each node (default: one for each GPU)
    ``RGLCD_STORE_CLAIM``    ``claim=/path``: the volume claim that holds the artifacts, and where everybody mounts it
    ``RGLCD_STORE``          the object store that holds the artifacts' bytes (:mod:`rglcd.store.files`)
    ``RGLCD_QUEUE_SECONDS``, ``RGLCD_RUN_SECONDS``, ``RGLCD_GRACE_SECONDS``, ``RGLCD_FAILURES``, ``RGLCD_PATIENCE``,
    ``RGLCD_RENDEZVOUS_PORT``
    ``RGLCD_DEVICES``        ``name=amount`` of what a gang's pods ask for beside GPUs, separated by commas (``vpc.amazonaws.com/efa=4``)
    ``RGLCD_ACCELERATORS``   ``real`` (default) or ``simulated``
    ``RGLCD_EARLIER_ATTEMPTS``  ``forgotten`` (default) or ``counted``
    ``RGLCD_LAUNCHER_NAME``, ``RGLCD_LAUNCHER_UID``  the pod that launches, for the job to go when it goes
    ``RGLCD_GIT_COMMIT``, ``RGLCD_DVC_LOCK``         provenance, as labels
    ``RGLCD_HAND_ON``        names of variables that the pods get too, separated by commas

    Raises :class:`InputError` for a number that is none, a missing image, or a claim without its path.
    """
    image = environment.get("RGLCD_IMAGE")
    if not image:
        raise InputError("the image of the pods is not known: name it in RGLCD_IMAGE, by digest")
    _, _, digest = image.partition("@")
    known = {"image": digest} | {name: environment.get(variable, "") for name, variable in _PROVENANCE.items()}
    handed_on = [name for name in environment.get("RGLCD_HAND_ON", "").split(",") if name in environment]
    said: dict[str, Any] = {"run": hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]}
    said |= {name: environment[variable] for name, variable in _WORDS.items() if environment.get(variable)}
    said |= {name: whole_number(environment, variable) for name, variable in _NUMBERS.items() if environment.get(variable)}
    return Placement(
        num_nodes=whole_number(environment, "RGLCD_NUM_NODES", default=1) if stage.profile is Profile.GPU_GANG else 1,
        processes_per_node=whole_number(environment, NUM_PROCESSES, default=max(1, RESOURCES[stage.profile].gpus)),
        store=_store(environment.get("RGLCD_STORE_CLAIM")),
        devices=_devices(environment.get("RGLCD_DEVICES", "")) if stage.profile is Profile.GPU_GANG else {},
        accelerators=Accelerators(_choice(environment, "RGLCD_ACCELERATORS", Accelerators)),
        earlier_attempts=EarlierAttempts(_choice(environment, "RGLCD_EARLIER_ATTEMPTS", EarlierAttempts)),
        owner=_owner(environment),
        provenance={name: value for name, value in known.items() if value},
        environment={name: environment[name] for name in handed_on},
        **said,
    )


def whole_number(environment: Mapping[str, str], variable: str, *, default: int = 0) -> int:
    """The number that ``variable`` holds, or ``default``; :class:`InputError` when it is none from 1 on."""
    word = environment.get(variable, str(default))
    if not word.isdecimal() or int(word) < 1:
        raise InputError(f"{variable} is {word!r}; it is a whole number from 1 on")
    return int(word)


def _store(word: str | None) -> tuple[str, str] | None:
    if word is None:
        return None
    claim, _, path = word.partition("=")
    if not claim or not path.startswith("/"):
        raise InputError(f"RGLCD_STORE_CLAIM is {word!r}; it takes the form claim=/path")
    return path, claim


def _devices(word: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in word.split(",") if entry]
    if not all(name and amount for name, _, amount in pairs):
        raise InputError(f"RGLCD_DEVICES is {word!r}; it takes the form name=amount, separated by commas")
    return {name: amount for name, _, amount in pairs}


def _choice(environment: Mapping[str, str], variable: str, choices: type[StrEnum]) -> str:
    """One of the words of ``choices``, whose first is the default."""
    word = environment.get(variable, next(iter(choices)))
    if word not in list(choices):
        raise InputError(f"{variable} is {word!r}; it is one of: {', '.join(choices)}")
    return word


def _owner(environment: Mapping[str, str]) -> Owner | None:
    name, uid = environment.get("RGLCD_LAUNCHER_NAME"), environment.get("RGLCD_LAUNCHER_UID")
    return Owner(name, uid) if name and uid else None
