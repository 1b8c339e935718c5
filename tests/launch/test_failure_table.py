"""Each row of the table of failures, as a cluster says it and as the launcher ends: how many jobs, which exit code, which words."""

import itertools
from collections.abc import Callable

import pytest

from rglcd.launch.attempts import IN_A_ROW
from rglcd.launch.failure_table import TABLE, Then, Where, row_of
from tests.launch.conftest import Ended
from tests.launch.failure_cases import CASES, Case, as_volcano_says, evicted, waiting
from tests.launch.scripted_api import Scene, ScriptedApi, ScriptedClock, event, pod, refusal

Launch = Callable[..., Ended]
ROWS = {row.name: row for row in TABLE}


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
            return Scene("Pending", [case.pod or {}], [case.event] if case.event else [])
        if row.where is Where.REFUSAL:
            return Scene(
                "Terminated" if age > 30 else "Pending",
                [],
                [event("FailedCreate", as_volcano_says(case.refusal or "", case.refusal or ""))],
            )
        return Scene("Terminated", [case.pod or {}]) if age > 10 else Scene("Running", [pod()])

    api.script = script
    ended = launch()
    assert ended.code == case.code, ended.lines
    assert ended.has(case.words), ended.lines
    assert len(api.submitted) == {Then.AGAIN: 2, Then.COUNTED: 3, Then.NEVER: 1}[row.then]
    assert not ended.has("Traceback")
    assert not ended.has("ErrStatus"), "the server's words, not Go's"
    if row.where is Where.CONTAINER:
        patience = 600 if row.may_wait else 0
        assert patience <= clock.seconds <= patience + 30
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
            return Scene("Terminated" if age > 30 else "Pending", [], [event("FailedCreate", as_volcano_says(case.refusal))])
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


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ('failed to resolve reference "i": i: not found', 2, "check image in cluster.yaml"),
        ("429 Too Many Requests", 75, "the registry did not deliver"),
    ],
)
def test_why_an_image_does_not_come_is_kept_while_the_kubelet_only_says_that_it_waits(
    said: str, code: int, words: str, api: ScriptedApi, clock: ScriptedClock, launch: Launch
) -> None:
    """Kubernetes before 1.32."""
    clock.step = 5
    pulls, waits = waiting("ErrImagePull", said), waiting("ImagePullBackOff", 'Back-off pulling image "i"')
    api.script = lambda age, _attempt: Scene("Pending", [pulls if age % 300 < 20 else waits])
    ended = launch()
    assert (ended.code, api.jobs) == (code, {})
    assert said in ended.last
    assert words in ended.last


def test_what_is_no_special_case_falls_through_to_the_last_row_of_its_kind() -> None:
    assert row_of(Where.CONTAINER, reasons=("ContainerCreating",)) is None
    crash, refused = row_of(Where.POD, reasons=("Never heard of",), code=9), row_of(Where.REFUSAL, message="never heard of")
    assert crash is not None
    assert refused is not None
    assert (crash.name, refused.name) == ("crash", "refused")
