"""The system's name resolution, whose slow answers hold up nobody else.

``getaddrinfo`` cannot be interrupted: for a dead name it blocks for up to a minute, long after its fetch was given up. In a pool of
threads such calls take the places of others, and the process waits for them at its end. Here each has a thread of its own that the
process does not wait for.
"""

import asyncio
import errno
import socket
import threading
from contextlib import suppress
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult


class SystemResolver(AbstractResolver):
    """Resolves a name in a thread of its own, of which at most ``num_threads`` run at a time."""

    def __init__(self, *, num_threads: int) -> None:
        self._free = asyncio.Semaphore(num_threads)

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """The addresses of ``host``. Raises ``OSError`` (``socket.gaierror``) when it has none."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Any]] = loop.create_future()

        def tell(found: list[Any] | None, error: Exception | None) -> None:
            self._free.release()
            if answer.done():  # given up
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(found or [])

        def ask() -> None:
            found, error = None, None
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG)
            except Exception as raised:
                error = raised
            with suppress(RuntimeError):  # the loop is closed: everyone has gone
                loop.call_soon_threadsafe(tell, found, error)

        try:
            threading.Thread(target=ask, daemon=True, name="resolve").start()
        except RuntimeError as error:  # as Python says that there may be no more
            self._free.release()
            raise OSError(errno.EAGAIN, str(error)) from error
        infos = await answer
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=int(address[1]), family=kind, proto=proto, flags=socket.AI_NUMERICHOST)
            for kind, _, proto, _, address in infos
        ]

    async def close(self) -> None:
        """Nothing is held."""
