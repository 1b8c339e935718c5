"""Fixtures for every test that talks to a control plane, wherever it lies."""

from collections.abc import Iterator

import pytest

from tests.cluster.control_plane import Cluster, UnavailableError, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real API server, controller manager and scheduler, with Volcano's definitions; one for the whole session."""
    try:
        context = running_cluster()
        started = context.__enter__()
    except UnavailableError as missing:
        pytest.exit(f"cluster tests: {missing}", returncode=2)
    try:
        yield started
    finally:
        context.__exit__(None, None, None)
