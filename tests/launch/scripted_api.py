"""An API server that follows a script: real HTTP on loopback, time that does not pass by itself.

A script says what a job of a certain age looks like (phase, pods, events, logs) and which calls are answered badly. The launcher's
pauses move the time on, so a week takes a second.
"""

import json
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

RESET, SILENCE = "reset", "silence"
Answer = tuple[int, Any, dict[str, str]]
Fault = Callable[[str, str], "Answer | str | None"]
"""Of method and path: an answer in place of the server's own, RESET, SILENCE, or None for its own."""


class ScriptedClock:
    """Stands in for the launcher's clock: a pause is over at once, and the time is later."""

    def __init__(self) -> None:
        self.stop, self.give_up = threading.Event(), threading.Event()
        self.seconds = 0.0
        self.pauses = 0
        self.step = 0.0
        """The least that a pause takes: of a script that lasts for hours not every poll is played."""
        self._at: list[tuple[float, Callable[[], None]]] = []
        self._main = threading.main_thread()

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def at(self, seconds: float, act: Callable[[], None]) -> None:
        """Do ``act`` when the time comes."""
        self._at.append((seconds, act))

    def pause(self, seconds: float) -> None:
        if threading.current_thread() is not self._main:
            time.sleep(0.001)
            return
        self.pauses += 1
        assert self.pauses < 5_000, "the launcher does not come to an end"
        self.seconds += max(seconds, self.step)
        for due in [each for each in self._at if each[0] <= self.seconds]:
            self._at.remove(due)
            due[1]()


class WallClock(ScriptedClock):
    """The time of this machine, for a launcher that knows no other."""

    def now(self) -> datetime:
        return datetime.now(UTC)


@dataclass
class Scene:
    """A job at one moment."""

    phase: str = "Running"
    pods: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


Script = Callable[[float, int], Scene]
"""Of a job's age in seconds and the number of its attempt."""


def pod(phase: str = "Running", *, name: str = "p", **more: Any) -> dict[str, Any]:
    """A pod: ``reason`` and ``message`` of its status; ``code``, ``why``, ``said`` of its container's end; ``waiting``: why."""
    state: dict[str, Any] = {}
    if phase == "Running":
        state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    if "code" in more:
        state = {"terminated": {"exitCode": more["code"], "reason": more.get("why", "Error"), "message": more.get("said", "")}}
    if "waiting" in more:
        reason, message = more["waiting"]
        state = {"waiting": {"reason": reason, "message": message}}
    status: dict[str, Any] = {"phase": phase, "containerStatuses": [_container_status(state)]}
    status |= {key: more[key] for key in ("reason", "message", "conditions") if key in more}
    metadata = {"name": name, "uid": more.get("uid", f"uid-{name}")} | ({"deletionTimestamp": more["deleted"]} if "deleted" in more else {})
    spec = {"nodeName": "node-1", "containers": [{"name": "main", "image": "i"}]}
    return {"metadata": metadata, "spec": spec, "status": status}


def _container_status(state: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}


def event(reason: str, message: str, *, of: str = "{job}", at: str = "2026-01-01T00:00:05Z", uid: str | None = None) -> dict[str, Any]:
    """``of`` and ``uid`` are the object's; ``{job}`` and ``{podgroup}`` stand for those of the job. Said again, it is the same event."""
    return {
        "metadata": {"name": f"e-{zlib.crc32(f'{of} {uid} {reason} {message}'.encode()):x}"},
        "involvedObject": {"name": of} | ({} if uid is None else {"uid": uid}),
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
    }


class ScriptedApi:
    """The server; ``jobs`` are those that it holds, ``calls`` what was asked of it."""

    def __init__(self, script: Script, clock: ScriptedClock) -> None:
        self.script, self.clock = script, clock
        self.jobs: dict[str, dict[str, Any]] = {}
        self.submitted: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.calls: list[tuple[str, str, float, str]] = []
        self.faults: list[Fault] = []
        self.log_streams: list[list[str]] = []
        """What each further stream of a log gives before it ends; without any, all of the scene's log."""
        self.token = "t"
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def kubeconfig(self) -> str:
        """For KUBECONFIG; the token is the one in force now."""
        named = {
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": self.token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        }
        return yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "x", **named})

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    # --- objects

    def scene(self, job: Mapping[str, Any]) -> Scene:
        created = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
        return self.script((self.clock.now() - created).total_seconds(), int(job["metadata"]["labels"]["rg-lcd/attempt"]))

    def shown(self, job: dict[str, Any]) -> dict[str, Any]:
        state = {"phase": self.scene(job).phase, "lastTransitionTime": job["metadata"]["creationTimestamp"]}
        return {**job, "status": {"state": state}}

    def act(self, method: str, path: str, query: Mapping[str, list[str]], body: Any) -> Answer:
        words = path.strip("/").split("/")
        if words[:2] == ["apis", "batch.volcano.sh"]:
            return self._act_on_jobs(method, words[6:], body)
        kind, rest = words[4], words[5:]
        if rest and rest[-1] == "log":
            return 200, "\n".join(self._log(rest[0])), {}
        if kind == "pods":
            wanted = unquote(query["labelSelector"][0]).partition("instance=")[2]
            return 200, {"kind": "PodList", "items": self.scene(self.jobs[wanted]).pods if wanted in self.jobs else []}, {}
        if kind == "events":
            return 200, {"kind": "EventList", "items": self._events(query)}, {}
        return refusal(404, "no such path")

    def _act_on_jobs(self, method: str, rest: list[str], body: Any) -> Answer:
        if method == "POST":
            name = body["metadata"]["name"]
            if name in self.jobs:
                return refusal(409, f'jobs.batch.volcano.sh "{name}" already exists', details={"name": name})
            body["metadata"] |= {"uid": f"uid-{name}", "creationTimestamp": self.clock.now().isoformat()}
            self.jobs[name] = body
            self.submitted.append(body)
            return 201, body, {}
        if not rest:
            return 200, {"kind": "JobList", "items": [self.shown(job) for job in self.jobs.values()]}, {}
        if rest[0] not in self.jobs:
            return refusal(404, f'jobs.batch.volcano.sh "{rest[0]}" not found')
        if method == "DELETE":
            del self.jobs[rest[0]]
            self.deleted.append(rest[0])
            return 200, {"kind": "Status", "status": "Success"}, {}
        return 200, self.shown(self.jobs[rest[0]]), {}

    def _events(self, query: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        wanted = query.get("fieldSelector", ["="])[0].partition("=")[2]
        found = []
        for name, job in self.jobs.items():
            for each in self.scene(job).events:
                of = each["involvedObject"]["name"].format(job=name, podgroup=f"{name}-{job['metadata']['uid']}")
                if wanted in ("", of):
                    found.append({**each, "involvedObject": {**each["involvedObject"], "name": of}})
        return found[: int(query.get("limit", ["1000"])[0])]

    def _log(self, pod_name: str) -> list[str]:
        if self.log_streams:
            return self.log_streams.pop(0)
        for job in self.jobs.values():
            scene = self.scene(job)
            if any(each["metadata"]["name"] == pod_name for each in scene.pods):
                return scene.log
        return []


def refusal(status: int, message: str, *, headers: dict[str, str] | None = None, **more: Any) -> Answer:
    """A ``Status``, as the API server says no."""
    return status, {"kind": "Status", "status": "Failure", "message": message, "code": status, **more}, headers or {}


def _handler(api: ScriptedApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize, disable_nagle_algorithm = -1, True  # an answer is one packet

        def _answer(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            api.calls.append((self.command, self.path, api.clock.seconds, self.headers.get("Authorization", "")))
            found = next((said for said in (fault(self.command, self.path) for fault in api.faults) if said is not None), None)
            if found == RESET:
                self.connection.close()
                self.close_connection = True
                return
            if found == SILENCE:
                time.sleep(1)
                self.close_connection = True
                return
            answer = found or api.act(self.command, url.path, parse_qs(url.query), body)
            assert isinstance(answer, tuple)
            self._send(*answer)

        def _send(self, status: int, content: Any, headers: dict[str, str]) -> None:
            text = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            kind = "text/plain" if isinstance(content, str) else "application/json"
            for name, value in {"Content-Type": kind, "Content-Length": str(len(text)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 (http.server's names)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
