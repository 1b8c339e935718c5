"""Each row of the table of failures, as a cluster says it and as the launcher ends: how many jobs, which exit code, which words."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from rglcd.launch.attempts import IN_A_ROW
from rglcd.launch.failure_table import TABLE, Then, Where, row_of
from tests.launch.conftest import Ended
from tests.launch.scripted_api import Scene, ScriptedApi, ScriptedClock, event, pod, refusal

Launch = Callable[..., Ended]
ROWS = {row.name: row for row in TABLE}


@dataclass(frozen=True)
class Case:
    """How a cluster says it: a failed pod, a container that waits, or the words of a refusal. ``code``: the launcher ends with it."""

    row: str
    code: int
    words: str
    pod: dict[str, Any] | None = None
    refusal: str | None = None


def evicted(message: str, *, code: int = 137) -> dict[str, Any]:
    return pod("Failed", reason="Evicted", message=message, code=code)


def waiting(reason: str, message: str) -> dict[str, Any]:
    return pod("Pending", waiting=(reason, message))


def disrupted(reason: str) -> dict[str, Any]:
    return pod("Failed", code=137, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "taken"}])


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
        pod("Failed", reason="OutOfnvidia.com/gpu", message="Node didn't have enough"),
    ),
    Case(
        "devices not ready",
        0,
        "before its devices were ready",
        pod("Failed", reason="OutOfcpu", message="Node didn't have enough resource"),
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
    Case(
        "an admission webhook is away",
        0,
        "going on",
        refusal='Internal error occurred: failed calling webhook "mutate.example.org": dial tcp 10.0.0.9:443: connect: connection refused',
    ),
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


def test_every_row_has_a_case_a_source_and_advice_where_the_run_ends() -> None:
    assert {case.row for case in CASES} == ROWS.keys()
    assert all(row.source for row in TABLE)
    ends = [row for row in TABLE if row.ends_with is not None and row.then is Then.NEVER and row.name != "refused"]
    assert all(row.advice for row in ends)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.row}-{case.words[:20]}")
def test_launcher_ends_as_the_table_says(case: Case, api: ScriptedApi, clock: ScriptedClock, launch: Launch) -> None:
    row, clock.step = ROWS[case.row], 10

    def script(age: float, attempt: int) -> Scene:
        if attempt > 1 and row.then is Then.AGAIN:
            return Scene("Completed") if age > 10 else Scene()
        if row.where is Where.CONTAINER:
            return Scene("Pending", [case.pod or {}])
        if row.where is Where.REFUSAL:
            return Scene("Terminated" if age > 30 else "Pending", [], [event("FailedCreate", case.refusal or "")])
        return Scene("Terminated", [case.pod or {}]) if age > 10 else Scene("Running", [pod()])

    api.script = script
    ended = launch()
    assert ended.code == case.code, ended.lines
    assert ended.has(case.words), ended.lines
    assert len(api.submitted) == {Then.AGAIN: 2, Then.COUNTED: 3, Then.NEVER: 1}[row.then]
    assert not ended.has("Traceback")
    if row.where is Where.CONTAINER:
        assert row.patience <= clock.seconds <= row.patience + 30
        assert api.jobs == {}, "what does not start is deleted"


@pytest.mark.parametrize("case", [case for case in CASES if case.refusal], ids=lambda case: case.row)
def test_submission_that_is_refused_ends_in_one_line_with_the_servers_words(case: Case, api: ScriptedApi, launch: Launch) -> None:
    row = ROWS[case.row]
    api.faults.append(lambda method, _path: refusal(403, case.refusal or "") if method == "POST" else None)
    ended = launch()
    assert ended.code == row.ends_with
    assert ended.lines == [ended.last]
    assert (case.refusal or "")[:60] in ended.last
    assert row.advice in ended.last


def test_a_webhook_that_is_away_when_the_job_is_submitted_is_waited_for(api: ScriptedApi, clock: ScriptedClock, launch: Launch) -> None:
    away = refusal(500, 'Internal error occurred: failed calling webhook "mutatejob.volcano.sh": dial tcp: connection refused')
    api.faults.append(lambda method, _path: away if method == "POST" and clock.seconds < 100 else None)
    ended = launch()
    assert (ended.code, len(api.submitted)) == (0, 1)
    assert ended.has("failed calling webhook")


# --- no loop without an end ----------------------------------------------------------------------

TAKEN_AWAY = [case for case in CASES if ROWS[case.row].then is Then.AGAIN]


@pytest.mark.parametrize("case", TAKEN_AWAY, ids=lambda case: f"{case.row}-{(case.refusal or '')[:10]}")
def test_what_the_cluster_ends_each_time_is_tried_ever_more_slowly_and_given_up(
    case: Case, api: ScriptedApi, clock: ScriptedClock, launch: Launch
) -> None:
    clock.step = 10

    def script(age: float, _attempt: int) -> Scene:
        if case.refusal:
            return Scene("Terminated" if age > 30 else "Pending", [], [event("FailedCreate", case.refusal)])
        return Scene("Terminated", [case.pod or {}]) if age > 10 else Scene("Running", [pod()])

    api.script = script
    ended = launch()
    assert ended.code == 75
    assert len(api.submitted) == IN_A_ROW
    assert f"{IN_A_ROW} attempts in a row ended before they got anywhere" in ended.last
    times = [at for method, _, at, _ in api.calls if method == "POST"]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[0] >= ROWS[case.row].pause
    assert clock.seconds > 3600


def test_pods_taken_away_without_a_word_are_given_up_too(api: ScriptedApi, launch: Launch) -> None:
    api.script = lambda age, _attempt: Scene("Terminated") if age > 10 else Scene("Running", [pod()])
    ended = launch()
    assert (ended.code, len(api.submitted)) == (75, IN_A_ROW)
    assert "taken away before they could say why" in ended.last


def test_spot_nodes_that_are_taken_away_every_hour_do_not_end_a_run(api: ScriptedApi, clock: ScriptedClock, launch: Launch) -> None:
    clock.step = 300
    gone = evicted("The node had condition: [MemoryPressure]. ")

    def script(age: float, attempt: int) -> Scene:
        if attempt == 30:
            return Scene("Completed")
        return Scene("Terminated", [gone]) if age > 3600 else Scene("Running", [pod()])

    api.script = script
    ended = launch()
    assert (ended.code, len(api.submitted)) == (0, 30)


def test_failures_may_be_none_and_then_nothing_is_tried_again(api: ScriptedApi, launch: Launch, monkeypatch) -> None:
    monkeypatch.setenv("RGLCD_FAILURES", "0")
    api.script = lambda age, _attempt: Scene("Terminated", [pod("Failed", code=1)]) if age > 10 else Scene("Running", [pod()])
    assert launch().code == 1
    assert len(api.submitted) == 1


def test_an_image_that_one_node_gets_late_does_not_end_the_job(api: ScriptedApi, clock: ScriptedClock, launch: Launch) -> None:
    clock.step = 5
    slow = waiting("ImagePullBackOff", "429 Too Many Requests")

    def script(age: float, _attempt: int) -> Scene:
        if age < 300:
            return Scene("Pending", [pod(), slow])
        return Scene("Completed") if age > 400 else Scene("Running", [pod(), pod(name="q")])

    api.script = script
    ended = launch()
    assert (ended.code, len(api.submitted), api.deleted) == (0, 1, [])
    assert 4 <= sum("does not start: p: ImagePullBackOff" in line for line in ended.lines) <= 7, "said at once and once a minute"


def test_what_is_no_special_case_falls_through_to_the_last_row_of_its_kind() -> None:
    assert row_of(Where.CONTAINER, reasons=("ContainerCreating",)) is None
    crash, refused = row_of(Where.POD, reasons=("Never heard of",), code=9), row_of(Where.REFUSAL, message="never heard of")
    assert crash is not None
    assert refused is not None
    assert (crash.name, refused.name) == ("crash", "refused")
