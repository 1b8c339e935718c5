"""Every overlay, as ``kubectl kustomize`` builds it: known kinds, known fields, and the rules that a machine can check.

Needs kubectl 1.27 or newer, as the tests against a control plane do; no cluster.
"""

import re
from decimal import Decimal

import promql_parser
import pytest
import yaml
from kubernetes.utils import parse_quantity

from rglcd.launch.resources import RESOURCES, resources_of
from rglcd.launch.settings import load_settings
from rglcd.launch.volcano_job import USER
from rglcd.stages.table import Profile
from tests.manifests.network_policy import Peer, allowed
from tests.manifests.pod_security import violations
from tests.manifests.rendering import BUILT, MANIFESTS, Object, kustomization, of_kind, pod_templates, rendered
from tests.manifests.schemas import check

pytestmark = pytest.mark.cluster

JOB_POD = {"volcano.sh/job-name": "rglcd-distill-r-1"}
TASK_POD = {"pipelines.kubeflow.org/v2_component": "true"}
OTHER_POD = {"app": "something-else"}
DNS = Peer(labels={"k8s-app": "kube-dns"}, namespace="kube-system")
PORTS = {"metrics": 9400}


@pytest.fixture(scope="module", params=BUILT)
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return rendered(kustomization(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def a100(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return rendered(kustomization("a100", tmp_path_factory.mktemp("a100")))


def only(objects: list[Object], kind: str) -> Object:
    (item,) = of_kind(objects, kind)
    return item


# --- kinds and names ------------------------------------------------------------------------------


def test_every_object_passes_a_strict_schema(objects: list[Object]) -> None:
    for item in objects:
        check(item)


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ({"apiVersion": "v1", "kind": "Podd", "metadata": {"name": "x"}}, "knows this kind"),
        ({"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {"name": "x"}}, "knows this kind"),
        ({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "x"}, "automount": False}, "automount"),
        ({"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": {"name": "x"}, "spec": {"capacity": {}}}, "capacity"),
        (
            {"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": {"name": "x"}, "spec": {"endpoints": []}},
            "endpoints|required",
        ),
    ],
)
def test_an_unknown_kind_or_field_does_not_pass(item: Object, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check(item)


def test_everything_is_in_the_namespace_and_labelled(objects: list[Object]) -> None:
    cluster_wide = {"Namespace", "PriorityClass", "Queue"}
    for item in objects:
        assert item["metadata"].get("namespace") == (None if item["kind"] in cluster_wide else "rglcd"), item["metadata"]
        assert item["metadata"]["labels"]["app.kubernetes.io/part-of"] == "rg-lcd"
        if item["kind"] in cluster_wide:
            assert item["metadata"]["name"].startswith("rglcd"), "what lies outside the namespace says whose it is"


def test_the_namespace_enforces_the_restricted_standard(objects: list[Object]) -> None:
    labels = only(objects, "Namespace")["metadata"]["labels"]
    assert {mode: labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")} == {
        "enforce": "restricted",
        "warn": "restricted",
        "audit": "restricted",
    }


def test_no_pod_of_the_manifests_violates_the_restricted_standard(objects: list[Object]) -> None:
    for item in objects:
        for template in pod_templates(item):
            assert violations(template["spec"]) == set()


def test_the_job_for_a_fresh_claim_is_root_and_may_change_owners_alone(a100: list[Object]) -> None:
    """It breaks what `restricted` asks for beyond `baseline`, and nothing else."""
    (job,) = rendered(MANIFESTS / "fresh-claim")
    check(job)
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert violations(spec) == {"capabilities_dropped", "runs_as_non_root", "no_root_user"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert job["metadata"]["namespace"] == "rglcd"
    (volume,) = spec["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] in {item["metadata"]["name"] for item in of_kind(a100, "PersistentVolumeClaim")}
    assert spec["serviceAccountName"] in {item["metadata"]["name"] for item in of_kind(a100, "ServiceAccount")}
    assert not spec["automountServiceAccountToken"]
    assert container["command"][1] == f"{USER}:{USER}"


def test_no_key_is_kept_in_the_manifests(objects: list[Object]) -> None:
    assert list(of_kind(objects, "Secret")) == []
    for item in of_kind(objects, "ConfigMap"):
        assert not [key for key in item.get("data", {}) if re.search("KEY|SECRET|TOKEN|PASSWORD", key)]


# --- who may do what ------------------------------------------------------------------------------


def test_pods_of_a_job_get_no_api_token(objects: list[Object]) -> None:
    """Kubeflow's executor needs the launcher's; a job's pods need none, and hold no right it could stand for."""
    accounts = {item["metadata"]["name"]: item.get("automountServiceAccountToken", True) for item in of_kind(objects, "ServiceAccount")}
    assert accounts == {"rglcd-launcher": True, "rglcd-stage": False}


def test_roles_are_small_and_stay_in_the_namespace(objects: list[Object]) -> None:
    assert not [item for item in objects if item["kind"] in ("ClusterRole", "ClusterRoleBinding")]
    for role in of_kind(objects, "Role"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert "secrets" not in rule["resources"] or (rule["verbs"] == ["get"] and rule["resourceNames"])
    bound = {subject["name"] for binding in of_kind(objects, "RoleBinding") for subject in binding["subjects"]}
    assert bound == {"rglcd-launcher"}, "the pods of a job hold no right in the cluster"


# --- how much -------------------------------------------------------------------------------------


def amount(value: str) -> Decimal:
    return parse_quantity(value)


def test_quota_leaves_space_for_a_waiting_pod_beside_a_full_queue(objects: list[Object]) -> None:
    """A pod must exist before it can preempt another: with a quota as small as the queue nothing could ever be preempted."""
    quota, queue = only(objects, "ResourceQuota")["spec"]["hard"], only(objects, "Queue")["spec"]["capability"]
    assert amount(quota["requests.nvidia.com/gpu"]) >= amount(queue["nvidia.com/gpu"]) + RESOURCES[Profile.GPU].gpus
    assert amount(quota["requests.cpu"]) >= amount(queue["cpu"])
    assert amount(quota["requests.memory"]) >= amount(queue["memory"])


def test_the_quota_counts_what_a_run_can_use_up(objects: list[Object]) -> None:
    assert only(objects, "ResourceQuota")["spec"]["hard"].keys() >= {
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
        "limits.ephemeral-storage",
        "requests.nvidia.com/gpu",
        "requests.storage",
        "persistentvolumeclaims",
        "pods",
        "count/jobs.batch.volcano.sh",
    }


@pytest.mark.parametrize("profile", list(Profile))
def test_every_profile_fits_into_the_a100_overlay(a100: list[Object], profile: Profile) -> None:
    asked, limit = RESOURCES[profile], only(a100, "LimitRange")["spec"]["limits"][0]["max"]
    queue, quota = only(a100, "Queue")["spec"]["capability"], only(a100, "ResourceQuota")["spec"]["hard"]
    wanted = {"cpu": Decimal(asked.cpus), "memory": amount(f"{asked.memory_gib}Gi")}
    for name, value in wanted.items():
        assert value <= amount(limit[name]), f"one container of {profile}: {name}"
        assert 2 * value <= amount(quota[f"requests.{name}"]), f"two nodes of {profile}: {name}"
        assert name not in queue or 2 * value <= amount(queue[name]), f"two nodes of {profile}: {name}"
    assert 2 * asked.gpus <= amount(queue["nvidia.com/gpu"])


@pytest.mark.parametrize(("overlay", "gpus"), [("local", 0), ("local", 1), ("one-gpu", 1)])
def test_every_profile_fits_into_the_overlay_of_one_node_with_its_settings(
    overlay: str, gpus: int, tmp_path_factory: pytest.TempPathFactory, tmp_path, monkeypatch
) -> None:
    """One job beside Kubeflow's launching task and its last one."""
    local = rendered(kustomization(overlay, tmp_path_factory.mktemp(overlay)))
    settings = yaml.safe_load((MANIFESTS / f"cluster.{overlay}.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({**settings, "gpus": gpus}))
    pool = load_settings().pool
    limit = only(local, "LimitRange")["spec"]["limits"][0]["max"]
    queue, quota = only(local, "Queue")["spec"]["capability"], only(local, "ResourceQuota")["spec"]["hard"]
    for profile in Profile:
        asked = resources_of(profile, pool)
        wanted = {"cpu": Decimal(asked.cpus), "memory": amount(f"{asked.memory_gib}Gi")}
        for name, value in wanted.items():
            assert value <= amount(limit[name]), f"{profile}: {name}"
            assert value + amount({"cpu": "1", "memory": "3Gi"}[name]) <= amount(quota[f"requests.{name}"]), f"{profile}: {name}"
            assert value <= amount(queue[name]), f"{profile}: {name}"
        assert amount(f"{asked.disk_gib}Gi") <= amount(limit["ephemeral-storage"])
        assert asked.gpus <= amount(queue["nvidia.com/gpu"])


@pytest.mark.parametrize(("overlay", "settings"), [("a100", None), ("local", "cluster.local.yaml"), ("one-gpu", "cluster.one-gpu.yaml")])
def test_tasks_of_kubeflow_may_fill_the_tmp_that_they_are_given(
    overlay: str, settings: str | None, tmp_path_factory: pytest.TempPathFactory, tmp_path, monkeypatch
) -> None:
    """Kubeflow cannot ask for disk: a task's two containers, its own and Argo's, have the default each, and the kubelet adds them up."""
    limits = only(rendered(kustomization(overlay, tmp_path_factory.mktemp(overlay))), "LimitRange")["spec"]["limits"][0]
    monkeypatch.chdir(tmp_path)
    if settings is not None:
        (tmp_path / "cluster.yaml").write_text((MANIFESTS / settings).read_text())
    tmp = amount(f"{resources_of(Profile.CPU, load_settings().pool).disk_gib}Gi")
    assert 2 * amount(limits["default"]["ephemeral-storage"]) >= tmp


def test_container_without_requests_gets_small_requests(objects: list[Object]) -> None:
    (limits,) = only(objects, "LimitRange")["spec"]["limits"]
    for name in ("cpu", "memory", "ephemeral-storage"):
        assert amount(limits["defaultRequest"][name]) <= amount(limits["default"][name]) <= amount(limits["max"][name])


def test_evaluation_has_higher_priority_than_training(objects: list[Object]) -> None:
    classes = {item["metadata"]["name"]: item for item in of_kind(objects, "PriorityClass")}
    assert classes["rglcd-evaluation"]["value"] > classes["rglcd-training"]["value"] > 0
    assert classes["rglcd-training"]["preemptionPolicy"] == "Never"
    assert not any(item.get("globalDefault") for item in classes.values())


# --- who may talk to whom -------------------------------------------------------------------------


def may_call(objects: list[Object], pod: dict[str, str], peer: Peer, port: int, protocol: str = "TCP") -> bool:
    policies = list(of_kind(objects, "NetworkPolicy"))
    return allowed(policies, direction="egress", pod=pod, peer=peer, port=port, protocol=protocol, named=PORTS)


def may_answer(objects: list[Object], pod: dict[str, str], peer: Peer, port: int) -> bool:
    return allowed(list(of_kind(objects, "NetworkPolicy")), direction="ingress", pod=pod, peer=peer, port=port, named=PORTS)


@pytest.mark.parametrize("pod", [JOB_POD, TASK_POD, OTHER_POD, {}])
def test_every_pod_may_reach_dns(objects: list[Object], pod: dict[str, str]) -> None:
    assert may_call(objects, pod, DNS, 53, "UDP")
    assert may_call(objects, pod, DNS, 53, "TCP")
    assert not may_call(objects, pod, DNS, 80)


@pytest.mark.parametrize(
    ("component", "peer", "port", "pods"),
    [
        ("node-local-dns", Peer("169.254.20.10"), 53, "all"),
        ("cloud-dns", Peer("169.254.169.254"), 53, "all"),
        ("openshift-dns", Peer(labels={"dns.operator.openshift.io/daemonset-dns": "default"}, namespace="openshift-dns"), 5353, "all"),
        ("api-server-elsewhere", Peer("100.64.0.1"), 443, "tasks"),
        ("api-server-elsewhere", Peer("fd00::1"), 6443, "tasks"),
        ("private-proxy", Peer("10.1.2.3"), 3128, "all"),
    ],
)
def test_each_small_component_opens_its_one_thing(component: str, peer: Peer, port: int, pods: str, tmp_path_factory) -> None:
    without = rendered(kustomization("a100", tmp_path_factory.mktemp("without")))
    opened = rendered(kustomization(f"a100+{component}", tmp_path_factory.mktemp("opened")))
    for item in opened:
        check(item)
    assert {item["metadata"]["namespace"] for item in of_kind(opened, "NetworkPolicy")} == {"rglcd"}
    for pod, may in ((TASK_POD, True), (JOB_POD, pods == "all")):
        assert not may_call(without, pod, peer, port)
        assert may_call(opened, pod, peer, port) is may
        assert not may_call(opened, pod, peer, 22)


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "10.96.0.1", "169.254.169.254", "192.168.1.1"])
@pytest.mark.parametrize("port", [22, 443, 6443])
def test_unknown_pod_has_no_egress(objects: list[Object], address: str, port: int) -> None:
    assert not may_call(objects, OTHER_POD, Peer(address), port)


def test_the_pods_of_a_job_reach_each_other_and_the_object_store(objects: list[Object]) -> None:
    assert may_call(objects, JOB_POD, Peer(labels=JOB_POD), 29500)
    assert may_call(objects, JOB_POD, Peer(labels=JOB_POD), 45678), "NCCL chooses its ports"
    assert may_call(objects, JOB_POD, Peer("52.216.1.1"), 443)
    assert not may_call(objects, JOB_POD, Peer("52.216.1.1"), 80)
    assert not may_call(objects, JOB_POD, Peer(labels=OTHER_POD), 443)
    assert not may_call(objects, JOB_POD, Peer(labels=JOB_POD, namespace="another"), 29500)


@pytest.mark.parametrize("address", ["10.96.0.1", "172.20.0.1", "192.168.49.2", "100.64.0.1", "fd00::1"])
@pytest.mark.parametrize("port", [443, 6443])
def test_the_pods_of_a_job_do_not_reach_the_api_server(objects: list[Object], address: str, port: int) -> None:
    assert not may_call(objects, JOB_POD, Peer(address), port)


def test_tasks_reach_the_web_and_the_api_server(objects: list[Object]) -> None:
    for address, port in (("10.96.0.1", 443), ("172.20.0.1", 6443), ("93.184.216.34", 80), ("93.184.216.34", 443)):
        assert may_call(objects, TASK_POD, Peer(address), port)
    assert not may_call(objects, TASK_POD, Peer("10.0.0.7"), 80), "a caption's url must not lead into the cluster"
    assert not may_call(objects, TASK_POD, Peer("93.184.216.34"), 22)


@pytest.mark.parametrize("pod", [JOB_POD, TASK_POD])
def test_the_cloud_s_metadata_server_is_its_component_s_to_open(objects: list[Object], pod: dict[str, str]) -> None:
    identity = [item for item in of_kind(objects, "NetworkPolicy") if item["metadata"]["name"] == "identity"]
    blocks = {to["ipBlock"]["cidr"] for item in identity for rule in item["spec"]["egress"] for to in rule["to"]}
    assert may_call(objects, pod, Peer("169.254.169.254"), 80) is ("169.254.169.254/32" in blocks)
    assert not may_call(objects, pod, Peer("169.254.169.253"), 80)


def test_only_prometheus_has_ingress_and_only_with_monitoring(objects: list[Object]) -> None:
    monitored = any(of_kind(objects, "PodMonitor"))
    prometheus = Peer(labels={"app": "prometheus"}, namespace="monitoring")
    assert may_answer(objects, JOB_POD, prometheus, PORTS["metrics"]) is monitored
    assert not may_answer(objects, JOB_POD, prometheus, 29500)
    for peer in (Peer("8.8.8.8"), Peer(labels=OTHER_POD), Peer(labels=JOB_POD, namespace="another")):
        assert not may_answer(objects, JOB_POD, peer, PORTS["metrics"])


# --- alerts ---------------------------------------------------------------------------------------


def test_alerts_are_promql_and_say_what_to_do(objects: list[Object]) -> None:
    for item in of_kind(objects, "PrometheusRule"):
        for rule in (rule for group in item["spec"]["groups"] for rule in group["rules"]):
            promql_parser.parse(rule["expr"])
            assert rule["annotations"].keys() == {"summary", "action"}
