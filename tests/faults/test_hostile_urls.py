"""F7: two hundred urls that lead where they must not, or to hostile servers."""

import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from rglcd.config import WebDownload
from rglcd.sharding.accounting import Reason
from rglcd.sharding.addresses import AddressPolicy
from rglcd.sharding.content_store import ContentStore
from rglcd.sharding.download import Downloader
from rglcd.stages.shard import limits_of
from tests.faults.rounds import Trial, evenly
from tests.sharding.hostile_server import FORBIDDEN, FORBIDDEN_SPELLINGS, OPEN, HostileServer, Rebinding

_NUM_URLS = 200
_SECONDS_OVER = 1.0
_IN_FLIGHT = 12 << 20
"""What two kernels' buffers may hold of a body that nobody reads any more."""

_LIMITS = limits_of(WebDownload())

_REFUSED = frozenset({Reason.FORBIDDEN_ADDRESS, Reason.MALFORMED_URL, Reason.UNRESOLVED})
_PRIVATE = (
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.254", "192.168.0.1", "192.168.1.254", "127.0.0.53", "127.255.255.254"),
    *("169.254.169.254", "100.64.0.1", "0.0.0.0", "0.1.2.3", "192.0.0.170", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.9"),
    *("224.0.0.1", "240.0.0.1", "255.255.255.255", "3232235521", "0xc0a80001", "0300.0250.0.1", "192.168.257", "2852039166"),
    *("[::]", "[::1]", "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[::ffff:10.0.0.1]", "[::ffff:a9fe:a9fe]", "[2002:7f00:1::]"),
    *("[2002:a00:1::1]", "[2001:0:7f00:1::1]", "[64:ff9b::7f00:1]", "[ff02::1]", "[2001:db8::1]", "[::127.0.0.1]"),
)
_SCHEMES = ("file:///etc/passwd", "ftp://example.com/a", "gopher://127.0.0.1/", "data:image/png;base64,AA", "javascript:1", "s3://b/k")


@dataclass(frozen=True)
class Url:
    """A url, what may become of it (``None``: an image), and, for a name, the addresses it resolves to, one answer after another."""

    url: str
    allowed: frozenset[Reason | None]
    answers: tuple[list[str], ...] = ()


def _urls(server: HostileServer) -> list[Url]:
    inside, raw = f":{server.forbidden_port}/secret", f"http://{OPEN}:{server.raw_port}/"
    spelled = [f"http://{host}{inside}" for host in FORBIDDEN_SPELLINGS]
    private = [f"http://{host}{inside}" for host in _PRIVATE]
    urls = [Url(url, _REFUSED) for url in (*spelled, *private)]
    urls += [Url(_redirect(server, url), _REFUSED) for url in (*spelled, *private)]
    urls += [Url(url, frozenset({Reason.FORBIDDEN_SCHEME})) for url in _SCHEMES]
    urls += [Url(_redirect(server, url), frozenset({Reason.FORBIDDEN_SCHEME})) for url in _SCHEMES]
    for number in range(12):  # the first answer is an allowed address where nothing listens; the retry's lead inside
        first = [[OPEN], [OPEN, FORBIDDEN], ["10.0.0.1"], [FORBIDDEN]][number % 4]
        answers = (first, [FORBIDDEN], ["169.254.169.254"])
        urls.append(Url(f"http://rebinding-{number}.example{inside}", frozenset({Reason.FORBIDDEN_ADDRESS}), answers))
    hops = {**dict.fromkeys(range(1, 4)), **dict.fromkeys((4, 5, 9, 30), Reason.TOO_MANY_REDIRECTS)}
    urls += [Url(server.url(f"redirect/{count}"), frozenset({reason})) for count, reason in hops.items()]
    urls += [Url(server.url(f"status/{status}"), frozenset({reason})) for status, reason in _STATUSES.items()]
    urls += [Url(server.url(path), frozenset({reason})) for path, reason in _BODIES.items()]
    urls += [Url(raw + path, frozenset({reason})) for path, reason in _NOT_HTTP.items()]
    urls += [Url(url, frozenset({reason})) for url, reason in _MALFORMED.items()]
    urls += [Url(server.url(f"tag/{tag}"), frozenset({Reason.OPTED_OUT})) for tag in ("noai", "noindex, nofollow", "rglcd: noai")]
    urls += [Url(server.url(f"cookie/{number}"), frozenset({None})) for number in range(4)]
    more = _NUM_URLS - len(urls)
    return urls + [Url(server.url(f"{'drip' if number % 2 else 'endless'}/{number}"), _of_streams(number)) for number in range(more)]


_STATUSES = {404: Reason.GONE, 410: Reason.GONE, 403: Reason.REFUSED, 451: Reason.REFUSED, 429: Reason.HOST_BUSY, 500: Reason.SERVER_ERROR}
_BODIES = {
    "announced-giant": Reason.TOO_LARGE,
    "endless": Reason.TOO_LARGE,
    "drip": Reason.TOO_SLOW,
    "gzip": Reason.UNKNOWN_FORMAT,
    "page": Reason.UNKNOWN_FORMAT,
    "status/206": Reason.UNEXPECTED_ANSWER,
}
_NOT_HTTP = {
    "truncated": Reason.CUT_SHORT,
    "bad-length": Reason.UNREACHABLE,
    "garbage": Reason.UNREACHABLE,
    "endless-headers": Reason.UNREACHABLE,
    "reset": Reason.UNREACHABLE,
    "silent": Reason.TIMED_OUT,
}
_MALFORMED = {
    "http:///nothing": Reason.MALFORMED_URL,
    "http://[::1": Reason.MALFORMED_URL,
    "http://host:notaport/": Reason.MALFORMED_URL,
    "http://host.invalid/": Reason.UNRESOLVED,
}


def _of_streams(number: int) -> frozenset[Reason | None]:
    return frozenset({Reason.TOO_SLOW if number % 2 else Reason.TOO_LARGE})


def _redirect(server: HostileServer, url: str) -> str:
    return server.url(f"redirect-to?url={quote(url, safe='')}")


@dataclass
class _Connections:
    """Every address that a socket of this process is connected to, while it watches. An audit hook cannot be taken back."""

    to: list[str] = field(default_factory=list)
    watches: bool = True

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and self.watches and isinstance(arguments[1], tuple):
            self.to.append(str(arguments[1][0]))


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


@pytest.fixture(scope="module")
def urls(server: HostileServer, fault_seed: int) -> list[Url]:
    """All urls, in an order of the seed."""
    urls = _urls(server)
    return random.Random(fault_seed).sample(urls, len(urls))


@pytest.fixture(scope="module")
def connections() -> Iterator[_Connections]:
    connections = _Connections()
    sys.addaudithook(connections)
    yield connections
    connections.watches = False


@pytest.mark.slow
@pytest.mark.fault(
    "F7",
    fault="200 urls: private addresses in every spelling, rebinding, redirects, other schemes, drips, endless bodies, bombs, broken HTTP",
    must="no connection but to the allowed address, each within 16 s and 20 MB, each with a reason of its kind",
    unit="urls",
    num_rounds=_NUM_URLS,
    sample=evenly(40, of=_NUM_URLS),
)
def test_hostile_url_has_its_reason_and_connects_to_nothing_forbidden(
    trial: Trial, server: HostileServer, urls: list[Url], connections: _Connections, tmp_path: Path
) -> None:
    asked, store = urls[trial.number], ContentStore(tmp_path / "store")
    resolver = Rebinding(*asked.answers) if asked.answers else None
    connections.to.clear()
    sent_before = server.bytes_sent
    with Downloader(store, _LIMITS, AddressPolicy.parse([f"{OPEN}/32"]), resolver=resolver) as downloader:
        started = time.perf_counter()
        (fetched,) = downloader.fetch_in_order([asked.url])
        seconds = time.perf_counter() - started
    assert fetched is not None
    said = asked.url
    for port in (server.port, server.forbidden_port, server.raw_port):
        said = said.replace(str(port), "PORT")
    reached = sorted({address for address in connections.to if address != OPEN})
    assert not reached, f"{said}: connected to {', '.join(reached)}"
    assert server.intrusions == 0, f"{said}: reached the forbidden listener"
    assert seconds <= _LIMITS.total_seconds + _SECONDS_OVER, f"{said}: took {seconds:.1f} s"
    assert fetched.reason in asked.allowed, f"{said}: became {fetched.reason}"
    kept = sum(path.stat().st_size for path in (store.folder / "objects").rglob("*") if path.is_file())
    assert kept <= _LIMITS.max_bytes, f"{said}: kept {kept} bytes"
    sent = server.bytes_sent - sent_before
    assert sent <= _LIMITS.max_bytes + _IN_FLIGHT, f"{said}: {sent} bytes were taken"
    trial.record(f"{said}: {fetched.reason or 'an image'} in {seconds:.1f} s")
