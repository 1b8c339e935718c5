"""A pod that has its node and not its volume holds GPUs: that is said at once, and given up after a while; a slow image is waited for."""

from collections.abc import Callable

import pytest

from tests.launch.conftest import Ended, completes
from tests.launch.scripted_api import Scene, ScriptedApi, ScriptedClock, event, pod

Launch = Callable[..., Ended]

CREATING = ("ContainerCreating", "")
ELSEWHERE = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) q'
MISSING = 'MountVolume.SetUp failed for volume "ca" : configmap "ca" not found'


def seen_at(seconds: int) -> str:
    return f"2026-01-01T{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}Z"


def test_a_volume_that_a_pod_with_nodes_does_not_get_is_said_at_once_and_given_up(
    api: ScriptedApi, clock: ScriptedClock, launch: Launch, monkeypatch
) -> None:
    """It was taken for a place in the queue, and held its GPUs for six hours."""
    monkeypatch.setenv("RGLCD_START_SECONDS", "300")
    clock.step = 5
    said = event("FailedAttachVolume", ELSEWHERE, of="p")
    api.script = lambda _age, _: Scene("Pending", [pod("Pending", waiting=CREATING)], [said])
    ended = launch()
    assert ended.code == 75
    assert ended.lines[1] == f"rglcd-distill-r-1 does not start: p: FailedAttachVolume: {ELSEWHERE}"
    assert f"rglcd-distill-r-1 cannot start for 5 min: p: FailedAttachVolume: {ELSEWHERE}; end what holds the claim" in ended.last
    assert 300 <= clock.seconds <= 330
    assert api.jobs == {}


def test_a_volume_that_comes_late_does_not_end_the_job_nor_does_the_slow_image_after_it(
    api: ScriptedApi, clock: ScriptedClock, launch: Launch
) -> None:
    clock.step = 5
    waits = [event("FailedMount", MISSING, of="p", at=seen_at(5))]
    pulls = [*waits, event("Pulling", 'Pulling image "i"', of="p", at=seen_at(300))]

    def script(age: float, _attempt: int) -> Scene:
        if age > 4000:
            return completes(after=4100)(age, 1)
        return Scene("Pending", [pod("Pending", waiting=CREATING)], pulls if age > 300 else waits)

    api.script = script
    ended = launch()
    assert (ended.code, len(api.submitted), api.deleted) == (0, 1, [])
    assert 4 <= sum(MISSING in line for line in ended.lines) <= 7, "said at once and once a minute"
    assert sum('waits: p: Pulling image "i"' in line for line in ended.lines) >= 50


def test_what_is_said_once_of_a_volume_and_forgotten_by_the_cluster_is_kept(
    api: ScriptedApi, clock: ScriptedClock, launch: Launch, monkeypatch
) -> None:
    monkeypatch.setenv("RGLCD_START_SECONDS", "7200")
    clock.step = 10
    said = [event("FailedAttachVolume", ELSEWHERE, of="p")]
    api.script = lambda age, _: Scene("Pending", [pod("Pending", waiting=CREATING)], said if age < 3600 else [])
    ended = launch()
    assert ended.code == 75
    assert ELSEWHERE in ended.last
    assert 7200 <= clock.seconds <= 7230


def test_why_a_volume_does_not_come_is_not_hidden_by_later_words_without_a_reason(
    api: ScriptedApi, clock: ScriptedClock, launch: Launch
) -> None:
    clock.step = 10
    late = "Unable to attach or mount volumes: unmounted volumes=[ca], unattached volumes=[ca tmp]: timed out waiting for the condition"
    said = [event("FailedMount", MISSING, of="p", at=seen_at(100)), event("FailedMount", late, of="p", at=seen_at(130))]
    api.script = lambda _age, _: Scene("Pending", [pod("Pending", waiting=CREATING)], said)
    ended = launch()
    assert ended.code == 2
    assert MISSING in ended.last


@pytest.mark.parametrize(
    "held",
    [pod("Pending", waiting=CREATING, uid="new"), {**pod("Pending"), "spec": {"containers": []}}],
    ids=["made anew", "without a node"],
)
def test_an_event_of_the_pod_of_that_name_before_holds_up_none(held: dict, api: ScriptedApi, clock: ScriptedClock, launch: Launch) -> None:
    clock.step = 20
    said = event("FailedMount", MISSING, of="p", uid="uid-p" if held["metadata"]["uid"] == "uid-p" else "old")
    api.script = lambda age, _: completes(after=3000)(age, 1) if age > 2000 else Scene("Pending", [held], [said])
    ended = launch()
    assert (ended.code, api.deleted) == (0, [])
    assert not ended.has("does not start")


def test_an_image_that_does_not_come_after_a_volume_that_did_is_not_taken_for_the_volume(
    api: ScriptedApi, clock: ScriptedClock, launch: Launch
) -> None:
    clock.step = 5
    said = event("FailedMount", MISSING, of="p", at=seen_at(5))
    waits = ("ImagePullBackOff", 'Back-off pulling image "i"')
    api.script = lambda age, _: Scene("Pending", [pod("Pending", waiting=CREATING if age < 60 else waits)], [said])
    ended = launch()
    assert ended.code == 75
    assert "the registry did not deliver" in ended.last
