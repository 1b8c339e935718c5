"""Fixtures for every test that talks to a control plane, wherever it lies."""

from collections.abc import Iterator

import pytest

from tests.cluster.control_plane import Cluster, UnavailableError, running_cluster
from tests.cluster.node import CPU_MACHINE, GPU_MACHINES, KubeletStandIn, process_environment
from tests.cluster.rest import Rest
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
def nodes(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, KubeletStandIn]]:
    """Three stand-ins for machines: two tainted ones with eight A100 each, and one without GPUs."""
    folder = tmp_path_factory.mktemp("nodes")
    machines = {
        machine.name: KubeletStandIn(cluster, machine, folder / machine.name, environment=process_environment())
        for machine in (*GPU_MACHINES, CPU_MACHINE)
    }
    for machine in machines.values():
        machine.start()
    yield machines
    for machine in machines.values():
        machine.stop()


@pytest.fixture(scope="session")
def volcano(cluster: Cluster) -> Iterator[VolcanoStandIn]:
    """The stand-in for Volcano's job controller; a test that switches a fault on switches it off again."""
    controller = VolcanoStandIn(cluster)
    controller.start()
    yield controller
    controller.stop()


@pytest.fixture(scope="session")
def claim(cluster: Cluster, namespace: str) -> None:
    """The claim ``rglcd-store``, bound by hand: the stand-in for a kubelet takes a mount's path for a folder of this machine."""
    size = {"storage": "1Gi"}
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    reference = {"kind": "PersistentVolumeClaim", "namespace": namespace, "name": "rglcd-store"}
    volume = {"capacity": size, "hostPath": {"path": "/nowhere"}, "claimRef": reference, **spec}
    cluster.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "rglcd-store"}, "spec": volume})
    bound = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}
    metadata = {"name": "rglcd-store", "namespace": namespace, "annotations": bound}
    wanted = {"resources": {"requests": size}, "volumeName": "rglcd-store", **spec}
    cluster.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": wanted})
    rest = Rest(cluster.client())
    rest.patch("/api/v1/persistentvolumes/rglcd-store/status", {"status": {"phase": "Bound"}})
    rest.patch(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/rglcd-store/status", {"status": {"phase": "Bound"}})
