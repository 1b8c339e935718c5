"""Whether hosts are gone, or our own network is away: that nobody answers then is no host's fault, and costs no row.

A url that gave no whole answer is not believed at once. It is held back, by which nothing else waits, until a host answers by a
connection that was opened after it: names are resolved, and packets come and go. An answer by a connection that was there says neither,
since a name server that fails, or a gateway that lets no more connections out, leaves those alone. If nobody answers for a while, or
nobody is left to ask, one that answered before is asked again, which tells a list that ends with dead hosts from an outage. Who answered
is known of this process or, after a restart in the midst of an outage, of the content store.

Where no host is known that ever answered, a short list of dead hosts is what it seems to be, and many different hosts without one
answer in between are an outage: more than can be dead by chance, and more than all connections can wait for at once.

An outage that is over before it is noticed costs what failed in it, at most some rows for each connection.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from rglcd.errors import TryAgain
from rglcd.sharding.accounting import Reason
from rglcd.sharding.content_store import ContentStore, Fetched
from rglcd.sharding.urls import host_of

LIKE_AN_OUTAGE: Final = frozenset({Reason.UNRESOLVED, Reason.UNREACHABLE, Reason.TIMED_OUT, Reason.TOO_SLOW, Reason.CUT_SHORT})
"""Reasons that an outage of our own network gives, whatever the host."""

_NUM_WITNESSES: Final = 3
_PATIENCE_SECONDS: Final = 2.0
"""So long others may take to answer before one that did is asked again."""
_FEW_URLS: Final = 10
"""So few failures say nothing where no host has answered this process."""
_MIN_HOSTS: Final = 100
_SHOWN_LETTERS: Final = 60


@dataclass(frozen=True)
class Unconfirmed:
    """A failure that an outage would give too; ``number`` counts them as they end."""

    fetched: Fetched
    number: int


class NetworkWatch:
    """Who answers, and who does not since. Lives in one event loop; ``ask`` says whether the host of a url answers now."""

    def __init__(self, store: ContentStore, ask: Callable[[str], Awaitable[bool]], *, num_connections: int) -> None:
        self._ask, self.max_hosts = ask, max(_MIN_HOSTS, 2 * num_connections)
        self.num_failed, self._num_settled, self._num_fetches = 0, 0, 0
        self._silent: deque[str] = deque()
        """The hosts of the last failures, since which nobody is known to have answered."""
        self._witnesses = {host_of(url): url for url in store.addresses_that_gave(_NUM_WITNESSES)}
        """A url of each of the last hosts that answered, an earlier process as yet."""
        self._has_answer = False
        self._changed = asyncio.Event()

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """A fetch is under way, whose answer may be a proof."""
        self._num_fetches += 1
        try:
            yield
        finally:
            self._num_fetches -= 1
            self._tell()

    def prove(self, url: str, *, num_failed: int) -> None:
        """The host of ``url`` answered by a new connection, which was opened when so many had failed."""
        host, self._has_answer = host_of(url), True
        self._witnesses.pop(host, None)
        self._witnesses[host] = url
        if len(self._witnesses) > _NUM_WITNESSES:
            del self._witnesses[next(iter(self._witnesses))]
        while self.num_failed - len(self._silent) < num_failed:
            self._silent.popleft()
        self._num_settled = max(self._num_settled, num_failed)
        self._tell()

    def hold(self, failed: Fetched) -> Unconfirmed:
        """What :meth:`settle` decides of ``failed``, which just ended."""
        self._silent.append(host_of(failed.address))
        self.num_failed += 1
        return Unconfirmed(failed, self.num_failed)

    def doubts(self, held: Unconfirmed) -> bool:
        """Whether it is not known yet that the network was there after ``held``. For any thread."""
        return held.number > self._num_settled

    async def settle(self, held: Unconfirmed) -> None:
        """Wait until ``held`` is known to be its host's fault. Raises :class:`TryAgain` when it is our network's."""
        await self._wait_until(lambda: not self.doubts(held) or self._may_ask() or self._are_too_many())
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._wait_until(lambda: not self.doubts(held))
        asked = list(reversed(self._witnesses.values())) if self._may_ask() else []
        for url in asked:
            num_failed = self.num_failed
            if self.doubts(held) and await self._ask(url):
                self.prove(url, num_failed=num_failed)
        if not self.doubts(held):
            return
        if asked or self._are_too_many():
            raise TryAgain(self._said([host_of(url) for url in asked]))
        self._num_settled = self.num_failed  # all that is held, so that none of it waits once more; who is silent stays silent

    def _may_ask(self) -> bool:
        return bool(self._witnesses) and (self._has_answer or len(self._silent) >= _FEW_URLS)

    def _are_too_many(self) -> bool:
        return len(set(self._silent)) >= self.max_hosts

    async def _wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait for it, or until no fetch is under way."""
        while self._num_fetches and not is_so():
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _said(self, asked: list[str]) -> str:
        names = ", ".join(ascii(host[:_SHOWN_LETTERS])[1:-1] for host in asked)
        also = f"and {names}, which did before" if asked else "from the first on"
        return (
            f"nobody answers: {len(self._silent):,} urls of {len(set(self._silent)):,} hosts in a row, {also}. It seems to be this "
            "machine's network, a firewall or a name server (proxies are not used). No row is given up for it: run the same command again; "
            "rows of hosts that are gone for good can be left out of the index"
        )
