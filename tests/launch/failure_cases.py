"""How a cluster says each row of the table of failures, and how the launcher ends."""

import json
from dataclasses import dataclass
from typing import Any

from tests.launch.scripted_api import event, pod


@dataclass(frozen=True)
class Case:
    """How a cluster says it: a failed pod, a container or a pod that waits, a refusal's words. ``code``: the launcher ends with it."""

    row: str
    code: int
    words: str
    pod: dict[str, Any] | None = None
    refusal: str | None = None
    event: dict[str, Any] | None = None


def evicted(message: str, *, code: int = 137) -> dict[str, Any]:
    return pod("Failed", reason="Evicted", message=message, code=code)


def waiting(reason: str, message: str) -> dict[str, Any]:
    return pod("Pending", waiting=(reason, message))


def held_up(row: str, code: int, words: str, reason: str, message: str) -> Case:
    """A pod that has its node, where something is to be made before its container: the state says that it waits, an event for what."""
    creating = pod("Pending", waiting=("ContainerCreating", ""))
    return Case(row, code, words, creating, event=event(reason, message, of="p"))


def disrupted(reason: str) -> dict[str, Any]:
    return pod("Failed", code=137, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "taken"}])


def as_volcano_says(*words: str) -> str:
    """The API server's words on each pod in Volcano's event FailedCreate, as users see them (volcano-sh/volcano#3456)."""
    errors = [
        f'failed to create pod p-{number}, err: &errors.StatusError{{ErrStatus:v1.Status{{TypeMeta:v1.TypeMeta{{Kind:"", APIVersion:""}}, '
        'ListMeta:v1.ListMeta{SelfLink:"", ResourceVersion:"", Continue:"", RemainingItemCount:(*int64)(nil)}, Status:"Failure", '
        f'Message:{json.dumps(said)}, Reason:"Forbidden", Details:(*v1.StatusDetails)(0x400057cde0), Code:403}}}}'
        for number, said in enumerate(words)
    ]
    return f"Error creating pods: [{' '.join(errors)}]"


CASES = [
    Case("its own disk use", 137, "raise disk_gib", evicted('Usage of EmptyDir volume "tmp" exceeds the limit "6Gi". ')),
    Case(
        "its own disk use",
        137,
        "raise disk_gib",
        evicted("Pod ephemeral local storage usage exceeds the total limit of containers 400Gi. "),
    ),
    Case("its own disk use", 137, "raise disk_gib", evicted('Container main exceeded its local ephemeral storage limit "9Gi". ')),
    Case(
        "its own disk use",
        137,
        "raise disk_gib",
        evicted(
            "The node was low on resource: ephemeral-storage. Container main was using 90Gi, request is 1Gi, "
            "has larger consumption of ephemeral-storage. "
        ),
    ),
    Case(
        "its own disk use",
        137,
        "raise disk_gib",
        evicted("The node was low on resource: ephemeral-storage. Container main was using 90Gi, which exceeds its request of 0."),
    ),
    Case(
        "its own memory use",
        137,
        "memory_gib",
        evicted("The node was low on resource: memory. Container main was using 9Gi, request is 1Gi, has larger consumption of memory. "),
    ),
    Case(
        "its own memory use",
        137,
        "memory_gib",
        evicted("The node was low on resource: memory. Container main was using 9Gi, which exceeds its request of 1Gi. "),
    ),
    Case("out of memory", 137, "OOMKilled (exit code 137)", pod("Failed", code=137, why="OOMKilled")),
    Case("deadline of the run", 75, "run_seconds", pod("Failed", code=143, reason="DeadlineExceeded", message="Pod was active too long")),
    Case("disrupted", 0, "going on", disrupted("PreemptionByScheduler")),
    Case("disrupted", 0, "going on", disrupted("DeletionByTaintManager")),
    Case("evicted", 0, "going on", evicted("The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. ")),
    Case("evicted", 0, "going on", evicted("The node had condition: [DiskPressure]. ")),
    Case("preempted", 0, "going on", pod("Failed", code=137, reason="Preempting", message="Preempted in order to admit critical pod")),
    Case("node lost", 0, "going on", pod("Failed", reason="NodeLost", message="Node node-1 which was running pod p is unresponsive")),
    Case(
        "node lost", 0, "going on", pod("Failed", code=143, reason="Terminated", message="Pod was terminated in response to node shutdown.")
    ),
    Case(
        "devices not ready",
        0,
        "before its devices were ready",
        pod("Failed", reason="UnexpectedAdmissionError", message="no healthy devices"),
    ),
    Case(
        "devices not ready",
        0,
        "before its devices were ready",
        pod(
            "Failed", reason="TaintToleration", message="Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
        ),
    ),
    Case(
        "devices not ready",
        0,
        "before its devices were ready",
        pod("Failed", reason="OutOfnvidia.com/gpu", message="Node didn't have enough"),
    ),
    Case(
        "devices not ready",
        0,
        "before its devices were ready",
        pod("Failed", reason="OutOfcpu", message="Node didn't have enough resource"),
    ),
    Case(
        "devices not ready",
        0,
        "before its devices were ready",
        pod("Failed", reason="SMTAlignmentError", message="SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2"),
    ),
    Case("the node forgot it", 0, "going on", pod("Failed", code=137, why="ContainerStatusUnknown")),
    Case("deleted", 0, "going on", pod("Failed", code=143, deleted="2026-01-01T00:00:00Z")),
    Case("saved its state", 0, "going on", pod("Failed", code=75)),
    Case("bad input", 2, "rglcd: it left no message", pod("Failed", code=2)),
    Case("diverged", 3, "rglcd: it left no message", pod("Failed", code=3)),
    Case("cannot be started", 128, "container runtime", pod("Failed", code=128, why="StartError")),
    Case("unexpected error", 70, "exit code 70", pod("Failed", code=70)),
    Case("crash", 139, "exit code 139", pod("Failed", code=139)),
    Case("crash", 1, "exit code 1", pod("Failed", code=1)),
    Case("no name of an image", 2, "by digest", waiting("InvalidImageName", "couldn't parse image")),
    Case("no name of an image", 2, "by digest", waiting("ErrImageNeverPull", "Container image is not present with pull policy of Never")),
    Case("no such image, or no right to it", 2, "pull_secrets", waiting("ErrImagePull", "manifest unknown")),
    Case("no such image, or no right to it", 2, "pull_secrets", waiting("ImagePullBackOff", "pull access denied")),
    Case("image cannot be pulled", 75, "the registry did not deliver", waiting("ImagePullBackOff", 'Back-off pulling image "x"')),
    Case("image cannot be pulled", 75, "the registry did not deliver", waiting("ErrImagePull", "429 Too Many Requests")),
    Case("a Secret or ConfigMap is missing", 2, 'secret "hub" not found', waiting("CreateContainerConfigError", 'secret "hub" not found')),
    Case(
        "a Secret or ConfigMap is missing",
        2,
        "couldn't find key",
        waiting("CreateContainerConfigError", "couldn't find key A in Secret n/s"),
    ),
    Case(
        "image would run as root",
        2,
        "user other than root",
        waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
    ),
    Case(
        "container cannot be made",
        75,
        "could not make the container",
        waiting("CreateContainerConfigError", "failed to sync configmap cache: timed out waiting for the condition"),
    ),
    Case("container cannot be made", 75, "could not make the container", waiting("CreateContainerError", "context deadline exceeded")),
    held_up(
        "container cannot be made",
        75,
        "could not make the container",
        "FailedCreatePodSandBox",
        'Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "1": no addresses available',
    ),
    held_up(
        "container cannot be made",
        75,
        "could not make the container",
        "NetworkNotReady",
        "network is not ready: cni plugin not initialized",
    ),
    held_up(
        "a volume needs what is missing",
        2,
        'configmap "istio-ca-root-cert" not found; create it',
        "FailedMount",
        'MountVolume.SetUp failed for volume "istiod-ca-cert" : configmap "istio-ca-root-cert" not found',
    ),
    held_up(
        "a volume needs what is missing",
        2,
        "non-existent secret key: ca.crt; create it",
        "FailedMount",
        'MountVolume.SetUp failed for volume "keys" : references non-existent secret key: ca.crt',
    ),
    held_up(
        "a volume needs what is missing",
        2,
        "store_claim in cluster.yaml",
        "FailedMount",
        "Unable to attach or mount volumes: unmounted volumes=[store], unattached volumes=[], failed to process volumes=[store]: error "
        'processing PVC rglcd/rglcd-store: failed to fetch PVC from API server: persistentvolumeclaims "rglcd-store" not found',
    ),
    held_up(
        "a volume is in use elsewhere",
        75,
        "ReadWriteMany",
        "FailedAttachVolume",
        'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) rglcd-distill-q-1-distill-0-0',
    ),
    held_up(
        "a volume is in use elsewhere",
        75,
        "end what holds the claim",
        "FailedAttachVolume",
        'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node and can\'t be attached to another',
    ),
    held_up(
        "a volume cannot be mounted",
        75,
        "kubectl describe pvc",
        "FailedMount",
        'MountVolume.SetUp failed for volume "pv-1" : mount failed: exit status 32\nOutput: mount.nfs: Connection timed out',
    ),
    held_up(
        "a volume cannot be mounted",
        75,
        "kubectl describe pvc",
        "FailedMount",
        'MountVolume.SetUp failed for volume "keys" : object "rglcd"/"keys" not registered',
    ),
    held_up(
        "a volume cannot be mounted",
        75,
        "kubectl describe pvc",
        "FailedAttachVolume",
        'AttachVolume.Attach failed for volume "pvc-1" : CSINode node-1 does not contain driver ebs.csi.aws.com',
    ),
    Case(
        "an admission webhook is away",
        0,
        "going on",
        refusal='Internal error occurred: failed calling webhook "mutate.example.org": dial tcp 10.0.0.9:443: connect: connection refused',
    ),
    Case("an admission webhook is away", 0, "going on", refusal='pods "p" is forbidden: status unknown for quota: rglcd, resources: pods'),
    Case(
        "an admission webhook is away",
        0,
        "going on",
        refusal='Operation cannot be fulfilled on resourcequotas "rglcd": the object has been modified; please apply your changes to the '
        "latest version and try again",
    ),
    Case("quota", 2, "raise the ResourceQuota", refusal='pods "p" is forbidden: failed quota: rglcd: must specify limits.cpu for: main'),
    Case(
        "quota",
        2,
        "raise the ResourceQuota",
        refusal='pods "p" is forbidden: exceeded quota: rglcd, requested: requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=16, '
        "limited: requests.nvidia.com/gpu=20",
    ),
    Case("limit range", 2, "raise the LimitRange", refusal='pods "p" is forbidden: maximum cpu usage per Container is 16, but limit is 64'),
    Case(
        "pod security",
        2,
        "admits no such pods",
        refusal='pods "p" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false',
    ),
    Case(
        "service account",
        2,
        "service_account in cluster.yaml",
        refusal='pods "p" is forbidden: error looking up service account rglcd/rglcd-stage: serviceaccount "rglcd-stage" not found',
    ),
    Case(
        "priority class",
        2,
        "priority in cluster.yaml",
        refusal='pods "p" is forbidden: no PriorityClass with name rglcd-training was found',
    ),
    Case("queue", 2, "queue in cluster.yaml", refusal="unable to find job queue: queues.scheduling.volcano.sh rglcd not found"),
    Case("namespace", 2, "namespace in cluster.yaml", refusal='namespaces "rglcd" not found'),
    Case("refused", 2, "only images of registry.example.org", refusal="only images of registry.example.org are admitted"),
]
