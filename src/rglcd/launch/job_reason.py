"""Why a job ended or does not start, from what Kubernetes says of its pods. Pure: plain objects in, words out."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rglcd.errors import TryAgain
from rglcd.launch.failure import Failure, read_failure
from rglcd.launch.failure_table import DELETED, Row, Then, Where, row_of

_LINES_KEPT = 20

_BACK_OFF, _SILENT = "ImagePullBackOff", re.compile(r'Back-off pulling image "[^"]*"')
_PULLS = ("ErrImagePull", _BACK_OFF, "RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed")

_WENT_ON = ("SuccessfulAttachVolume", "Pulling", "Pulled", "Created", "Started")
"""Events of a pod that came further: what held it up before is over. Of a volume that is mounted at last nothing is said."""

_NO_REASON = re.compile(r"Unable to attach or mount volumes: .*: (timed out waiting for the condition|context deadline exceeded)")
"""What the kubelet says every two minutes of volumes whose own events say why (kubernetes/kubernetes#93563, #120571)."""


@dataclass(frozen=True)
class Reason:
    """The first failing pod of a job, and what is known of it."""

    pod: str
    cause: str
    exit_code: int
    message: str
    rank: int | None
    last_lines: tuple[str, ...]
    row: Row | None = None

    @property
    def in_one_line(self) -> str:
        """For people: who, why, and what it said."""
        who = self.pod if self.rank is None else f"{self.pod} (rank {self.rank})"
        advice = f"; {self.row.advice}" if self.row is not None and self.row.advice else ""
        return f"{who}: {self.cause}: {self.message}{advice}"

    @property
    def then(self) -> Then:
        """Whether the job is tried again; what no row speaks of, as often as nothing is counted."""
        return Then.AGAIN if self.row is None else self.row.then

    @property
    def pause(self) -> float:
        """Seconds before the next attempt, if it is the first in a row."""
        return 10.0 if self.row is None else self.row.pause

    def as_json(self) -> dict[str, Any]:
        """For the artifact."""
        known = {name: value for name, value in asdict(self).items() if name != "row"}
        return known | ({} if self.row is None else {"kind": self.row.name, "fault": self.row.fault.value})


def ended_by_cluster(pod: Mapping[str, Any]) -> bool:
    """Whether the cluster took the pod away, or the pod saved its state: no failure of the program."""
    row = _row_of(pod)
    return row is not None and row.then is Then.AGAIN


def failed_pods(pods: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The pods that failed, first failure first: when ranks of a group die, the others follow."""
    failed = [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed"]
    return sorted(failed, key=lambda pod: (ended_by_cluster(pod), (_terminated(pod) or {}).get("finishedAt") or "9"))


def reason_of(pod: Mapping[str, Any], *, log: Iterable[str] = ()) -> Reason:
    """Why ``pod`` failed: what its termination message says, or the end of its ``log``."""
    status, ended = pod.get("status", {}), _terminated(pod)
    row = _row_of(pod)
    exit_code = ended["exitCode"] if ended else 1
    if row is not None and row.ends_with is not None:
        exit_code = row.ends_with
    said = read_failure((ended or {}).get("message") or "")
    cause = _cause(status, ended)
    lines = tuple(log)[-_LINES_KEPT:] if said is None or not said.last_lines else said.last_lines
    message = said.message if said else status.get("message") or (lines[-1] if lines else "it left no message")
    return Reason(pod["metadata"]["name"], cause, exit_code, " ".join(message.split()), said.rank if said else None, lines, row)


def failure_of(reason: Reason) -> Failure:
    """As it crosses the process boundary: the message of an error of rglcd as it is, or else all that is known."""
    if reason.row is not None and reason.row.ends_with is not None:
        return Failure(reason.in_one_line, reason.exit_code, reason.rank, reason.last_lines)
    plain = reason.cause == f"exit code {reason.exit_code}" and reason.exit_code in (2, 3, TryAgain.exit_code)
    return Failure(reason.message if plain else reason.in_one_line, reason.exit_code, reason.rank, reason.last_lines)


def stuck(pods: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]] = ()) -> Reason | None:
    """A pod that has its node and does not start; its row says how long that may go on.

    While network and volumes are made a container's state is that it waits, and only the ``events`` of its pod say for what.
    """
    said = list(events)
    found = [reason for pod in pods for reason in (*_by_states(pod), *_by_events(pod, said))]
    return min(found, key=lambda reason: reason.row is not None and reason.row.may_wait) if found else None


def is_placed(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has its node and has not started there yet."""
    is_bound = "nodeName" in pod.get("spec", {}) and "deletionTimestamp" not in pod["metadata"]
    return is_bound and pod.get("status", {}).get("phase") == "Pending"


def _by_states(pod: Mapping[str, Any]) -> Iterator[Reason]:
    status = pod.get("status", {})
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = container.get("state", {}).get("waiting") or {}
        if reason := _of_row(pod, waiting.get("reason", ""), waiting.get("message") or container.get("image", "")):
            yield reason


def _by_events(pod: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> Iterator[Reason]:
    """The newest word on what holds the pod up since it last came further, one that gives a reason if there is one.

    Volcano gives a pod that it makes again the name of the one before, whose events are there still.
    """
    if not is_placed(pod):
        return
    name, uid = pod["metadata"]["name"], pod["metadata"].get("uid")
    own = [each for each in events if each["involvedObject"]["name"] == name and each["involvedObject"].get("uid") in (None, uid)]
    since = max((_time_of(each) for each in own if each.get("reason") in _WENT_ON), default="")
    later = sorted((each for each in own if _time_of(each) > since), key=lambda each: (_gives_reason(each), _time_of(each)), reverse=True)
    for each in later:
        if reason := _of_row(pod, each.get("reason", ""), each.get("message") or ""):
            yield reason
            return


def _gives_reason(event: Mapping[str, Any]) -> bool:
    return _NO_REASON.search(event.get("message") or "") is None


def _of_row(pod: Mapping[str, Any], cause: str, message: str) -> Reason | None:
    """The reason by the row that speaks of it, if one does."""
    said = " ".join(message.split())
    row = row_of(Where.CONTAINER, reasons=(cause,), message=said)
    if row is None:
        return None
    code = row.ends_with if row.ends_with is not None else TryAgain.exit_code
    return Reason(pod["metadata"]["name"], cause, code, said, None, (), row)


def last_word(earlier: Reason | None, now: Reason) -> Reason:
    """Why a pod does not start, where what is said ``now`` leaves out what was said ``earlier``.

    Between two tries to pull an image the kubelet says that it waits, and only since Kubernetes 1.32 also why
    (kubernetes/kubernetes#127918).
    """
    is_silent = now.cause == _BACK_OFF and _SILENT.fullmatch(now.message) is not None
    if earlier is None or earlier.pod != now.pod or earlier.cause not in _PULLS:
        return now
    return earlier if is_silent else now


def refusal_of(name: str, message: str) -> Reason:
    """Why the pods of job ``name``, or the job itself, are refused, by the API server's own words."""
    row = row_of(Where.REFUSAL, message=message)
    assert row is not None
    assert row.ends_with is not None
    return Reason(name, f"refused ({row.name})", row.ends_with, " ".join(message.split()), None, (), row)


def refused_pods(name: str, events: Iterable[Mapping[str, Any]]) -> Reason | None:
    """The newest word on why no pod of job ``name`` can be created, as Volcano passes it on (its event FailedCreate)."""
    newest = _newest(events, ("FailedCreate",))
    return None if newest is None else refusal_of(name, servers_words(str(newest.get("message", ""))))


_STATUS = re.compile(r'v1\.Status\{.*?\bMessage:"((?:[^"\\]|\\.)*)', re.DOTALL)


def servers_words(message: str) -> str:
    """What the API server said of the first pod, from an event of Volcano's, which passes its errors on as Go prints a structure.

    https://github.com/volcano-sh/volcano/blob/v1.10.0/pkg/controllers/job/job_controller_actions.go (syncJob: ``%#v`` of each pod's error)
    """
    said = [_unquoted(text) for text in _STATUS.findall(message)]
    if not said:
        return message
    return said[0] + (f" (and so for {len(said) - 1} more)" if len(said) > 1 else "")


def _unquoted(text: str) -> str:
    """The inside of a string of Go's, which is one of JSON's but for rare escapes."""
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text.replace('\\"', '"')


_WHY_WAITING = (
    *("FailedScheduling", "NotEnoughResources"),  # the scheduler, of a pod
    *("Unschedulable", "Uninqueueable", "PodGroupPending"),  # Volcano, of the PodGroup and of the Job
    *("FailedCreate", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "Pulling"),
)


def why_waiting(events: Iterable[Mapping[str, Any]]) -> str | None:
    """The newest word on why the pods have no node, do not exist or do not start."""
    newest = _newest(events, _WHY_WAITING)
    if newest is None:
        return None
    return " ".join(f"{newest['involvedObject']['name']}: {servers_words(str(newest.get('message', '')))}".split())


def _newest(events: Iterable[Mapping[str, Any]], reasons: tuple[str, ...]) -> Mapping[str, Any] | None:
    relevant = [event for event in events if event.get("reason") in reasons]
    return max(relevant, key=_time_of) if relevant else None


def _time_of(event: Mapping[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def has_started(pod: Mapping[str, Any]) -> bool:
    """Whether the pod's container runs or ran, so that it has a log."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return any(status.get("state", {}).get("running") or status.get("state", {}).get("terminated") for status in statuses)


def is_running(pod: Mapping[str, Any]) -> bool:
    """Whether the pod's container runs, so that its log is not whole yet."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return any(status.get("state", {}).get("running") for status in statuses)


def _terminated(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for status in pod.get("status", {}).get("containerStatuses") or []:
        ended: Mapping[str, Any] | None = status.get("state", {}).get("terminated")
        if ended:
            return ended
    return None


def _row_of(pod: Mapping[str, Any]) -> Row | None:
    status, ended = pod.get("status", {}), _terminated(pod) or {}
    conditions = [item for item in status.get("conditions") or [] if item["type"] == "DisruptionTarget" and item["status"] == "True"]
    reasons = {status.get("reason"), ended.get("reason"), *(item.get("reason") for item in conditions)} - {None}
    reasons |= {"DisruptionTarget"} if conditions else set()
    reasons |= {DELETED} if "deletionTimestamp" in pod["metadata"] else set()
    message = " ".join(filter(None, [status.get("message"), *(item.get("message") for item in conditions)]))
    return row_of(Where.POD, reasons=reasons, message=message, code=ended.get("exitCode"))


def _cause(status: Mapping[str, Any], ended: Mapping[str, Any] | None) -> str:
    if ended and ended.get("reason") == "OOMKilled":
        return f"OOMKilled (exit code {ended['exitCode']})"
    if status.get("reason"):
        return str(status["reason"])
    return f"exit code {ended['exitCode']}" if ended else "failed"
