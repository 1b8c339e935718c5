"""A web server on loopback that does everything a hostile or broken host does, and a listener nobody may reach."""

import asyncio
import gzip
import io
import logging
import socket
import threading
from collections import Counter
from functools import cache
from types import TracebackType

import numpy as np
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from PIL import Image

OPEN = "127.0.0.2"
"""Where the server listens: tests allow this network."""

FORBIDDEN = "127.0.0.1"
"""Where a listener counts connections: whoever reaches it has broken out."""

FORBIDDEN_SPELLINGS = [
    FORBIDDEN,
    "localhost",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "[::ffff:127.0.0.1]",
    "[::1]",
    "0.0.0.0",
    "0",
    "user@127.0.0.1",
    "example.com@127.0.0.1",
    "127.0.0.1.",
    "①②⑦.⓪.⓪.①",
]
"""Ways to write the forbidden address."""


@cache
def _bomb() -> bytes:
    """Fifty megabytes of zeros, packed once: a busy machine takes longer for it than a client waits."""
    return gzip.compress(bytes(50 << 20))


def picture_bytes(seed: int = 0, *, size: tuple[int, int] = (40, 30), image_format: str = "PNG") -> bytes:
    """An image file, another for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, image_format)
    return stream.getvalue()


class Rebinding(AbstractResolver):
    """Answers with another address each time it is asked, as an attacker's name server does."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = answers, 0

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST)
            for address in answer
        ]

    async def close(self) -> None:
        pass


RAW_LOCATIONS = {
    "to-latin-1": b"/spelt/caf\xe9.jpg",
    "to-utf-8": "/spelt/café.jpg".encode(),
    "to-signed": b"/spelt/a%2Fb?sig=x%2By%3D&w=1%2C2",
    "to-blank": b"/spelt/a b.jpg",
    "to-bracket": b"http://[::1",
    "to-port": b"http://host:notaport/",
    "to-nothing": b"",
}


class HostileServer:
    """A context manager; ``requests`` counts what was asked for, ``intrusions`` what reached the forbidden listener."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.agents: list[str] = []
        self.intrusions = 0
        self.open_now = 0
        self.most_open = 0
        self.bytes_sent = 0
        """Of bodies without end, so far."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "HostileServer":
        _bomb()
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def url(self, path: str) -> str:
        return f"http://{OPEN}:{self.port}/{path}"

    async def _start(self) -> None:
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # clients hang up on it: that is what it is for
        app = web.Application()
        app.router.add_route("GET", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, OPEN, 0)
        await site.start()
        self.port: int = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._listener = await asyncio.start_server(self._intruded, FORBIDDEN, 0)
        self.forbidden_port: int = self._listener.sockets[0].getsockname()[1]
        self._raw = await asyncio.start_server(self._raw_answer, OPEN, 0)
        self.raw_port: int = self._raw.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._listener.close()
        self._raw.close()
        await self._runner.cleanup()

    async def _intruded(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.intrusions += 1
        writer.close()

    async def _raw_answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers that no web framework would give."""
        asked = (await reader.readline()).split()[1].decode().strip("/")
        self.requests[asked] += 1
        body = picture_bytes()
        if asked == "truncated":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[: len(body) // 2])
        elif asked == "bad-length":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + body)
        elif asked == "garbage":
            writer.write(b"\0\1\2 not http at all\r\n\r\n")
        elif asked == "endless-headers":
            writer.write(b"HTTP/1.1 200 OK\r\n" + b"X-Header: value\r\n" * 100_000)
        elif asked == "long-headers":
            policy = b"Content-Security-Policy: " + b"img-src 'self'; " * 2_000
            writer.write(b"HTTP/1.1 200 OK\r\n" + policy + b"\r\n" + b"X-Header: value\r\n" * 300)
            writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        elif asked.startswith("spelt/"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        elif asked in RAW_LOCATIONS:
            writer.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + RAW_LOCATIONS[asked] + b"\r\n\r\n")
        elif asked == "reset":
            writer.transport.abort()
            return
        elif asked == "silent":
            await reader.read()  # until the other side gives up
        await writer.drain()
        writer.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["tail"]
        self.requests[path] += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            return await self._answer_to(path, request)
        finally:
            self.open_now -= 1

    async def _answer_to(self, path: str, request: web.Request) -> web.StreamResponse:
        word, _, rest = path.partition("/")
        if word == "image":
            return web.Response(body=picture_bytes(int(rest)), content_type="image/png")
        if word == "slow-image":
            await asyncio.sleep(0.05)
            return web.Response(body=picture_bytes(int(rest)), content_type="image/png")
        if word == "status":
            return web.Response(status=int(rest.partition("/")[0]))
        if word == "flaky":  # well at the second attempt
            return web.Response(status=503) if self.requests[path] == 1 else web.Response(body=picture_bytes())
        if word == "redirect":  # so many hops, then an image
            hops = int(rest)
            raise web.HTTPFound(f"/redirect/{hops - 1}" if hops > 1 else "/image/0")
        if word == "redirect-to":
            raise web.HTTPFound(request.query["url"])
        if word == "tag":
            return web.Response(body=picture_bytes(), headers={"X-Robots-Tag": rest})
        if word == "page":
            return web.Response(text="<!doctype html><title>Not found</title>" * 100, content_type="text/html")
        if word == "agent":
            self.agents.append(request.headers["User-Agent"])
            return web.Response(status=404)
        if word == "gzip":
            return web.Response(body=_bomb(), headers={"Content-Encoding": "gzip"}, content_type="image/png")
        if word == "cookie":
            response = web.Response(status=400) if request.cookies else web.Response(body=picture_bytes())
            response.set_cookie("track", "me")
            return response
        if word in ("drip", "endless"):
            return await self._stream(request, word)
        if word == "announced-giant":
            return web.Response(body=b"\x89PNG\r\n\x1a\n", headers={"Content-Length": str(1 << 40)})
        return web.Response(status=404)

    async def _stream(self, request: web.Request, kind: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        head, more, pause = b"\x89PNG\r\n\x1a\n" + bytes(8), (b"x" if kind == "drip" else bytes(1 << 20)), (0.2 if kind == "drip" else 0)
        await response.write(head)
        for _ in range(1000):
            await response.write(more)
            self.bytes_sent += len(more)
            await asyncio.sleep(pause)
        return response
