"""Images from the open web: what their hosts give, within limits, to public addresses only.

Urls are hostile text and servers hostile programs. A fetch ends within its wall-clock limit with bytes in the content
store, or with one :class:`~rglcd.sharding.accounting.Reason`; memory holds a few network buffers for each connection. An outage of our
own network is no reason, and remembered of no url (:mod:`~rglcd.sharding.network_watch`).
"""

import asyncio
import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final
from weakref import WeakValueDictionary

import aiohttp
from aiohttp.abc import AbstractResolver

from rglcd.errors import InputError, TryAgain
from rglcd.sharding.accounting import Reason, RowRejectedError
from rglcd.sharding.addresses import AddressPolicy, ForbiddenAddressError
from rglcd.sharding.content_store import HEAD_BYTES, ContentStore, Fetched
from rglcd.sharding.decoding import looks_like_image
from rglcd.sharding.network_watch import LIKE_AN_OUTAGE, NetworkWatch, Unconfirmed
from rglcd.sharding.refusal_log import RefusalLog
from rglcd.sharding.resolving import SystemResolver
from rglcd.sharding.robots_tag import opted_out
from rglcd.sharding.urls import host_of, redirected, requested
from rglcd.sharding.web_session import open_session
from rglcd.store.disk_space import is_disk_full

MAX_REDIRECTS: Final = 3

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PASSING: Final = frozenset({Reason.UNREACHABLE, Reason.HOST_BUSY, Reason.SERVER_ERROR, Reason.CUT_SHORT})
"""Reasons that another attempt may undo."""

_CHUNK_BYTES: Final = 64 << 10
_WAITING_PER_CONNECTION: Final = 4
_RESOLVING_PER_CONNECTION: Final = 8
"""A name may be looked for several times as long as its fetch may take."""

_NO_MORE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN})
"""How the system says that a process has all the files and threads that it may have."""
_OF_THE_MACHINE: Final = frozenset({errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOMEM, errno.ENOBUFS})


@dataclass(frozen=True, kw_only=True)
class DownloadLimits:
    """How much of everything a fetch may take."""

    user_agent: str
    max_bytes: int = 20 << 20
    total_seconds: float = 15.0
    """For one url: resolving, connecting, redirects, retries and body together."""
    grace_seconds: float = 5.0
    min_bytes_per_second: int = 4096
    """Below it on average, once ``grace_seconds`` have passed, a body is given up."""
    num_connections: int = 64
    connections_per_host: int = 4
    num_retries: int = 2
    backoff_seconds: float = 0.5
    """Before the first retry; doubled for each that follows."""


class Downloader:
    """Fetches urls side by side, in a thread of its own, and hands their outcomes back in order.

    A context manager. ``resolver`` replaces the system's name resolution; what it answers is judged like any other answer.
    """

    def __init__(
        self,
        store: ContentStore,
        limits: DownloadLimits,
        policy: AddressPolicy,
        *,
        round: int = 1,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self.store, self.limits, self.policy, self.round = store, limits, policy, round
        self._resolver, self._log = resolver, RefusalLog()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="download", daemon=True)

    def __enter__(self) -> "Downloader":
        self._thread.start()
        self._submit(self._open()).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._submit(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._log.close()

    def fetch_in_order(self, urls: Iterable[str | None]) -> Iterator[Fetched | None]:
        """What each of ``urls`` gave, in their order; ``None`` for ``None``. A bounded number are ahead of what was taken.

        Raises :class:`TryAgain` when nobody answers.
        """
        ahead: deque[Future[Fetched | Unconfirmed] | None] = deque()
        most = _WAITING_PER_CONNECTION * self.limits.num_connections
        more = max(most, self._watch.max_hosts)
        for url in urls:
            ahead.append(None if url is None else self._submit(self._fetch(url)))
            # While the first waits to be confirmed, more are asked: by their answers it is.
            while len(ahead) >= most and (len(ahead) >= most + more or not self._is_in_doubt(ahead[0])):
                yield self._outcome(ahead.popleft())
        while ahead:
            yield self._outcome(ahead.popleft())

    def _is_in_doubt(self, future: "Future[Fetched | Unconfirmed] | None") -> bool:
        found = None if future is None else future.result()
        return isinstance(found, Unconfirmed) and self._watch.doubts(found)

    def _outcome(self, future: "Future[Fetched | Unconfirmed] | None") -> Fetched | None:
        found = None if future is None else future.result()
        if not isinstance(found, Unconfirmed):
            return found
        if self._watch.doubts(found):
            self._submit(self._watch.settle(found)).result()
        fetched = self.store.remember(found.fetched)
        self._held.pop(fetched.address, None)  # once it can be recalled
        return fetched

    def _submit(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _open(self) -> None:
        self._names = self._resolver or SystemResolver(num_threads=_RESOLVING_PER_CONNECTION * self.limits.num_connections)
        self._watch = NetworkWatch(self.store, self._answers, num_connections=self.limits.num_connections)
        self._held: dict[str, Unconfirmed] = {}
        self._session = self._new_session()
        self._connections = asyncio.Semaphore(self.limits.num_connections)
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._same: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def _new_session(self) -> aiohttp.ClientSession:
        limits = self.limits
        return open_session(
            user_agent=limits.user_agent, connections_per_host=limits.connections_per_host, resolver=self._names, policy=self.policy
        )

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()

    async def _fetch(self, url: str) -> Fetched | Unconfirmed:
        same = self._same.setdefault(url, asyncio.Lock())
        async with same:  # a url that occurs twice is asked for once
            known = self._held.get(url) or self.store.recall(url, round=self.round)
            if known is not None:
                return known
            host = self._hosts.setdefault(host_of(url), asyncio.Semaphore(self.limits.connections_per_host))
            # The host's turn first: rows that wait for a slow host then hold no connection from the others.
            with self._watch.fetching():
                async with host, self._connections:
                    try:
                        sha256 = await self._within_limits(url)
                    except RowRejectedError as rejected:
                        return self._failed(url, rejected)
            return self.store.remember(Fetched(url, sha256, None, self.round))

    def _failed(self, url: str, rejected: RowRejectedError) -> Fetched | Unconfirmed:
        # Which class a broken connection raises is chance: it is logged, and not remembered.
        if rejected.fault is not None:
            self._log.add(url, rejected.reason, rejected.fault)
        fetched = Fetched(url, None, rejected.reason, self.round)
        if rejected.reason not in LIKE_AN_OUTAGE:
            return self.store.remember(fetched)
        self._held[url] = held = self._watch.hold(fetched)
        return held

    async def _answers(self, url: str) -> bool:
        """Whether the host of ``url``, whatever it says, answers now by a new connection."""
        try:
            async with (
                asyncio.timeout(self.limits.total_seconds),
                self._new_session() as session,
                session.get(requested(url), allow_redirects=False),
            ):
                return True
        except (aiohttp.ClientError, OSError, ForbiddenAddressError, RowRejectedError) as error:
            _raise_if_of_the_machine(error)
            return False

    async def _within_limits(self, url: str) -> str:
        last: tuple[Reason, BaseException | None] = Reason.TIMED_OUT, None
        try:
            async with asyncio.timeout(self.limits.total_seconds):
                for attempt in range(self.limits.num_retries + 1):
                    try:
                        return await self._attempt(url)
                    except RowRejectedError as rejected:
                        last = rejected.reason, rejected.__cause__
                    if not _may_pass(*last) or attempt == self.limits.num_retries:
                        break
                    await asyncio.sleep(self.limits.backoff_seconds * 2**attempt)
        except TimeoutError:
            pass
        raise RowRejectedError(last[0]) from last[1]

    async def _attempt(self, url: str) -> str:
        try:
            return await self._follow(url)
        except ForbiddenAddressError as error:
            raise RowRejectedError(Reason.FORBIDDEN_ADDRESS) from error
        except aiohttp.ClientConnectorDNSError as error:
            _raise_if_of_the_machine(error)
            raise RowRejectedError(Reason.UNRESOLVED) from error
        except (aiohttp.InvalidURL, UnicodeError) as error:
            raise RowRejectedError(Reason.MALFORMED_URL) from error
        except aiohttp.ClientPayloadError as error:
            raise RowRejectedError(Reason.CUT_SHORT) from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):  # an OSError too: the clock's
                raise
            _raise_if_of_the_machine(error)
            raise RowRejectedError(Reason.UNREACHABLE) from error
        except (InputError, TryAgain):
            raise  # the stage's, not the host's
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            # What one host sends must not end the stage, whatever the libraries between make of it.
            raise RowRejectedError(Reason.UNREACHABLE) from error

    async def _follow(self, url: str) -> str:
        for _ in range(MAX_REDIRECTS + 1):
            asked, opened, num_failed = requested(url), list[None](), self._watch.num_failed
            async with self._session.get(asked, allow_redirects=False, trace_request_ctx=opened) as response:
                if opened:
                    self._watch.prove(url, num_failed=num_failed)
                if opted_out(response.headers.getall("X-Robots-Tag", ())):
                    raise RowRejectedError(Reason.OPTED_OUT)
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or location is None:
                    return await self._body(response)
                url = redirected(asked, location)
        raise RowRejectedError(Reason.TOO_MANY_REDIRECTS)

    async def _body(self, response: aiohttp.ClientResponse) -> str:
        if response.status != 200:
            raise RowRejectedError(_reason_of_status(response.status))
        if (response.content_length or 0) > self.limits.max_bytes:
            raise RowRejectedError(Reason.TOO_LARGE)
        start, grace = asyncio.get_running_loop().time(), self.limits.grace_seconds
        try:
            with self.store.incoming() as incoming:
                async with asyncio.timeout_at(start + grace) as patience:
                    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                        incoming.write(chunk)
                        if incoming.num_bytes > self.limits.max_bytes:
                            raise RowRejectedError(Reason.TOO_LARGE)
                        if len(incoming.head) == HEAD_BYTES and not looks_like_image(incoming.head):
                            raise RowRejectedError(Reason.UNKNOWN_FORMAT)  # the rest of a web page or a film is not wanted
                        patience.reschedule(start + grace + incoming.num_bytes / self.limits.min_bytes_per_second)
        except TimeoutError as error:
            raise RowRejectedError(Reason.TOO_SLOW) from error
        return incoming.state.hexdigest()


def _may_pass(reason: Reason, cause: BaseException | None) -> bool:
    """Whether another attempt may undo ``reason``: of names, what the name server itself calls a temporary failure."""
    if reason is Reason.UNRESOLVED:
        return getattr(cause, "errno", None) == socket.EAI_AGAIN
    return reason in _PASSING


def _raise_if_of_the_machine(error: Exception) -> None:
    """Raise if no host is at fault for ``error`` but a disk, or a limit of this process: every row after it would be lost for it."""
    number = getattr(error, "errno", None)
    if number in _NO_MORE:
        raise InputError(
            f"this process may have no more files or threads ({os.strerror(number)}): allow it more (ulimit -n, ulimit -u, a pod's limit "
            "of processes), or lower sharding.download.num_connections"
        ) from error
    if number in _OF_THE_MACHINE or is_disk_full(error) or getattr(error, "filename", None) is not None:
        raise error


def _reason_of_status(status: int) -> Reason:
    if status in (404, 410):
        return Reason.GONE
    if status in (401, 403, 451):
        return Reason.REFUSED
    if status in (408, 425, 429):
        return Reason.HOST_BUSY
    return Reason.SERVER_ERROR if status >= 500 else Reason.UNEXPECTED_ANSWER
