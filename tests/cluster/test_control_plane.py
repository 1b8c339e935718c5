"""The control plane answers, knows Volcano's kinds, and refuses what they do not know."""

import json

import pytest

from tests.cluster.control_plane import Cluster

pytestmark = pytest.mark.cluster


def job(**spec: object) -> str:
    template = {"spec": {"containers": [{"name": "only", "image": "none"}]}}
    spec = {"minAvailable": 1, "tasks": [{"name": "a", "replicas": 1, "template": template}]} | spec
    head = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": {"name": "strict"}}
    return json.dumps(head | {"spec": spec})


def test_volcano_s_kinds_are_known(cluster: Cluster) -> None:
    kinds = cluster.kubectl("api-resources", "--api-group=batch.volcano.sh", "-o", "name").stdout.split()
    assert "jobs.batch.volcano.sh" in kinds
    queues = cluster.kubectl("api-resources", "--api-group=scheduling.volcano.sh", "-o", "name").stdout.split()
    assert {"queues.scheduling.volcano.sh", "podgroups.scheduling.volcano.sh"} <= set(queues)


def test_a_misspelt_field_is_refused(cluster: Cluster) -> None:
    assert cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=job()).returncode == 0
    refused = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=job(minAvailible=1), check=False)
    assert refused.returncode != 0
    assert "minAvailible" in refused.stderr
