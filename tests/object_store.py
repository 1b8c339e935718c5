"""A real S3 API on loopback, and a proxy before it that fails as networks and stores do."""

import http.client
import logging
import random
import socket
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}


class Fault(StrEnum):
    ERROR = "500"
    BUSY = "503"
    RESET = "reset"
    SLOW = "slow"
    TRUNCATED = "truncated"
    LOST_PART = "lost part"
    """An upload is acknowledged and its middle third is zeros: of full size, and silent."""


class Proxy:
    """A server on loopback, each of whose requests ``handler`` answers in a thread of its own."""

    def serve(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class FaultProxy(Proxy):
    """Forwards to ``upstream``; of all requests ``rate`` meet a fault, of uploads ``loss_rate`` lose a part. Seeded."""

    upstream: str
    rate: float = 0.0
    loss_rate: float = 0.0
    seed: int = 0
    slow_seconds: float = 0.3
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        proxy = self

        class Handler(_FaultyHandler):
            faults, upstream = proxy, proxy.upstream

        self.serve(Handler)

    def restart(self, seed: int) -> None:
        """Draw anew from ``seed``, and count from nought."""
        with self._lock:
            self._random = random.Random(seed)
            self.seen.clear()

    def draw(self, *, is_upload: bool) -> Fault | None:
        """What befalls the next request."""
        with self._lock:
            self.seen["requests"] += 1
            fault: Fault | None = None
            if is_upload and self._random.random() < self.loss_rate:
                fault = Fault.LOST_PART
            elif self._random.random() < self.rate:
                fault = self._random.choice([Fault.ERROR, Fault.BUSY, Fault.RESET, Fault.SLOW, Fault.TRUNCATED])
            if fault is not None:
                self.seen[fault.value] += 1
            return fault


class ForwardingHandler(BaseHTTPRequestHandler):
    """What forwards a request to ``upstream``, as it came or changed, and answers it."""

    protocol_version = "HTTP/1.1"
    upstream: str

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _upstream(self, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        address = urlsplit(self.upstream)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        dropped = {"transfer-encoding", "content-length", "connection", "expect"}
        kept = {name: value for name, value in headers.items() if name.lower() not in dropped}
        connection.request(self.command, self.path, body=body, headers=kept | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        answered = dict(answer.getheaders())
        connection.close()
        return answer.status, answered, content

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes, *, claimed: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content) if claimed is None else claimed)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content)

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def handle(self) -> None:
        with suppress(OSError, ValueError):  # the client went away, or we reset the connection under our own feet
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _FaultyHandler(ForwardingHandler):
    faults: FaultProxy

    def _forward(self) -> None:
        body = self._body()
        fault = self.faults.draw(is_upload=self.command == "PUT" and len(body) > 0)
        headers = dict(self.headers.items())
        if fault is Fault.SLOW:
            time.sleep(self.faults.slow_seconds)
        if fault in (Fault.ERROR, Fault.BUSY):
            self._answer(int(fault.value), {}, b"")
            return
        if fault is Fault.RESET:
            self._reset()
            return
        if fault is Fault.LOST_PART:
            third = len(body) // 3
            body = body[:third] + bytes(len(body) - 2 * third) + body[len(body) - third :]
            headers = {name: value for name, value in headers.items() if "checksum" not in name.lower() and name.lower() != "content-md5"}
        status, answered, content = self._upstream(headers, body)
        if fault is Fault.TRUNCATED and content:
            self._answer(status, answered, content[: len(content) // 2], claimed=len(content))
            self._reset()
        else:
            self._answer(status, answered, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815 (http.server's names)


def open_bucket(upstream: str) -> str:
    """``s3://NAME`` of a new, empty bucket of the store at ``upstream``."""
    import boto3
    import fsspec

    fsspec.filesystem("s3").clear_instance_cache()  # an instance remembers the endpoint that it was made with
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=upstream).create_bucket(Bucket=name)
    return f"s3://{name}"


def start_object_store() -> tuple[Any, str]:
    """moto's server, and its endpoint."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return server, f"http://{host}:{port}"


def put_folder(folder: Path, uri: str) -> None:
    """Upload the files of ``folder`` below ``uri``, as anybody's tool would."""
    import boto3

    client, (bucket, _, prefix) = boto3.client("s3"), uri.removeprefix("s3://").partition("/")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")
