"""A proxy before the real API server that fails on purpose, as control planes and what stands before them do.

What happens to a request is a function of a seed, its method and path, and how many like it came before: the same in each run.
"""

import contextlib
import http.client
import json
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.cluster.control_plane import TOKEN, Cluster


class Fate(StrEnum):
    """What happens to a request."""

    PASSED = "passed"
    ERROR = "500"
    BUSY = "429"
    UNKNOWN = "401"
    RESET = "reset"
    LOST = "answer lost"
    HALF = "half an answer"
    SILENT = "silence"
    CUT = "log cut"


@dataclass(frozen=True)
class Outage:
    """From ``begins`` on, seconds after the proxy's first request, nothing gets through for ``lasts`` seconds."""

    begins: float
    lasts: float
    fate: Fate = Fate.RESET


@dataclass(frozen=True)
class Schedule:
    """``rates``: how much of the requests ends so. A stream of a log is cut after ``stream_seconds``."""

    seed: str
    rates: Mapping[Fate, float] = field(default_factory=dict)
    outages: tuple[Outage, ...] = ()
    stream_seconds: float | None = None
    silent_seconds: float = 35.0


class FailingProxy:
    """Listens on loopback until :meth:`close`; ``seen`` counts what became of the requests."""

    def __init__(self, cluster: Cluster, schedule: Schedule) -> None:
        server = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        self.upstream, self.schedule = urlsplit(server), schedule
        self.seen: Counter[str] = Counter()
        self._times: Counter[str] = Counter()
        self._began: float | None = None
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def kubeconfig(self, path: Path) -> Path:
        """Write ``path`` for a client that comes this way."""
        named = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._http.server_address[1]}"}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        }
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "x", **named}))
        return path

    def fate_of(self, method: str, path: str) -> Fate:
        """Decide on the next request of ``method`` and ``path``, and count it."""
        with self._lock:
            now = time.monotonic()
            self._began = now if self._began is None else self._began
            self._times[f"{method} {path}"] += 1
            fate = self._drawn(method, path, seconds=now - self._began)
            self.seen[fate] += 1
        return fate

    def _drawn(self, method: str, path: str, *, seconds: float) -> Fate:
        for outage in self.schedule.outages:
            if outage.begins <= seconds < outage.begins + outage.lasts:
                return outage.fate
        if "/log" in path:
            return Fate.PASSED if self.schedule.stream_seconds is None else Fate.CUT
        rng = random.Random(f"{self.schedule.seed}/{method}/{path}/{self._times[f'{method} {path}']}")
        drawn = rng.random()
        for fate, rate in self.schedule.rates.items():
            drawn -= rate
            if drawn < 0:
                # The first call of a launcher lists the jobs: of that one, 401 is the last word.
                return Fate.ERROR if fate is Fate.UNKNOWN and "labelSelector" in path else fate
        return Fate.PASSED


_SAID: dict[Fate, tuple[int, str]] = {
    Fate.ERROR: (500, "etcdserver: leader changed"),
    Fate.BUSY: (429, "too many requests"),
    Fate.UNKNOWN: (401, "Unauthorized"),
}


def _handler(proxy: FailingProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fate = proxy.fate_of(self.command, self.path)
            with contextlib.suppress(OSError):
                if fate in _SAID:
                    status, message = _SAID[fate]
                    self._send(status, json.dumps({"kind": "Status", "status": "Failure", "code": status, "message": message}).encode())
                elif fate is Fate.RESET:
                    self._reset()
                elif fate is Fate.SILENT:
                    time.sleep(proxy.schedule.silent_seconds)
                    self._reset()
                else:
                    self._pass_on(body, fate)

        def _pass_on(self, body: bytes, fate: Fate) -> None:
            context = ssl._create_unverified_context()
            upstream = http.client.HTTPSConnection(str(proxy.upstream.hostname), proxy.upstream.port or 443, context=context, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
            upstream.request(self.command, self.path, body=body or None, headers=headers)
            answer = upstream.getresponse()
            if "follow=" in self.path:
                self._stream(answer, until=None if fate is not Fate.CUT else time.monotonic() + (proxy.schedule.stream_seconds or 0))
                return
            content = answer.read()
            if fate is Fate.LOST:
                self._reset()
                return
            self._send(answer.status, content, half=fate is Fate.HALF)

        def _stream(self, answer: Any, *, until: float | None) -> None:
            """A log, until its time is over: the connection then ends as if the log had."""
            self.close_connection = True
            self.send_response(answer.status)
            self.send_header("Connection", "close")
            self.end_headers()
            while until is None or time.monotonic() < until:
                chunk = answer.read1(65536)
                if not chunk:
                    return
                self.wfile.write(chunk)
                self.wfile.flush()

        def _send(self, status: int, content: bytes, *, half: bool = False) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if half else content)
            if half:
                self._reset()

        def _reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = _answer  # noqa: N815 (http.server's names)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
