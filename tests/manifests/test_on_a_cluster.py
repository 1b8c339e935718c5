"""The overlays on a real API server: they apply, accounts hold the rights they need and no others, and quotas decide."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from rglcd.cli import main
from rglcd.config import dump, load_preset
from rglcd.stages.table import STAGES
from tests.cluster.control_plane import Cluster
from tests.manifests.rendering import APPLIED, Object, kustomization, rendered

pytestmark = pytest.mark.cluster

NAMESPACE = "rglcd"
Resource = tuple[str, str, str]
"""Group, resource, subresource."""

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "impersonate", "bind", "escalate", "use")
LAUNCHER: dict[Resource, set[str]] = {
    ("batch.volcano.sh", "jobs", ""): {"create", "delete", "get", "list"},
    ("", "pods", ""): {"list"},
    ("", "pods", "log"): {"get"},
    ("", "events", ""): {"list"},
}
KUBEFLOW_TASK: dict[Resource, set[str]] = {("argoproj.io", "workflowtaskresults", ""): {"create", "patch"}}
NAMED: set[tuple[Resource, str]] = {(("", "configmaps", ""), "kfp-launcher"), (("", "secrets", ""), "mlpipeline-minio-artifact")}


@pytest.fixture(scope="module", autouse=True)
def nothing_there(cluster: Cluster) -> None:
    """Whatever other tests have put where the overlays go."""
    ours = ["namespace/rglcd", "queue.scheduling.volcano.sh/rglcd", "priorityclass/rglcd-training", "priorityclass/rglcd-evaluation"]
    cluster.kubectl("delete", *ours, "--ignore-not-found", "--timeout=120s")


@pytest.mark.parametrize("name", APPLIED)
def test_manifests_apply_with_strict_validation(cluster: Cluster, name: str, tmp_path: Path) -> None:
    folder = kustomization(name, tmp_path)
    if cluster.kubectl("get", "namespace", NAMESPACE, check=False).returncode != 0:
        # A server-side dry run of what lies in a namespace needs the namespace.
        cluster.kubectl("create", "namespace", NAMESPACE)
    said = cluster.kubectl("apply", "-k", str(folder), "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict").stdout
    assert len(said.splitlines()) == len(rendered(folder))


@pytest.fixture(scope="module", params=["local", "a100"])
def applied(cluster: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An overlay, applied for the tests that ask for it and removed afterwards."""
    folder = kustomization(request.param, tmp_path_factory.mktemp(request.param))
    cluster.kubectl("apply", "-k", str(folder), "--server-side", "--force-conflicts", "--validate=strict")
    yield request.param
    cluster.kubectl("delete", "-k", str(folder), "--timeout=120s")


def test_applying_manifests_again_changes_nothing(cluster: Cluster, applied: str, tmp_path: Path) -> None:
    folder = kustomization(applied, tmp_path)
    assert cluster.kubectl("diff", "-k", str(folder), "--server-side", "--force-conflicts").stdout == ""


# --- the can-i matrix -----------------------------------------------------------------------------


def rules(cluster: Cluster, account: str) -> dict[Resource, set[str]]:
    """What ``kubectl auth can-i --list --as ...`` shows of the namespace: every rule, whatever it is about. By resource; names apart."""
    as_account = cluster.client()
    as_account.set_default_header("Impersonate-User", f"system:serviceaccount:{NAMESPACE}:{account}")
    review = client.AuthorizationV1Api(as_account).create_self_subject_rules_review({"spec": {"namespace": NAMESPACE}})
    assert not review.status.incomplete
    found: dict[Resource, set[str]] = {}
    for rule in review.status.resource_rules:
        for group in rule.api_groups:
            for resource in rule.resources:
                what, _, part = resource.partition("/")
                if not rule.resource_names and group != "authorization.k8s.io":  # which lets everybody ask what they may do
                    found.setdefault((group, what, part), set()).update(rule.verbs)
    return found


def can(api: Any, account: str, verb: str, resource: Resource, *, namespace: str = NAMESPACE, name: str = "") -> bool:
    """What ``kubectl auth can-i VERB RESOURCE --as system:serviceaccount:...`` asks."""
    group, what, part = resource
    attributes = {"verb": verb, "group": group, "resource": what, "subresource": part, "namespace": namespace, "name": name}
    review = {"spec": {"user": f"system:serviceaccount:{NAMESPACE}:{account}", "resourceAttributes": attributes}}
    allowed: bool = api.create_subject_access_review(review).status.allowed
    return allowed


@pytest.mark.parametrize("account", ["rglcd-launcher", "rglcd-stage", "default"])
def test_an_account_may_do_what_it_needs_and_nothing_else(cluster: Cluster, applied: str, account: str) -> None:
    """The whole list of its rules; then every verb on every resource that any rule is about, asked of the API server's authorizer."""
    api = client.AuthorizationV1Api(cluster.client())
    about = LAUNCHER | KUBEFLOW_TASK | {resource: set() for resource, _ in NAMED}
    expected: dict[Resource, set[str]] = {}
    if account == "rglcd-launcher":
        expected = LAUNCHER | (KUBEFLOW_TASK if applied == "a100" else {})
    assert rules(cluster, account) == expected
    granted = {resource: {verb for verb in VERBS if can(api, account, verb, resource)} for resource in about}
    assert {resource: verbs for resource, verbs in granted.items() if verbs} == expected


def test_nothing_is_granted_in_another_namespace(cluster: Cluster, applied: str) -> None:
    api = client.AuthorizationV1Api(cluster.client())
    granted = {
        (resource, verb) for resource in LAUNCHER for verb in VERBS if can(api, "rglcd-launcher", verb, resource, namespace="default")
    }
    assert granted == set()


def test_kubeflow_tasks_may_read_their_two_named_objects(cluster: Cluster, applied: str) -> None:
    api = client.AuthorizationV1Api(cluster.client())
    for resource, name in NAMED:
        assert can(api, "rglcd-launcher", "get", resource, name=name) is (applied == "a100")
        assert not can(api, "rglcd-launcher", "get", resource, name="another")
        assert not can(api, "rglcd-launcher", "update", resource, name=name)


def test_kubectl_reports_the_same_rights(cluster: Cluster, applied: str) -> None:
    who = f"--as=system:serviceaccount:{NAMESPACE}:rglcd-launcher"
    assert cluster.kubectl("auth", "can-i", "create", "jobs.batch.volcano.sh", "-n", NAMESPACE, who).stdout.strip() == "yes"
    assert cluster.kubectl("auth", "can-i", "create", "pods", "-n", NAMESPACE, who, check=False).stdout.strip() == "no"


# --- what the launcher submits --------------------------------------------------------------------


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_output_of_dry_run_can_be_applied(cluster: Cluster, applied: str, stage: str, tmp_path: Path, capsys, monkeypatch) -> None:
    """``rglcd launch STAGE --dry-run | kubectl apply -f -``, as docs/operations.md has it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(dump(load_preset("micro")))
    main(["launch", stage, "--dry-run", "--image", f"registry/train@sha256:{'0' * 64}"])
    job = capsys.readouterr().out
    said = cluster.kubectl("apply", "-f", "-", "--dry-run=server", "--validate=strict", stdin=job).stdout
    assert "created (server dry run)" in said


# --- quotas and limits ----------------------------------------------------------------------------


def pod(name: str, resources: Object | None) -> str:
    container = {"name": "only", "image": "none", **({"resources": resources} if resources else {})}
    metadata = {"name": name, "namespace": NAMESPACE}
    # No scheduler of this name exists: the pod counts and never runs.
    return json.dumps(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"schedulerName": "nobody", "containers": [container]}}
    )


def test_gpu_quota_refuses_what_exceeds_it(cluster: Cluster, applied: str) -> None:
    hard = int(cluster.get("resourcequota", "rglcd", "-n", NAMESPACE)["spec"]["hard"]["requests.nvidia.com/gpu"])
    small = {"cpu": "1", "memory": "1Gi"}
    fits, exceeds = ({"limits": {**small, "nvidia.com/gpu": str(count)}} for count in (hard, 1))
    cluster.kubectl("create", "-f", "-", stdin=pod("fits", fits))
    refused = cluster.kubectl("create", "-f", "-", stdin=pod("exceeds", exceeds), check=False)
    assert refused.returncode != 0
    assert "exceeded quota: rglcd, requested: requests.nvidia.com/gpu=1" in refused.stderr
    cluster.kubectl("delete", "pod", "fits", "-n", NAMESPACE, "--grace-period=0", "--force")


def test_container_without_resources_gets_the_defaults(cluster: Cluster, applied: str) -> None:
    made = json.loads(cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=pod("bare", None)).stdout)
    given = made["spec"]["containers"][0]["resources"]
    assert given["requests"] == {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "256Mi"}
    storage = {"local": "15Gi"}.get(applied, "25Gi")
    assert given["limits"] == {"cpu": "1", "memory": "1Gi", "ephemeral-storage": storage}


def test_a_container_larger_than_a_node_is_refused(cluster: Cluster, applied: str) -> None:
    refused = cluster.kubectl("create", "-f", "-", stdin=pod("large", {"limits": {"cpu": "97", "memory": "1Gi"}}), check=False)
    assert refused.returncode != 0
    assert "maximum cpu usage per Container" in refused.stderr
