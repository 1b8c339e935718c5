"""The launcher and an API server that hiccups: nothing that the server does for a while ends the launcher, or leaves a job behind."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.launch.conftest import Ended, completes
from tests.launch.scripted_api import RESET, SILENCE, Answer, Scene, ScriptedApi, ScriptedClock, pod, refusal

Launch = Callable[..., Ended]

TROUBLES: dict[str, Answer | str] = {
    "500": refusal(500, "etcdserver: leader changed"),
    "502 of a load balancer": (502, "<html>bad gateway</html>", {"Content-Type": "text/html"}),
    "503": refusal(503, "the server is currently unable to handle the request"),
    "429": refusal(429, "too many requests", headers={"Retry-After": "7"}),
    "401": refusal(401, "Unauthorized"),
    "403 of an authorizer that is away": refusal(
        403, 'jobs is forbidden: User "x" cannot get resource "jobs" in API group "batch.volcano.sh"'
    ),
    "404 of a server that does not know its kinds yet": (404, "404 page not found\n", {}),
    "a login page": (200, "<html>please log in</html>", {"Content-Type": "text/html"}),
    "half an answer": (200, '{"kind": "Jo', {"Content-Type": "application/json"}),
    "reset": RESET,
    "silence": SILENCE,
}


def between(clock: ScriptedClock, start: float, end: float, answer: Answer | str):
    return lambda _method, _path: answer if start <= clock.seconds < end else None


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_job_is_followed_to_its_end_through_two_minutes_of(trouble: str, api: ScriptedApi, clock: ScriptedClock, launch: Launch) -> None:
    api.script = completes(after=300)
    api.faults.append(between(clock, 30, 150, TROUBLES[trouble]))
    ended = launch()
    assert (ended.code, len(api.submitted), api.deleted) == (0, 1, []), ended.lines
    assert ended.has("answers again, after")
    complaints = [line for line in ended.lines if "does not answer well" in line]
    assert 2 <= len(complaints) <= 4, "at once, and once a minute"
    assert not ended.has("Traceback")


def test_one_bad_answer_is_not_worth_a_word(api: ScriptedApi, launch: Launch) -> None:
    api.faults.append(lambda _method, _path: TROUBLES["503"] if len(api.calls) == 5 else None)
    ended = launch()
    assert ended.code == 0
    assert not ended.has("answer")


def test_pauses_grow_and_a_server_that_names_one_is_obeyed(api: ScriptedApi, clock: ScriptedClock, launch: Launch) -> None:
    api.script = completes(after=500)
    api.faults.append(between(clock, 30, 400, refusal(429, "slow down", headers={"Retry-After": "100"})))
    launch()
    asked = [at for _, _, at, _ in api.calls if 30 <= at < 400]
    assert len(asked) == 4
    api.jobs.clear()
    api.faults[:] = [between(clock, clock.seconds + 30, clock.seconds + 400, TROUBLES["503"])]
    before = len(api.calls)
    launch()
    times = [at for _, _, at, _ in api.calls[before:]]
    gaps = [later - earlier for earlier, later in pairwise(times) if later - earlier > 2]
    assert gaps[:4] == [4, 8, 16, 30]


def test_a_server_that_stays_away_is_given_up_after_an_hour_and_the_job_goes_on(
    api: ScriptedApi, clock: ScriptedClock, launch: Launch
) -> None:
    api.script = completes(after=10**6)
    api.faults.append(between(clock, 30, 10**9, TROUBLES["503"]))
    ended = launch()
    assert ended.code == 75
    assert "has not answered for 60 min (503" in ended.last
    assert "what runs there goes on, and the same command tries again" in ended.last
    assert list(api.jobs) == ["rglcd-distill-r-1"]


def test_a_token_that_runs_out_is_read_anew(api: ScriptedApi, clock: ScriptedClock, launch: Launch, tmp_path: Path) -> None:
    api.script = completes(after=300)

    def change() -> None:
        api.token = "t2"
        (tmp_path / "kubeconfig").write_text(api.kubeconfig())

    clock.at(60, change)
    api.faults.append(lambda _method, _path: TROUBLES["401"] if api.calls[-1][3] != f"Bearer {api.token}" else None)
    ended = launch()
    assert ended.code == 0
    assert not ended.has("401")
    assert {said for _, _, _, said in api.calls} == {"Bearer t", "Bearer t2"}


def test_requests_that_change_one_quota_at_once_are_made_again(api: ScriptedApi, clock: ScriptedClock, launch: Launch) -> None:
    lost = refusal(
        409,
        'Operation cannot be fulfilled on resourcequotas "rglcd": the object has been modified; please apply your changes to the latest '
        "version and try again",
        reason="Conflict",
        details={"name": "rglcd", "kind": "resourcequotas"},
    )
    api.faults.append(lambda method, _path: lost if method == "POST" and clock.seconds < 5 else None)
    ended = launch()
    assert (ended.code, len(api.submitted)) == (0, 1), ended.lines


def test_a_job_that_goes_while_it_is_submitted_is_one_line(api: ScriptedApi, launch: Launch) -> None:
    exists = refusal(409, 'jobs.batch.volcano.sh "rglcd-distill-r-1" already exists', details={"name": "rglcd-distill-r-1"})
    api.faults.append(lambda method, _path: exists if method == "POST" else None)
    ended = launch()
    assert ended.code == 75
    assert "rglcd-distill-r-1 was there and is gone; the same command makes another" in ended.last


def test_a_submission_whose_answer_is_lost_makes_one_job(api: ScriptedApi, launch: Launch) -> None:
    job = _job_of(launch, api)

    def lose(method: str, path: str) -> str | None:
        if method != "POST" or api.submitted:
            return None
        api.act("POST", path, {}, job)
        return RESET

    api.faults.append(lose)
    ended = launch()
    assert ended.code == 0
    assert len(api.submitted) == 1
    assert ended.has("exists; following it")


def _job_of(launch: Launch, api: ScriptedApi) -> dict[str, Any]:
    """The job that a launch makes."""
    launch()
    (job,) = api.submitted
    api.submitted.clear()
    api.jobs.clear()
    return job


# --- stopping ------------------------------------------------------------------------------------


def test_stopped_while_the_server_is_away_the_job_is_deleted_when_it_is_back(
    api: ScriptedApi, clock: ScriptedClock, launch: Launch
) -> None:
    api.script = completes(after=10**6)
    api.faults.append(between(clock, 30, 2000, TROUBLES["503"]))
    clock.at(100, clock.stop.set)
    ended = launch()
    assert ended.code == 75
    assert api.deleted == ["rglcd-distill-r-1"]
    by_hand = "kubectl delete jobs.batch.volcano.sh rglcd-distill-r-1 -n rglcd"
    assert 25 <= sum(by_hand in line for line in ended.lines) <= 40, "the command is said once a minute"
    assert "was cancelled" in ended.last


def test_a_second_request_to_stop_leaves_the_job_and_says_how_to_delete_it(api: ScriptedApi, clock: ScriptedClock, launch: Launch) -> None:
    api.faults.append(between(clock, 30, 10**9, RESET))
    clock.at(40, clock.stop.set)
    clock.at(300, clock.give_up.set)
    ended = launch()
    assert ended.code == 75
    assert clock.seconds < 400
    assert "may still run" in ended.last
    assert "kubectl delete jobs.batch.volcano.sh rglcd-distill-r-1 -n rglcd" in ended.last


def test_a_second_request_to_stop_does_not_wait_for_pods_that_save(api: ScriptedApi, clock: ScriptedClock, launch: Launch) -> None:
    pods = (200, {"kind": "PodList", "items": [pod()]}, {})
    api.faults.append(lambda _method, path: pods if path.partition("?")[0].endswith("/pods") else None)
    clock.at(30, clock.stop.set)
    clock.at(50, clock.give_up.set)
    ended = launch()
    assert ended.code == 75
    assert api.deleted == ["rglcd-distill-r-1"]
    assert clock.seconds < 60


# --- first contact -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (refusal(401, "Unauthorized"), 2, "401, it does not know who you are; log in again"),
        (
            refusal(403, 'jobs is forbidden: User "x" cannot list resource "jobs" in API group "batch.volcano.sh"'),
            2,
            'User "x" cannot list resource "jobs" in API group "batch.volcano.sh"; the Role rglcd-launcher of manifests/',
        ),
        ((404, "404 page not found\n", {}), 2, "the cluster knows no Volcano Jobs (batch.volcano.sh/v1alpha1): install Volcano 1.10"),
        (refusal(503, "apiserver not ready"), 75, "has not answered for 31 s (503 Service Unavailable: apiserver not ready)"),
        (RESET, 75, "has not answered for 31 s"),
        (SILENCE, 75, "has not answered for 31 s (silence)"),
        ((200, "<html>sign in</html>", {"Content-Type": "text/html"}), 75, "a web page instead of an answer: a login page"),
    ],
    ids=["401", "403", "no Volcano", "503", "reset", "silence", "login page"],
)
def test_first_contact_that_fails_is_one_line_that_says_what_to_do(
    api: ScriptedApi, launch: Launch, answer: Answer | str, code: int, words: str
) -> None:
    api.faults.append(lambda _method, _path: answer)
    ended = launch()
    assert ended.code == code
    assert words in ended.last
    assert len(ended.lines) <= 2
    assert api.submitted == []


def test_no_cluster_is_one_line_that_says_what_to_do(api: ScriptedApi, launch: Launch) -> None:
    api.close()
    ended = launch()
    assert ended.code == 2
    assert f"the API server at {api.url}: connection refused; start it, or name another cluster: KUBECONFIG" in ended.last
    assert len(ended.lines) <= 2


@pytest.mark.parametrize("text", [None, "", ": [", "apiVersion: v1\nkind: Config\ncurrent-context: nothing\n"])
def test_no_kubeconfig_or_a_broken_one_is_one_line(launch: Launch, tmp_path: Path, monkeypatch, text: str | None) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    if text is not None:
        (tmp_path / "none").write_text(text)
    ended = launch()
    assert ended.code == 2
    assert ended.last.startswith("rglcd: no cluster: ")
    assert len(ended.lines) == 1


def test_events_are_asked_for_by_name_and_in_bounds(api: ScriptedApi, launch: Launch) -> None:
    api.script = lambda age, _: Scene("Pending", [pod("Pending", name=f"p{n}") for n in range(64)]) if age < 120 else Scene("Completed")
    assert launch().code == 0
    asked = [path for _, path, _, _ in api.calls if "/events" in path]
    assert asked
    assert all("fieldSelector=involvedObject.name" in path and "limit=50" in path for path in asked)
    assert len(asked) <= 6 * 9, "the job, its PodGroup and four pods, every 15 s"
