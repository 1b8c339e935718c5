"""What the server gives, to whom, and what it takes; through real HTTP on loopback."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from rglcd.study.assignment import tasks_of
from rglcd.study.raters import Rater, read_raters, with_raters
from rglcd.study.records import Study, read_study
from rglcd.study.server import ENTRIES_PER_TASK, HEADERS, StudyServer
from rglcd.study.vote_log import VOTES, open_log, read_log
from tests.study.studies import ARMS, new_id, small_study

Scenario = Callable[[TestClient], Awaitable[None]]


class Served:
    """A study of which the server has no key, and two raters."""

    def __init__(self, folder: Path, study: Study) -> None:
        (folder / "key.json").unlink()
        self.folder, self.study = folder, read_study(folder)
        self.raters = with_raters(folder, 2, simulated=False)
        assert self.study == study

    def run(self, scenario: Scenario) -> None:
        async def serve() -> None:
            with open_log(self.folder, self.raters) as log:
                server = StudyServer(self.folder, self.study, read_raters(self.folder), log)
                async with TestClient(TestServer(server.app())) as client:
                    await scenario(client)

        asyncio.run(serve())

    def tasks(self, rater: int = 0) -> list[str]:
        return [task.id for task in tasks_of(self.study, rater)]

    def recorded(self) -> list[Any]:
        return read_log(self.folder / VOTES, self.raters).entries


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path / "study", small_study(tmp_path / "study", arms=ARMS, num_prompts=3))


def vote(task: str, number: int, answer: str = "left") -> dict[str, Any]:
    return {"kind": "vote", "id": new_id(task, number), "task": task, "answer": answer, "milliseconds": 700}


async def send(client: TestClient, rater: Rater, entry: Any, **words: Any) -> tuple[int, dict[str, Any]]:
    async with client.post(f"/r/{rater.token}/votes", **(words or {"json": entry})) as response:
        assert {name: response.headers[name] for name in HEADERS} == HEADERS
        return response.status, await response.json()


def test_no_arm_is_named_in_anything_that_is_served(served: Served) -> None:
    async def scenario(client: TestClient) -> None:
        rater = served.raters[0]
        paths = ["", "tasks", "page.css", "page.js"]
        async with client.get(f"/r/{rater.token}/tasks") as response:
            tasks = (await response.json())["tasks"]
        paths += sorted({f"pictures/{task[side]}" for task in tasks for side in ("left", "right")})
        assert len(paths) > 10
        assert "check" not in json.dumps(tasks)
        for path in paths:
            async with client.get(f"/r/{rater.token}/{path}") as response:
                assert response.status == 200, path
                said = str(response.url).encode() + repr(response.headers).encode() + await response.read()
                assert not [arm for arm in ARMS if arm.encode() in said]

    served.run(scenario)


def test_every_response_has_the_headers_of_a_page_that_nobody_else_may_use(served: Served) -> None:
    async def scenario(client: TestClient) -> None:
        token = served.raters[0].token
        for path in (f"/r/{token}/", f"/r/{token}/tasks", f"/r/{token}/page.js", "/", "/nowhere", f"/r/{token}/pictures/x"):
            async with client.get(path) as response:
                assert {name: response.headers[name] for name in HEADERS} == HEADERS, path
        policy = HEADERS["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy

    served.run(scenario)


def test_without_a_raters_token_there_is_nothing(served: Served) -> None:
    async def scenario(client: TestClient) -> None:
        token = served.raters[0].token
        name = served.study.pairs[0].pictures[0]
        wrong = [token[:-1], token + "x", token.swapcase(), "x" * len(token), "%00", "..", "ü"]
        paths = [f"/r/{one}/{path}" for one in wrong for path in ("", "tasks", "page.js", f"pictures/{name}")]
        for path in (*paths, "/", "/r/", "/key.json", "/votes.jsonl", "/raters.json", "/page.js", f"/pictures/{name}"):
            async with client.get(path) as response:
                assert response.status == 404, path
        async with client.post(f"/r/{'x' * len(token)}/votes", json=vote(served.tasks()[0], 1)) as response:
            assert response.status == 404
        assert served.recorded() == []

    served.run(scenario)


@pytest.mark.parametrize(
    "name", ["../key.json", "..%2fkey.json", "%2e%2e/raters.json", "../../study.json", "study.json", "", "/etc/passwd", "%00"]
)
def test_a_picture_is_looked_up_by_name_and_no_path_leads_elsewhere(served: Served, name: str) -> None:
    async def scenario(client: TestClient) -> None:
        from yarl import URL

        async with client.get(URL(f"/r/{served.raters[0].token}/pictures/{name}", encoded=True)) as response:
            assert response.status == 404

    served.run(scenario)


def test_a_vote_is_on_disk_when_it_is_acknowledged_and_is_shown_again_after_a_reload(served: Served) -> None:
    async def scenario(client: TestClient) -> None:
        rater, task = served.raters[0], served.tasks()[0]
        assert await send(client, rater, vote(task, 1)) == (200, {"recorded": new_id(task, 1), "new": True})
        assert [entry.task for entry in served.recorded()] == [task]
        async with client.get(f"/r/{rater.token}/tasks") as response:
            assert (await response.json())["answered"] == [[task, new_id(task, 1)]]

    served.run(scenario)


def test_of_two_tabs_one_answer_counts_and_a_repeated_one_is_no_second(served: Served) -> None:
    async def scenario(client: TestClient) -> None:
        rater, task = served.raters[0], served.tasks()[0]
        first, second = vote(task, 1), vote(task, 2, "right")
        answers = await asyncio.gather(*(send(client, rater, entry) for entry in [first] * 5 + [second] * 5))
        winners = {body["recorded"] for status, body in answers if status == 200}
        assert len(winners) == 1
        assert sorted(status for status, _ in answers) == [200] * 5 + [409] * 5
        assert sum(body.get("new", False) for _, body in answers) == 1
        assert len(served.recorded()) == 1

    served.run(scenario)


def test_two_raters_answer_the_same_task_and_neither_undoes_the_others(served: Served) -> None:
    async def scenario(client: TestClient) -> None:
        (one, two), task = served.raters, served.tasks()[0]
        assert (await send(client, one, vote(task, 1)))[0] == 200
        assert (await send(client, two, vote(task, 2)))[0] == 200
        undo = {"kind": "undo", "id": new_id("undo"), "vote": new_id(task, 1)}
        assert (await send(client, two, undo))[0] == 409
        assert (await send(client, one, undo))[0] == 200
        assert (await send(client, one, undo)) == (200, {"recorded": new_id("undo"), "new": False})
        assert [entry.rater for entry in served.recorded()] == [0, 1, 0]

    served.run(scenario)


@pytest.mark.parametrize("task", ["0" * 32 + ".preference", "", "../x", "1", None])
def test_a_task_that_is_not_the_raters_is_refused(served: Served, task: str | None) -> None:
    async def scenario(client: TestClient) -> None:
        status, body = await send(client, served.raters[0], vote(served.tasks()[0], 1) | {"task": task})
        assert (status, served.recorded()) == (400, [])
        assert "error" in body

    served.run(scenario)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ({"data": b"\xff\xfe", "headers": {"Content-Type": "application/json"}}, 400),
        ({"data": b"[" * 1000, "headers": {"Content-Type": "application/json"}}, 400),
        ({"data": b"{}", "headers": {"Content-Type": "application/json; charset=none"}}, 400),
        ({"data": b"x" * 3000, "headers": {"Content-Type": "application/json"}}, 413),
        ({"data": b"{}", "headers": {"Content-Type": "text/plain"}}, 415),
        ({"data": {"kind": "vote"}}, 415),
    ],
)
def test_a_body_that_is_no_vote_is_refused(served: Served, words: dict[str, Any], status: int) -> None:
    async def scenario(client: TestClient) -> None:
        assert (await send(client, served.raters[0], None, **words))[0] == status
        assert served.recorded() == []

    served.run(scenario)


def test_a_program_that_answers_and_undoes_for_ever_is_stopped(tmp_path: Path) -> None:
    served = Served(tmp_path / "study", small_study(tmp_path / "study", num_prompts=1, num_checks=1))

    async def scenario(client: TestClient) -> None:
        rater, task = served.raters[0], served.tasks()[0]
        limit = ENTRIES_PER_TASK * len(served.tasks())
        statuses = []
        for number in range(limit // 2 + 1):
            statuses.append((await send(client, rater, vote(task, number)))[0])
            undo = {"kind": "undo", "id": new_id("undo", number), "vote": new_id(task, number)}
            statuses.append((await send(client, rater, undo))[0])
        assert set(statuses[:limit]) == {200}
        assert set(statuses[limit:]) == {429}
        assert (await send(client, served.raters[1], vote(served.tasks(1)[0], -1)))[0] == 200

    served.run(scenario)


def test_hostile_prompts_reach_the_page_as_data_alone(tmp_path: Path) -> None:
    from rglcd.study.build import build
    from tests.study.studies import design, drawn

    hostile = ["</script><script>alert(1)</script>", "\u202e<img src=x onerror=alert(1)>", "'\"`${alert(1)}\u2028"]
    served = Served(tmp_path / "study", build(tmp_path / "study", drawn(prompts=hostile), design()))

    async def scenario(client: TestClient) -> None:
        token = served.raters[0].token
        async with client.get(f"/r/{token}/") as response:
            page = await response.text()
        assert not [word for word in ("alert(", "onerror") if word in page]
        async with client.get(f"/r/{token}/tasks") as response:
            assert response.content_type == "application/json"
            assert {task["prompt"] for task in (await response.json())["tasks"]} == set(hostile)

    served.run(scenario)
