"""What Kubernetes says of pods, in words; who failed first; what was nobody's fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from rglcd.errors import InputError, TrainingDiverged
from rglcd.launch.failure import Failure, JobError, exception_of, write_failure
from rglcd.launch.job_reason import ended_by_cluster, failed_pods, failure_of, reason_of, stuck, why_waiting


def pod(name: str, *, code: int, at: str = "2026-01-01T00:00:00Z", message: str = "", why: str = "Error", **status: Any) -> dict[str, Any]:
    ended = {"exitCode": code, "reason": why, "finishedAt": at, "message": message}
    state = {"containerStatuses": [{"state": {"terminated": ended}}]}
    return {"metadata": {"name": name, "uid": name}, "status": {"phase": "Failed", **state, **status}}


def said(tmp_path: Path, failure: Failure) -> str:
    write_failure(tmp_path / "termination-log", failure)
    return (tmp_path / "termination-log").read_text()


def test_failed_pods_are_sorted_by_time_with_evicted_ones_last() -> None:
    taken = pod("taken", code=137, at="2026-01-01T00:00:00Z", reason="Evicted")
    late, early = pod("late", code=1, at="2026-01-01T00:00:09Z"), pod("early", code=3, at="2026-01-01T00:00:04Z")
    assert [each["metadata"]["name"] for each in failed_pods([late, taken, early])] == ["early", "late", "taken"]


@pytest.mark.parametrize(
    ("given", "nobody_s"),
    [
        (pod("a", code=75), True),
        (pod("a", code=143, reason="Evicted"), True),
        (pod("a", code=137, conditions=[{"type": "DisruptionTarget", "status": "True"}]), True),
        (pod("a", code=1), False),
        (pod("a", code=137, why="OOMKilled"), False),
        (pod("a", code=143, reason="DeadlineExceeded"), False),
    ],
)
def test_pod_that_the_cluster_ended_is_no_failure(given: dict[str, Any], nobody_s: bool) -> None:
    assert ended_by_cluster(given) is nobody_s


def test_known_error_of_a_pod_keeps_its_message(tmp_path: Path) -> None:
    message = said(tmp_path, Failure("step 12: the loss is nan", 3, rank=5, last_lines=("one", "two")))
    reason = reason_of(pod("p-1", code=3, message=message))
    assert (reason.rank, reason.exit_code, reason.last_lines) == (5, 3, ("one", "two"))
    error = exception_of(failure_of(reason))
    assert isinstance(error, TrainingDiverged)
    assert str(error) == "step 12: the loss is nan"


def test_crash_of_a_pod_names_pod_rank_cause_and_last_line(tmp_path: Path) -> None:
    message = said(tmp_path, Failure("rank 3 ended with exit code 1", 1, rank=3, last_lines=("RuntimeError: no",)))
    reason = reason_of(pod("p-0", code=1, message=message))
    assert reason.in_one_line == "p-0 (rank 3): exit code 1: rank 3 ended with exit code 1"
    assert json.loads(json.dumps(reason.as_json()))["last_lines"] == ["RuntimeError: no"]
    assert isinstance(exception_of(failure_of(reason)), JobError)


def test_without_a_termination_message_the_log_gives_the_reason() -> None:
    reason = reason_of(pod("p-0", code=137, why="OOMKilled"), log=["a", "b"])
    assert reason.in_one_line.startswith("p-0: OOMKilled (exit code 137): b; smaller batches")


def test_killed_pod_with_exit_code_2_is_not_bad_input() -> None:
    assert not isinstance(exception_of(failure_of(reason_of(pod("p", code=2, reason="DeadlineExceeded")))), TrainingDiverged)
    assert isinstance(exception_of(failure_of(reason_of(pod("p", code=2)))), InputError)


def test_a_pod_whose_image_cannot_be_had_is_stuck() -> None:
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}}}
    found = stuck([{"metadata": {"name": "p"}, "status": {"phase": "Pending", "containerStatuses": [waiting]}}])
    assert found is not None
    assert found.in_one_line.startswith('p: ImagePullBackOff: Back-off pulling image "x"; ')
    creating = {"state": {"waiting": {"reason": "ContainerCreating"}}}
    assert stuck([{"metadata": {"name": "p"}, "status": {"phase": "Pending", "containerStatuses": [creating]}}]) is None


def test_newest_scheduling_event_is_shown() -> None:
    def event(reason: str, at: str, message: str) -> dict[str, Any]:
        return {"reason": reason, "lastTimestamp": at, "message": message, "involvedObject": {"name": "p"}}

    events = [
        event("FailedScheduling", "2026-01-01T00:00:01Z", "old"),
        event("FailedScheduling", "2026-01-01T00:00:09Z", "0/3 nodes\nare available"),
        event("Scheduled", "2026-01-01T00:00:10Z", "no"),
    ]
    assert why_waiting(events) == "p: 0/3 nodes are available"
    assert why_waiting([]) is None
