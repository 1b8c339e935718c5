"""What a job waits for is said while it waits, and nothing is waited for without an end."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rglcd.cli import main
from tests.launch.conftest import IMAGE, Ended, completes
from tests.launch.scripted_api import Scene, ScriptedApi, ScriptedClock, event, pod

Launch = Callable[..., Ended]


@pytest.mark.parametrize(
    "said",
    [
        event("Unschedulable", "queue resource quota insufficient: insufficient nvidia.com/gpu", of="{podgroup}"),
        event("PodGroupPending", "PodGroup rglcd/x unschedule, reason: 1/1 tasks in gang unschedulable"),
        event("FailedScheduling", "0/9 nodes are available: 9 Insufficient nvidia.com/gpu.", of="p"),
        event("FailedCreate", 'pods "p" is forbidden: exceeded quota: rglcd'),
        event("Uninqueueable", "queue resource quota insufficient: insufficient cpu", of="{podgroup}"),
        event("FailedMount", 'MountVolume.SetUp failed for volume "store"', of="p"),
    ],
    ids=lambda said: said["reason"],
)
def test_why_a_job_waits_is_said_in_the_clusters_words_once_a_minute(said: dict, api: ScriptedApi, launch: Launch) -> None:
    api.script = lambda age, _: Scene("Completed") if age > 310 else Scene("Pending", [pod("Pending")], [said])
    ended = launch()
    assert ended.code == 0
    assert 5 <= sum(said["message"] in line for line in ended.lines) <= 6


def test_a_job_without_nodes_is_given_up_at_its_deadline_with_the_queues_reason(
    api: ScriptedApi, clock: ScriptedClock, launch: Launch, monkeypatch
) -> None:
    monkeypatch.setenv("RGLCD_QUEUE_SECONDS", "600")
    clock.step = 10
    said = event("Unschedulable", "queue resource quota insufficient: insufficient nvidia.com/gpu", of="{podgroup}")
    api.script = lambda _age, _attempt: Scene("Inqueue", [], [said])
    ended = launch()
    assert ended.code == 75
    assert "did not start within 600 s: rglcd-distill-r-1-uid-rglcd-distill-r-1: queue resource quota insufficient" in ended.last
    assert api.jobs == {}
    assert clock.seconds < 700


@pytest.mark.parametrize(("needs", "code"), [(300, 0), (3000, 75)])
def test_a_job_that_gets_its_nodes_late_has_time_to_start_there(
    needs: int, code: int, api: ScriptedApi, clock: ScriptedClock, launch: Launch, monkeypatch
) -> None:
    """It was deleted while its image came, after hours in the queue."""
    monkeypatch.setenv("RGLCD_QUEUE_SECONDS", "2000")
    clock.step = 10
    queued, placed = {**pod("Pending"), "spec": {"containers": []}}, pod("Pending", waiting=("ContainerCreating", ""))
    pulls = event("Pulling", 'Pulling image "i"', of="p")

    def script(age: float, _attempt: int) -> Scene:
        if age > 1900 + needs:
            return completes(after=0)(age, 1)
        return Scene("Pending", [placed], [pulls]) if age > 1900 else Scene("Pending", [queued])

    api.script = script
    ended = launch()
    assert ended.code == code
    assert code == 0 or 'did not start within 2000 s: p: Pulling image "i"' in ended.last
    assert clock.seconds <= 2600


@pytest.mark.parametrize("seconds", [100, 3000])
def test_a_pod_may_wait_for_its_image_as_long_as_the_settings_say(
    seconds: int, api: ScriptedApi, clock: ScriptedClock, launch: Launch, monkeypatch
) -> None:
    monkeypatch.setenv("RGLCD_START_SECONDS", str(seconds))
    clock.step = 10
    api.script = lambda _age, _: Scene("Pending", [pod("Pending", waiting=("ErrImagePull", "429 Too Many Requests"))])
    ended = launch()
    assert ended.code == 75
    assert "the registry did not deliver" in ended.last
    assert seconds <= clock.seconds <= seconds + 30
    assert api.jobs == {}


@pytest.mark.parametrize("phase", ["Restarting", "Terminating", "Aborting", "Completing"])
def test_a_job_that_hangs_while_it_ends_is_said_and_given_up(phase: str, api: ScriptedApi, clock: ScriptedClock, launch: Launch) -> None:
    clock.step = 10
    held = pod("Running", name="p-0", deleted="2026-01-01T00:01:00Z")
    api.script = lambda age, _: Scene(phase, [held]) if age > 60 else Scene("Running", [pod()])
    ended = launch()
    assert ended.code == 75
    assert f"has been {phase} for 20 min (pod p-0 on node-1 is being deleted since 2026-01-01T00:01:00Z)" in ended.last
    assert "kubectl delete pod --force" in ended.last
    assert api.jobs == {}
    assert sum(f"is {phase} (pod p-0" in line for line in ended.lines) >= 10


# --- the deadline of a run -----------------------------------------------------------------------


def test_all_attempts_of_a_run_have_one_deadline(api: ScriptedApi, clock: ScriptedClock, launch: Launch, monkeypatch) -> None:
    monkeypatch.setenv("RGLCD_RUN_SECONDS", "10000")
    clock.step = 50
    api.script = lambda age, _: Scene("Terminated", [pod("Failed", code=75)]) if age > 4000 else Scene("Running", [pod()])
    ended = launch()
    assert ended.code == 75
    assert "the run has had its 2.8 h (run_seconds)" in ended.last
    assert 10000 <= clock.seconds < 10100
    assert [job["metadata"]["labels"]["rg-lcd/attempt"] for job in api.submitted] == ["1", "2", "3"]
    limits = [job["spec"]["tasks"][0]["template"]["spec"]["activeDeadlineSeconds"] for job in api.submitted]
    assert limits[0] == 10000
    assert 5900 <= limits[1] <= 6000
    assert 1700 <= limits[2] <= 2000
    assert api.deleted == ["rglcd-distill-r-3"], "its pods save their state"


def test_the_deadline_holds_for_the_next_launcher_of_the_run_too(
    api: ScriptedApi, clock: ScriptedClock, launch: Launch, monkeypatch
) -> None:
    for name, value in {"RGLCD_RUN_SECONDS": "10000", "RGLCD_EARLIER_ATTEMPTS": "counted"}.items():
        monkeypatch.setenv(name, value)
    clock.step = 50
    api.script = lambda age, _: Scene("Terminated", [pod("Failed", code=75)]) if age > 4000 else Scene("Running", [pod()])

    def stop() -> None:
        clock.step = 2
        clock.stop.set()

    clock.at(5000, stop)
    api.faults.append(lambda method, _: (200, {"kind": "Status"}, {}) if method == "DELETE" and clock.seconds < 6000 else None)
    launch()
    assert list(api.jobs) == ["rglcd-distill-r-1", "rglcd-distill-r-2"], "as if that launcher had been killed"
    clock.stop.clear()
    clock.step = 50
    ended = launch()
    assert ended.code == 75
    assert clock.seconds < 10100
    assert len(api.submitted) == 3


def test_time_in_the_queue_is_not_time_of_the_run(api: ScriptedApi, clock: ScriptedClock, launch: Launch, monkeypatch) -> None:
    clock.step = 50
    monkeypatch.setenv("RGLCD_RUN_SECONDS", "1000")
    api.script = lambda age, _: Scene("Pending", [pod("Pending")]) if age < 3000 else completes(after=3500)(age, 1)
    api.shown = lambda job: {  # type: ignore[method-assign]
        **job,
        "status": {"state": {"phase": api.scene(job).phase, "lastTransitionTime": api.clock.now().isoformat()}},
    }
    assert launch().code == 0


# --- one object ----------------------------------------------------------------------------------


def test_job_applied_from_a_dry_run_is_followed_and_not_refused(api: ScriptedApi, launch: Launch, capsys) -> None:
    assert main(["launch", "distill", "--no-plan", "--run", "r", "--image", IMAGE, "--dry-run"]) == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    api.act("POST", "/apis/batch.volcano.sh/v1alpha1/namespaces/rglcd/jobs", {}, manifest)
    ended = launch()
    assert ended.code == 0
    assert ended.has("rglcd-distill-r-1 is there already; following it")
    assert len(api.submitted) == 1


def test_dry_run_shows_the_very_object_that_is_submitted(api: ScriptedApi, launch: Launch, capsys) -> None:
    assert main(["launch", "distill", "--no-plan", "--run", "r", "--image", IMAGE, "--dry-run"]) == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    launch()
    (job,) = api.submitted
    for given in ("uid", "creationTimestamp"):
        del job["metadata"][given]
    assert job == manifest


# --- logs ----------------------------------------------------------------------------------------


def stamped(*lines: str, start: int = 0) -> list[str]:
    return [f"2026-01-01T00:00:{start + n:02d}.5Z {line}" for n, line in enumerate(lines)]


def test_a_log_whose_stream_ends_is_taken_up_again_without_a_line_lost_or_said_twice(api: ScriptedApi, launch: Launch) -> None:
    whole = stamped("one", "two", "three", "four", "five")
    same = "2026-01-01T00:00:04.5Z "
    whole[3:5] = [f"{same}four", f"{same}five"]
    api.script = completes(after=200)
    api.log_streams = [whole[:2], whole[:4], [], whole[1:], whole]
    ended = launch()
    said = [line for line in ended.lines if line in ("one", "two", "three", "four", "five")]
    assert said == ["one", "two", "three", "four", "five"]
    asked = [path for _, path, _, _ in api.calls if path.split("?")[0].endswith("/log")]
    assert "sinceSeconds" not in asked[0]
    assert all("sinceSeconds" in path and "timestamps=True" in path for path in asked[1:5])


def test_a_stream_that_breaks_each_time_is_asked_for_ever_more_slowly(api: ScriptedApi, launch: Launch) -> None:
    api.script = completes(after=900)
    api.faults.append(lambda _method, path: (500, "no node", {}) if "/log" in path else None)
    assert launch().code == 0
    assert sum("/log" in path for _, path, _, _ in api.calls) <= 25


@pytest.mark.parametrize(
    "line",
    [
        '{"progress": 3}',
        '{"progress": {"task": "x"}}',
        '{"progress": {"task": 1, "done": "a", "total": [], "unit": {}}}',
        "{",
        "[" * 100_000,
    ],
    ids=lambda line: line[:30],
)
def test_a_line_that_is_not_ours_is_a_line(line: str, api: ScriptedApi, launch: Launch) -> None:
    api.log_streams = [[*stamped(line, '{"message": "the next"}')]]
    ended = launch()
    assert line in ended.lines
    assert "the next" in ended.lines


def test_reason_of_each_failed_attempt_is_kept_beside_the_artifact(api: ScriptedApi, launch: Launch, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    api.script = lambda age, _: Scene("Terminated", [pod("Failed", code=139)]) if age > 10 else Scene("Running", [pod()])
    launch("--store", str(store))
    kept = sorted(path.name for path in (store / "student.failures").iterdir())
    assert kept == [f"rglcd-distill-r-{n}.json" for n in (1, 2, 3)]
    assert yaml.safe_load((store / "student.failure.json").read_text())["kind"] == "crash"


def test_a_reason_that_cannot_be_kept_is_said_all_the_same(api: ScriptedApi, launch: Launch, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "student.failures").write_text("no folder")
    api.script = lambda age, _: Scene("Terminated", [pod("Failed", code=139)]) if age > 10 else Scene("Running", [pod()])
    ended = launch("--store", str(store))
    assert ended.code == 139, ended.lines
    assert len(api.submitted) == 3
    assert ended.has("the reason could not be kept")
    assert "exit code 139" in ended.last


def test_an_earlier_reason_that_cannot_be_removed_makes_no_failure_of_a_success(api: ScriptedApi, launch: Launch, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "student.failure.json").mkdir(parents=True)
    assert launch("--store", str(store)).code == 0
