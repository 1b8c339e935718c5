"""Shared fixtures: golden files (``pytest --update-golden``) and object stores on loopback."""

import inspect
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

from tests.object_store import CREDENTIALS, FaultProxy, open_bucket, start_object_store
from tests.other_stores import OtherStore

# The control plane is shared: tests of the launcher and of the manifests ask for it by name. Fault rows have options of their own.
pytest_plugins = ["tests.cluster.fixtures", "tests.faults.rounds"]

# A busy machine is no reason for a property to fail.
settings.register_profile("rglcd", deadline=None)
settings.load_profile("rglcd")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing with them")


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``check_golden(name, text)``: ``text`` equals ``tests/golden/<name>``."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; pytest --update-golden writes it"
        assert text == path.read_text(encoding="utf-8"), f"{name} has changed; if that is meant: pytest --update-golden"

    return check


def pytest_configure() -> None:
    """Heed SIGINT, and children with it, as from a terminal: a shell starts what runs in its background without."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a seventh of the suite's time is spent waiting, for time-outs, locks and children."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session", autouse=True)
def stacks_without_sources() -> Iterator[None]:
    """kfp looks up its caller's name fifty times a pipeline, each time with the sources of all frames: below pytest that takes 4 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", partial(inspect.stack, context=0))
        yield


# --- object stores -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 API on loopback, for the whole session."""
    server, endpoint = start_object_store()
    yield endpoint
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://NAME`` of an empty bucket of this test's own; the environment says where."""
    return _open_bucket(s3_endpoint, s3_endpoint, monkeypatch)


@pytest.fixture
def faulty_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, FaultProxy]]:
    """The same behind a proxy with no fault yet: set its rates."""
    proxy = FaultProxy(s3_endpoint)
    yield _open_bucket(proxy.endpoint, s3_endpoint, monkeypatch), proxy
    proxy.close()


def _open_bucket(endpoint: str, upstream: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    return open_bucket(upstream)


@pytest.fixture
def other_store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, OtherStore]]:
    """The same behind a proxy that answers as another kind of store would: give it its differences."""
    store = OtherStore(s3_endpoint)
    yield _open_bucket(store.endpoint, s3_endpoint, monkeypatch), store
    store.close()
