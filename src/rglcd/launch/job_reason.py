"""Why a job ended or does not start, from what Kubernetes says of its pods. Pure: plain objects in, words out."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rglcd.errors import TryAgain
from rglcd.launch.failure import Failure, read_failure

_TAKEN_AWAY = frozenset({"Evicted", "Preempting", "Preempted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated"})
"""What ``status.reason`` of a pod says when the cluster, and not the program, ended it."""

_CANNOT_START = frozenset(
    {"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError"}
)

_LINES_KEPT = 20


@dataclass(frozen=True)
class Reason:
    """The first failing pod of a job, and what is known of it."""

    pod: str
    cause: str
    exit_code: int
    message: str
    rank: int | None
    last_lines: tuple[str, ...]

    @property
    def in_one_line(self) -> str:
        """For people: who, why, and what it said."""
        who = self.pod if self.rank is None else f"{self.pod} (rank {self.rank})"
        return f"{who}: {self.cause}: {self.message}"

    def as_json(self) -> dict[str, Any]:
        """For the artifact."""
        return asdict(self)


def ended_by_cluster(pod: Mapping[str, Any]) -> bool:
    """Whether the cluster took the pod away, or the pod saved its state: no failure of the program."""
    status = pod.get("status", {})
    disrupted = any(item["type"] == "DisruptionTarget" and item["status"] == "True" for item in status.get("conditions") or [])
    ended = _terminated(pod)
    saved = ended is not None and ended["exitCode"] == TryAgain.exit_code
    return saved or disrupted or status.get("reason") in _TAKEN_AWAY or "deletionTimestamp" in pod["metadata"]


def failed_pods(pods: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The pods that failed, first failure first: when ranks of a group die, the others follow."""
    failed = [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed"]
    return sorted(failed, key=lambda pod: (ended_by_cluster(pod), (_terminated(pod) or {}).get("finishedAt") or "9"))


def reason_of(pod: Mapping[str, Any], *, log: Iterable[str] = ()) -> Reason:
    """Why ``pod`` failed: what its termination message says, or the end of its ``log``."""
    status, ended = pod.get("status", {}), _terminated(pod)
    exit_code = ended["exitCode"] if ended else 1
    said = read_failure((ended or {}).get("message") or "")
    cause = _cause(status, ended)
    lines = tuple(log)[-_LINES_KEPT:] if said is None or not said.last_lines else said.last_lines
    message = said.message if said else status.get("message") or (lines[-1] if lines else "it left no message")
    return Reason(pod["metadata"]["name"], cause, exit_code, " ".join(message.split()), said.rank if said else None, lines)


def failure_of(reason: Reason) -> Failure:
    """As it crosses the process boundary: the message of an error of rglcd as it is, or else all that is known."""
    plain = reason.cause == f"exit code {reason.exit_code}" and reason.exit_code in (2, 3, TryAgain.exit_code)
    return Failure(reason.message if plain else reason.in_one_line, reason.exit_code, reason.rank, reason.last_lines)


def stuck(pods: Iterable[Mapping[str, Any]]) -> Reason | None:
    """A pod that has its node and still cannot start: its image cannot be had, or it refers to what does not exist."""
    for pod in pods:
        for status in (
            *(pod.get("status", {}).get("initContainerStatuses") or ()),
            *(pod.get("status", {}).get("containerStatuses") or ()),
        ):
            waiting = status.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in _CANNOT_START:
                message = waiting.get("message") or status.get("image", "")
                return Reason(pod["metadata"]["name"], waiting["reason"], 2, " ".join(message.split()), None, ())
    return None


def why_waiting(events: Iterable[Mapping[str, Any]]) -> str | None:
    """The scheduler's newest word on why the pods have no node."""
    relevant = [event for event in events if event.get("reason") in ("FailedScheduling", "Unschedulable", "NotEnoughResources")]
    if not relevant:
        return None
    newest = max(relevant, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    return " ".join(f"{newest['involvedObject']['name']}: {newest.get('message', '')}".split())


def has_started(pod: Mapping[str, Any]) -> bool:
    """Whether the pod's container runs or ran, so that it has a log."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return any(status.get("state", {}).get("running") or status.get("state", {}).get("terminated") for status in statuses)


def _terminated(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for status in pod.get("status", {}).get("containerStatuses") or []:
        ended: Mapping[str, Any] | None = status.get("state", {}).get("terminated")
        if ended:
            return ended
    return None


def _cause(status: Mapping[str, Any], ended: Mapping[str, Any] | None) -> str:
    if ended and ended.get("reason") == "OOMKilled":
        return f"OOMKilled (exit code {ended['exitCode']})"
    if status.get("reason"):
        return str(status["reason"])
    return f"exit code {ended['exitCode']}" if ended else "failed"
