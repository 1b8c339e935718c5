"""Fixtures for every test that talks to a control plane, wherever it lies."""

from collections.abc import Iterator

import pytest

from tests.cluster.control_plane import Cluster, UnavailableError, running_cluster
from tests.cluster.node import CPU_MACHINE, GPU_MACHINES, NodeAgent, process_environment
from tests.cluster.volcano import VolcanoStandIn


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


@pytest.fixture(scope="session")
def namespace(cluster: Cluster) -> str:
    """A namespace with what a job refers to: queue, priorities, the pods' account."""
    name = "rglcd"
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
        {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": {"name": "rglcd"}, "spec": {"weight": 1}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "rglcd-stage", "namespace": name}},
        *(
            {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": word}, "value": value}
            for word, value in (("rglcd-training", 1000), ("rglcd-evaluation", 2000))
        ),
    ]
    for manifest in objects:
        cluster.apply(manifest)
    return name


@pytest.fixture(scope="session")
def nodes(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, NodeAgent]]:
    """Three stand-ins for machines: two tainted ones with eight A100 each, and one without GPUs."""
    folder = tmp_path_factory.mktemp("nodes")
    agents = {
        machine.name: NodeAgent(cluster, machine, folder / machine.name, environment=process_environment())
        for machine in (*GPU_MACHINES, CPU_MACHINE)
    }
    for agent in agents.values():
        agent.start()
    yield agents
    for agent in agents.values():
        agent.stop()


@pytest.fixture(scope="session")
def volcano(cluster: Cluster) -> Iterator[VolcanoStandIn]:
    """The stand-in for Volcano's job controller; a test that switches a fault on switches it off again."""
    controller = VolcanoStandIn(cluster)
    controller.start()
    yield controller
    controller.stop()
