"""F21: the server of a human study killed while raters vote in several tabs: no vote is lost, none counts twice."""

import http.client
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rglcd.study import server as study_server
from rglcd.study import vote_log
from rglcd.study.assignment import tasks_of
from rglcd.study.ballots import Ballots
from rglcd.study.raters import Rater, with_raters
from rglcd.study.records import Study
from rglcd.study.score import score
from rglcd.study.server import listen, serve
from rglcd.study.vote_log import VOTES, read_log
from tests.faults.rounds import Trial
from tests.study.studies import small_study

_POINTS = ("before the write", "in the midst of the write", "after the write", "after the flush", "at any time")
_YEAR = 365 * 24 * 3600


@dataclass
class Tab:
    """A page of ``rater``: it answers what it believes to be open, sends an entry until it is answered, and undoes some answers."""

    rater: Rater
    port: int
    rng: random.Random
    acknowledged: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    num_repeated: int = 0
    fault: str = ""

    def run(self) -> None:
        try:
            while True:
                given = self._ask("GET", "tasks")[1]
                answered = {task for task, _ in given["answered"]}
                left = [task["id"] for task in given["tasks"] if task["id"] not in answered]
                if not left:
                    return
                self._vote(left[0] if self.rng.random() < 0.7 else self.rng.choice(left))
        except Exception as error:
            self.fault = f"{type(error).__name__}: {error}"

    def _vote(self, task: str) -> None:
        vote = {"kind": "vote", "id": self._id(), "task": task, "answer": self.rng.choice(["left", "right", "tie"]), "milliseconds": 5}
        if self._send(vote) and self.rng.random() < 0.15:
            self._send({"kind": "undo", "id": self._id(), "vote": vote["id"]})

    def _send(self, entry: dict[str, Any]) -> bool:
        """Whether ``entry`` was recorded; what was acknowledged is sometimes sent again, as a page does that missed the answer."""
        status, body = self._ask("POST", "votes", entry)
        assert status in (200, 409), (status, body)
        (self.acknowledged if status == 200 else self.refused).append(entry)
        self.num_repeated += status == 200 and not body["new"]
        if status == 200 and self.rng.random() < 0.2:
            again, body = self._ask("POST", "votes", entry)
            assert (again, body["new"]) == (200, False), (again, body)
        return status == 200

    def _ask(self, method: str, path: str, entry: dict[str, Any] | None = None) -> tuple[int, Any]:
        """The server's answer, asked for until there is one."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                body = None if entry is None else json.dumps(entry)
                connection.request(method, f"/r/{self.rater.token}/{path}", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                return response.status, json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.01)
            finally:
                connection.close()
        raise TimeoutError("no answer for a minute")

    def _id(self) -> str:
        return f"{self.rng.getrandbits(128):032x}"


@pytest.mark.fault(
    "F21",
    fault="SIGKILL to the server of a human study while two raters vote in three tabs, undo, and send answers twice: before, in, or after "
    "the write of a vote, after its flush, or at any time; another clock after each start",
    must="every acknowledged vote and undoing is in the log once, and nothing else; each rater has one vote on each task; all are scored",
    unit="kills",
    num_rounds=200,
    sample=range(0, 200, 29),
)
def test_no_vote_is_lost_or_counts_twice_when_the_server_is_killed(trial: Trial, tmp_path: Path) -> None:
    rng, folder = trial.rng(), tmp_path / "study"
    study = small_study(folder, num_prompts=6, num_checks=1)
    raters = with_raters(folder, 2, simulated=False)
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
    tabs = [Tab(raters[number], port, random.Random(rng.random())) for number in (0, 0, 1)]
    point, at = _POINTS[trial.number % len(_POINTS)], rng.randint(1, 12)
    moment = rng.uniform(0.0, 0.25) if point == "at any time" else None
    context = multiprocessing.get_context("fork")
    first = context.Process(target=_serve, args=(folder, study, raters, port, rng.uniform(-1, 1) * _YEAR, point, at), daemon=True)
    first.start()
    threads = [threading.Thread(target=tab.run) for tab in tabs]
    for thread in threads:
        thread.start()
    if moment is not None:
        time.sleep(moment)
        first.kill()
    first.join(60)
    second = context.Process(target=_serve, args=(folder, study, raters, port, rng.uniform(-1, 1) * _YEAR, "never", 0), daemon=True)
    second.start()
    for thread in threads:
        thread.join(120)
    second.kill()
    second.join()
    assert first.exitcode == -signal.SIGKILL, f"the server ended with {first.exitcode}, not by the kill"
    assert not [tab.fault for tab in tabs if tab.fault], [tab.fault for tab in tabs]
    log = read_log(folder / VOTES, raters)
    _check(study, raters, tabs, log.entries)
    assert score(folder, [], half_width=0.05, seed=0).num_contradicting == 0
    repeated, refused = sum(tab.num_repeated for tab in tabs), sum(len(tab.refused) for tab in tabs)
    where = f"after {moment:.2f} s" if moment is not None else f"{point} of entry {at}"
    said = f"killed {where}: {len(log.entries)} entries of 3 tabs, each once; {log.num_torn} torn"
    trial.record(f"{said}, {repeated} recorded whose tab got no answer, {refused} refused as answered in the other tab")


def _check(study: Study, raters: Sequence[Rater], tabs: Sequence[Tab], entries: Sequence[Any]) -> None:
    recorded = Counter(entry.id for entry in entries)
    acknowledged = [entry["id"] for tab in tabs for entry in tab.acknowledged]
    assert len(acknowledged) == len(set(acknowledged))
    lost = set(acknowledged) - recorded.keys()
    assert not lost, f"{len(lost)} acknowledged entries are lost"
    assert set(recorded.values()) == {1}, f"recorded twice: {[id_ for id_, count in recorded.items() if count > 1]}"
    assert recorded.keys() == set(acknowledged), "what was acknowledged to no tab is recorded"
    answers = {entry["id"]: entry.get("answer") for tab in tabs for entry in tab.acknowledged}
    assert all(getattr(entry, "answer", None) == answers[entry.id] for entry in entries)
    ballots = Ballots()
    assert all(ballots.add(entry) for entry in entries)
    tasks = Counter((rater.number, task.id) for rater in raters for task in tasks_of(study, rater.number))
    assert Counter((vote.rater, vote.task) for vote in ballots.in_force()) == tasks


def _serve(folder: Path, study: Study, raters: Sequence[Rater], port: int, clock_off: float, point: str, at: int) -> None:
    """The server, killed at ``point`` of the ``at``-th entry that it writes, whose clock is ``clock_off`` seconds off."""
    later = time.time() + clock_off
    study_server.now = lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(later))
    write, flush, count = os.write, os.fsync, 0

    def killing_write(descriptor: int, data: bytes) -> int:
        nonlocal count
        if data.startswith(b'{"kind":'):
            count += 1
        is_now = count == at and data.startswith(b'{"kind":')
        if is_now and point == "before the write":
            os.kill(os.getpid(), signal.SIGKILL)
        if is_now and point == "in the midst of the write":
            write(descriptor, data[: 1 + (at * 37) % (len(data) - 1)])
            os.kill(os.getpid(), signal.SIGKILL)
        written = write(descriptor, data)
        if is_now and point == "after the write":
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    def killing_flush(descriptor: int) -> None:
        flush(descriptor)
        if count == at and point == "after the flush":
            os.kill(os.getpid(), signal.SIGKILL)

    vote_log.os.write, vote_log.os.fsync = killing_write, killing_flush
    serve(folder, study, raters, listen("127.0.0.1", port), on_ready=lambda: None)


def test_a_study_whose_votes_were_interrupted_is_scored(tmp_path: Path) -> None:
    """The whole way round once: a torn line between the votes of two servers."""
    from tests.study.studies import ARMS, cast, mostly

    study = small_study(tmp_path / "study", num_prompts=4)
    cast(tmp_path / "study", study, 1, mostly(ARMS[0], every=9))
    with (tmp_path / "study" / VOTES).open("ab") as stream:
        stream.write(b'{"kind":"vote","id":"0123')
    cast(tmp_path / "study", study, 2, mostly(ARMS[0], every=9))
    found = score(tmp_path / "study", [], half_width=0.05, seed=0)
    assert (found.num_votes, found.num_torn_lines) == (8, 1)
