"""A web server on loopback that answers a path with the very bytes it was told to, and closes."""

import asyncio
import threading
from types import TracebackType

from tests.sharding.hostile_server import OPEN


class ScriptedServer:
    """A context manager; ``answers`` has the bytes of each answer by the first part of the path that is asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "ScriptedServer":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def address(self) -> str:
        return f"{OPEN}:{self.port}"

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._answer, OPEN, 0, limit=1 << 20)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await reader.readexactly(1) != b"G":  # GET; anything else is no HTTP, such as TLS
                return
            asked = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].split(b"/")[1].decode("latin-1")
            answer = self.answers.get(asked, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            if not answer:
                writer.transport.abort()
                return
            writer.write(answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError):
            pass  # whoever asked has hung up, or asked for nothing
        finally:
            writer.close()
