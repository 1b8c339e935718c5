import errno
import resource
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rglcd.errors import InputError
from rglcd.sharding.accounting import Reason
from rglcd.sharding.addresses import AddressPolicy
from rglcd.sharding.content_store import ContentStore, Fetched
from rglcd.sharding.download import Downloader, DownloadLimits
from rglcd.sharding.robots_tag import OPT_OUT, opted_out
from tests.faults.watched_process import run_forked
from tests.sharding.hostile_server import FORBIDDEN, FORBIDDEN_SPELLINGS, OPEN, HostileServer, Rebinding, picture_bytes

LIMITS = DownloadLimits(
    user_agent="test-robot", max_bytes=200_000, total_seconds=1.5, grace_seconds=0.3, min_bytes_per_second=10_000, backoff_seconds=0.01
)
POLICY = AddressPolicy.parse([f"{OPEN}/32"])


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "store")


def fetch(
    store: ContentStore, *urls: str, limits: DownloadLimits = LIMITS, round: int = 1, policy: AddressPolicy = POLICY
) -> list[Fetched]:
    with Downloader(store, limits, policy, round=round) as downloader:
        found = list(downloader.fetch_in_order(urls))
    assert all(fetched is not None for fetched in found)
    return [fetched for fetched in found if fetched is not None]


def reason_of(store: ContentStore, url: str) -> Reason | None:
    (fetched,) = fetch(store, url)
    assert fetched.address == url
    return fetched.reason


def test_bytes_arrive_whole_and_in_the_order_asked_for(server: HostileServer, store: ContentStore) -> None:
    seeds = [*range(40), 3, 3, 7]
    found = fetch(store, *(server.url(f"image/{seed}") for seed in seeds))
    assert [store.read(fetched.sha256 or "") for fetched in found] == [picture_bytes(seed) for seed in seeds]
    assert all(server.requests[f"image/{seed}"] == 1 for seed in range(40))


def test_rows_without_a_url_stay_without_an_answer(store: ContentStore) -> None:
    with Downloader(store, LIMITS, POLICY) as downloader:
        assert list(downloader.fetch_in_order([None, None])) == [None, None]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("status/404", Reason.GONE),
        ("status/410", Reason.GONE),
        ("status/403", Reason.REFUSED),
        ("status/429", Reason.HOST_BUSY),
        ("status/500", Reason.SERVER_ERROR),
        ("status/206", Reason.UNEXPECTED_ANSWER),
        ("status/204", Reason.UNEXPECTED_ANSWER),
        ("redirect/4", Reason.TOO_MANY_REDIRECTS),
        ("tag/noai", Reason.OPTED_OUT),
        ("tag/all, NoImageAI", Reason.OPTED_OUT),
        ("page", Reason.UNKNOWN_FORMAT),
        ("announced-giant", Reason.TOO_LARGE),
        ("endless", Reason.TOO_LARGE),
        ("gzip", Reason.UNKNOWN_FORMAT),
        ("drip", Reason.TOO_SLOW),
    ],
)
def test_each_fault_of_a_server_has_its_reason(server: HostileServer, store: ContentStore, path: str, reason: Reason) -> None:
    started = time.monotonic()
    assert reason_of(store, server.url(path)) == reason
    assert time.monotonic() - started < LIMITS.total_seconds + 1
    assert list((store.folder / "objects").glob("*/*")) == []
    assert list((store.folder / "incoming").glob("*")) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("truncated", Reason.CUT_SHORT),
        ("bad-length", Reason.UNREACHABLE),
        ("garbage", Reason.UNREACHABLE),
        ("endless-headers", Reason.UNREACHABLE),
        ("reset", Reason.UNREACHABLE),
        ("silent", Reason.TIMED_OUT),
    ],
)
def test_answers_that_are_not_http_have_their_reason(server: HostileServer, store: ContentStore, path: str, reason: Reason) -> None:
    started = time.monotonic()
    assert reason_of(store, f"http://{OPEN}:{server.raw_port}/{path}") == reason
    assert time.monotonic() - started < LIMITS.total_seconds + 1


def test_what_broke_a_connection_is_logged_and_a_flood_of_it_is_counted(
    server: HostileServer, store: ContentStore, caplog: pytest.LogCaptureFixture
) -> None:
    urls = [f"http://{OPEN}:{server.raw_port}/garbage/{number}" for number in range(5)]
    with Downloader(store, LIMITS, POLICY) as downloader:
        fetched = list(downloader.fetch_in_order(urls))
    lines = [record.getMessage() for record in caplog.records]
    assert {answer.reason for answer in fetched if answer is not None} == {Reason.UNREACHABLE}, lines
    assert len(lines) == 4
    assert all(line.partition(": unreachable: ")[0] in urls for line in lines[:3])
    assert lines[3].startswith("unreachable: aiohttp.")
    assert lines[3].endswith(": and 2 more")


@pytest.mark.parametrize("path", ["redirect/3", "tag/googlebot: noai", "cookie", "flaky"])
def test_redirects_cookies_tags_and_passing_faults_are_no_failure(server: HostileServer, store: ContentStore, path: str) -> None:
    assert reason_of(store, server.url(path)) is None


@pytest.mark.parametrize(
    "spelling",
    [
        "a%2Fb%3A%7E%28.jpg?u=http%3A%2F%2Fx%2Fy&fit=1024%2C768&sig=a%2Bb%3D",
        "%c3%a9.jpg?x=%c3",
        "a+b;c=1/(1),2'!*$@:~.jpg?q=[1]|^&r=",
        "100%.jpg?50%&%zz",
        "a//b///c.jpg",
    ],
)
def test_a_url_is_asked_for_as_it_is_written(server: HostileServer, store: ContentStore, spelling: str) -> None:
    """Hosts sign or compare the spelling, as urllib and browsers send it; it was decoded and written anew, and refused with 403."""
    server.requests.clear()
    assert reason_of(store, f"http://{OPEN}:{server.raw_port}/spelt/{spelling}#part") is None
    assert server.requests == {f"spelt/{spelling}": 1}


@pytest.mark.parametrize(
    ("written", "asked"), [("a b.jpg", "a%20b.jpg"), ("é.jpg?é", "%C3%A9.jpg?%C3%A9"), ('"<>`{}.jpg', "%22%3C%3E%60%7B%7D.jpg")]
)
def test_what_no_request_may_hold_is_spelt_as_browsers_do(server: HostileServer, store: ContentStore, written: str, asked: str) -> None:
    server.requests.clear()
    assert reason_of(store, f"http://{OPEN}:{server.raw_port}/spelt/{written}") is None
    assert server.requests == {f"spelt/{asked}": 1}


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("to-latin-1", "spelt/caf%E9.jpg"),
        ("to-utf-8", "spelt/caf%C3%A9.jpg"),
        ("to-signed", "spelt/a%2Fb?sig=x%2By%3D&w=1%2C2"),
        ("to-blank", "spelt/a%20b.jpg"),
    ],
)
def test_a_redirect_is_followed_by_its_own_bytes(server: HostileServer, store: ContentStore, path: str, asked: str) -> None:
    server.requests.clear()
    assert reason_of(store, f"http://{OPEN}:{server.raw_port}/{path}") is None
    assert server.requests == {path: 1, asked: 1}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("to-bracket", Reason.MALFORMED_URL),
        ("to-port", Reason.MALFORMED_URL),
        ("to-nothing", Reason.TOO_MANY_REDIRECTS),
    ],
)
def test_a_redirect_that_is_no_url_is_its_rows_reason(server: HostileServer, store: ContentStore, path: str, reason: Reason) -> None:
    """One of them ended the stage: ValueError: Invalid IPv6 URL."""
    assert reason_of(store, f"http://{OPEN}:{server.raw_port}/{path}") == reason


def test_headers_of_real_hosts_may_be_long_and_many(server: HostileServer, store: ContentStore) -> None:
    assert reason_of(store, f"http://{OPEN}:{server.raw_port}/long-headers") is None


def test_names_that_are_resolved_slowly_hold_up_no_other_and_not_the_end(
    server: HostileServer, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They took the places of a pool of threads, one for each connection, and the process waited for them."""
    resolve, released = socket.getaddrinfo, threading.Event()

    def slow(host: str, *others: Any, **options: Any) -> Any:
        if host.startswith("dead"):
            released.wait(60)
            raise socket.gaierror("no answer")
        return resolve(OPEN, *others, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    limits = replace(LIMITS, total_seconds=1.0, num_connections=2)
    urls = [f"http://dead-{number}.example/x.png" for number in range(4)] + [
        f"http://alive.example:{server.port}/image/{n}" for n in (1, 2)
    ]
    with Downloader(store, limits, POLICY) as downloader:
        found = [fetched.reason for fetched in downloader.fetch_in_order(urls) if fetched is not None]
    assert found == [Reason.TIMED_OUT] * 4 + [None] * 2
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "resolve")
    released.set()


def test_cookies_are_not_kept(server: HostileServer, store: ContentStore) -> None:
    assert [fetched.reason for fetched in fetch(store, server.url("cookie/a"), server.url("cookie/b"))] == [None, None]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", Reason.FORBIDDEN_SCHEME),
        ("ftp://example.com/a", Reason.FORBIDDEN_SCHEME),
        ("http:///nothing", Reason.MALFORMED_URL),
        ("http://[::1", Reason.MALFORMED_URL),
        ("http://a b/", Reason.UNRESOLVED),
        ("http://host:notaport/", Reason.MALFORMED_URL),
        ("http://host.invalid/", Reason.UNRESOLVED),
        (f"http://{OPEN}:1/closed", Reason.UNREACHABLE),
    ],
)
def test_malformed_and_unreachable_urls_have_their_reason(store: ContentStore, url: str, reason: Reason) -> None:
    assert reason_of(store, url) == reason


@pytest.mark.parametrize("host", FORBIDDEN_SPELLINGS)
@pytest.mark.parametrize("way", ["directly", "by redirect"])
def test_no_spelling_of_a_url_reaches_a_forbidden_address(server: HostileServer, store: ContentStore, host: str, way: str) -> None:
    url = f"http://{host}:{server.forbidden_port}/secret"
    if way == "by redirect":
        url = server.url(f"redirect-to?url={quote(url, safe='')}")
    refused = (Reason.FORBIDDEN_ADDRESS, Reason.MALFORMED_URL, Reason.UNRESOLVED)
    assert reason_of(store, url) in refused
    assert server.intrusions == 0


@pytest.mark.parametrize("url", ["file:///etc/passwd", "gopher://127.0.0.1/", "data:image/png;base64,AA"])
def test_a_redirect_to_another_scheme_is_refused(server: HostileServer, store: ContentStore, url: str) -> None:
    assert reason_of(store, server.url(f"redirect-to?url={quote(url, safe='')}")) == Reason.FORBIDDEN_SCHEME


def test_a_rebound_host_name_is_judged_at_each_connection(server: HostileServer, store: ContentStore) -> None:
    """The first answer is an allowed address where nothing listens; the retry's answers lead inside."""
    resolver = Rebinding(["127.0.0.2"], [FORBIDDEN], ["10.0.0.1"])
    with Downloader(store, LIMITS, POLICY, resolver=resolver) as downloader:
        (fetched,) = downloader.fetch_in_order([f"http://rebinding.example:{server.forbidden_port}/"])
    assert fetched is not None
    assert fetched.reason == Reason.FORBIDDEN_ADDRESS
    assert resolver.asked == 2
    assert server.intrusions == 0


def test_private_addresses_are_forbidden_by_default(server: HostileServer, store: ContentStore) -> None:
    (fetched,) = fetch(store, server.url("image/0"), policy=AddressPolicy())
    assert fetched.reason == Reason.FORBIDDEN_ADDRESS


def test_temporary_faults_are_retried_and_permanent_ones_are_not(server: HostileServer, store: ContentStore) -> None:
    fetch(store, server.url("flaky/x"), server.url("status/503"), server.url("status/404/once"))
    assert server.requests["flaky/x"] == 2
    assert server.requests["status/503"] == LIMITS.num_retries + 1
    assert server.requests["status/404/once"] == 1


def test_no_host_is_asked_for_more_than_its_share_at_a_time(store: ContentStore) -> None:
    with HostileServer() as server:
        limits = DownloadLimits(user_agent="x", num_connections=16, connections_per_host=3)
        found = fetch(store, *(server.url(f"slow-image/{seed}") for seed in range(24)), limits=limits)
        assert all(fetched.reason is None for fetched in found)
        assert server.most_open == 3


def test_requests_carry_the_user_agent(server: HostileServer, store: ContentStore) -> None:
    fetch(store, server.url("agent"))
    assert server.agents == [LIMITS.user_agent]


def test_a_second_run_makes_no_request(server: HostileServer, store: ContentStore) -> None:
    urls = [server.url("image/99"), server.url("status/404/again"), f"http://{FORBIDDEN}:{server.forbidden_port}/"]
    first = fetch(store, *urls)
    asked = server.requests.copy()
    assert fetch(store, *urls) == first
    assert server.requests == asked


def test_a_new_round_requests_only_what_failed(server: HostileServer, store: ContentStore) -> None:
    urls = [server.url("image/98"), server.url("status/404/rounds")]
    fetch(store, *urls)
    fetch(store, *urls, round=2)
    assert (server.requests["image/98"], server.requests["status/404/rounds"]) == (1, 2)
    fetch(store, *urls, round=1)
    assert server.requests["status/404/rounds"] == 2


def test_a_damaged_object_is_fetched_again(server: HostileServer, store: ContentStore) -> None:
    (fetched,) = fetch(store, server.url("image/97"))
    assert fetched.sha256 is not None
    store.path(fetched.sha256).write_bytes(b"damaged")
    assert store.read(fetched.sha256) is None
    assert fetch(store, server.url("image/97")) == [fetched]
    assert store.read(fetched.sha256) == picture_bytes(97)


def test_endless_bodies_side_by_side_cost_no_memory(server: HostileServer, store: ContentStore) -> None:
    limits = DownloadLimits(user_agent="x", max_bytes=8 << 20, total_seconds=10, num_connections=16, connections_per_host=16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = fetch(store, *(server.url(f"endless/{number}") for number in range(16)), limits=limits)
    assert {fetched.reason for fetched in found} == {Reason.TOO_LARGE}
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 100  # server and client both live in this process; the bodies are 128 MiB


@pytest.mark.parametrize(
    ("tags", "out"),
    [
        ([], False),
        (["all"], False),
        (["noai"], True),
        (["NOINDEX, nofollow"], True),
        (["nofollow", "noimageai"], True),
        (["googlebot: noindex"], False),
        (["googlebot: noindex, noai"], False),
        (["rglcd: noai"], True),
        (["rglcd: nofollow"], False),
        (["*: noimageindex"], True),
        (["noai, unavailable_after: 25 Jun 2010 15:00:00 PST"], True),
        (["max-snippet: 5, noai"], True),
        (["noairport"], False),
    ],
)
def test_x_robots_tag_opts_an_image_out(tags: list[str], out: bool) -> None:
    assert opted_out(tags) is out


@given(st.lists(st.text()))
def test_any_x_robots_tag_can_be_parsed(tags: list[str]) -> None:
    assert opted_out([*tags, sorted(OPT_OUT)[0]])


def test_a_process_without_more_files_says_so_and_loses_no_row(server: HostileServer, tmp_path: Path) -> None:
    """As `ulimit -n` has it where more connections are asked for: it was an unexpected error."""
    urls = [server.url(f"image/{seed}") for seed in range(300, 340)]
    limits = replace(LIMITS, total_seconds=10, num_connections=40, connections_per_host=40)

    def with_few_files() -> str | list[Reason | None]:
        in_use = len(list(Path("/proc/self/fd").iterdir()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 16, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        try:
            return [fetched.reason for fetched in fetch(ContentStore(tmp_path), *urls, limits=limits)]
        except InputError as refused:
            return str(refused)

    said = run_forked(with_few_files).value
    assert "may have no more files or threads (Too many open files): allow it more (ulimit -n" in str(said)
    assert not [path for path in tmp_path.glob("records/*/*.json") if '"reason": "' in path.read_text()]
    assert [fetched.reason for fetched in fetch(ContentStore(tmp_path), *urls, limits=limits)] == [None] * 40


def test_a_process_without_more_threads_says_so(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a pod with a limit of processes: each row after it was `unreachable`, and remembered so."""
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "resolve":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(InputError, match=r"may have no more files or threads .* lower sharding\.download\.num_connections"):
        fetch(store, "http://host.example/a.jpg")
    assert not list(store.folder.glob("records/*/*.json"))


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES])
def test_a_failing_disk_is_no_hosts_fault(server: HostileServer, store: ContentStore, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The row was `unreachable`; with a disk that is back, it stayed so."""
    mkdir = Path.mkdir

    def refused(path: Path, *arguments: Any, **named: Any) -> None:
        if path.name == "incoming":
            raise OSError(number, "said so", str(path))
        mkdir(path, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refused)
        with pytest.raises(OSError, match="said so"):
            fetch(store, server.url("image/350"))
    assert reason_of(store, server.url("image/350")) is None


def test_a_name_servers_temporary_failure_is_tried_again(
    server: HostileServer, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, resolve = list[str](), socket.getaddrinfo

    def failing(host: str, *others: Any, **options: Any) -> Any:
        asked.append(host)
        if host == "none.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if asked.count(host) < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve(OPEN, *others, **options)

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    assert reason_of(store, f"http://busy.example:{server.port}/image/360") is None
    assert reason_of(store, "http://none.example/image/360") == Reason.UNRESOLVED
    assert (asked.count("busy.example"), asked.count("none.example")) == (3, 1)
