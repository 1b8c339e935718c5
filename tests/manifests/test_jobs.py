"""What the launcher submits, held against what the manifests allow: schemas, the restricted standard, quotas, and every name."""

import re
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from kubernetes.utils import parse_quantity

from rglcd.config import load_preset, preset_names
from rglcd.launch.appdef import cluster_app
from rglcd.launch.cluster_api import VERBS
from rglcd.launch.placement import Owner, Placement
from rglcd.launch.resources import RESOURCES
from rglcd.launch.volcano_job import volcano_job
from rglcd.stages.table import Profile, Stage, inputs_of, stages_of
from tests.manifests import pod_security, schemas
from tests.manifests.rendering import MANIFESTS, Object, kustomization, of_kind, pod_templates, rendered

pytestmark = pytest.mark.cluster

EVERY_STAGE_OF_EVERY_PRESET = [(preset, stage) for preset in preset_names() for stage in stages_of(load_preset(preset))]


def job(preset: str, stage: Stage) -> Object:
    config = load_preset(preset)
    placement = Placement(
        run="run-1",
        image="registry/train@sha256:" + "0" * 64,
        store=("/store", "rglcd-store"),
        num_nodes=2 if stage.profile is Profile.GPU_GANG else 1,
        processes_per_node=max(1, RESOURCES[stage.profile].gpus),
        owner=Owner("launcher-1", "11111111-2222-3333-4444-555555555555"),
    )
    sections = {name: config.section(name) for name in stage.sections}
    artifacts = {name: Path("/store") / name for name in (*inputs_of(stage, config), *stage.outputs)}
    return volcano_job(cluster_app(stage, sections=sections, artifacts=artifacts, placement=placement), stage=stage, placement=placement)


@pytest.fixture(scope="module", params=EVERY_STAGE_OF_EVERY_PRESET, ids=lambda given: f"{given[0]}-{given[1].name}")
def submitted(request: pytest.FixtureRequest) -> Object:
    return job(*request.param)


@pytest.fixture(scope="module")
def a100(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return rendered(kustomization("a100", tmp_path_factory.mktemp("a100")))


def test_job_passes_strict_schemas(submitted: Object) -> None:
    """Volcano's for the job. That definition says little of pods, so each goes by itself through Kubernetes' own."""
    schemas.check(submitted)
    for template in pod_templates(submitted):
        metadata = {"name": "task", **{key: value for key, value in template["metadata"].items() if key != "name"}}
        schemas.check({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})


def test_namespace_would_admit_the_pods_of_a_job(submitted: Object) -> None:
    for template in pod_templates(submitted):
        assert pod_security.violations(template["spec"]) == set()
        context, (container,) = template["spec"]["securityContext"], template["spec"]["containers"]
        assert min(context["runAsUser"], context["runAsGroup"], context["fsGroup"]) >= 10001
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_objects_that_a_job_names_are_in_the_manifests(submitted: Object, a100: list[Object]) -> None:
    names = {kind: {item["metadata"]["name"] for item in of_kind(a100, kind)} for kind in {item["kind"] for item in a100}}
    assert submitted["metadata"]["namespace"] in names["Namespace"]
    assert submitted["spec"]["queue"] in names["Queue"]
    assert submitted["spec"]["priorityClassName"] in names["PriorityClass"]
    for template in pod_templates(submitted):
        assert template["spec"]["serviceAccountName"] in names["ServiceAccount"]
        claims = [
            volume["persistentVolumeClaim"]["claimName"] for volume in template["spec"]["volumes"] if "persistentVolumeClaim" in volume
        ]
        assert set(claims) <= names["PersistentVolumeClaim"]


@pytest.mark.parametrize("cloud", ["gke", "eks", "aks"])
def test_network_settings_of_a_cloud_reach_the_pods(submitted: Object, cloud: str) -> None:
    settings = yaml.safe_load((MANIFESTS / "components" / cloud / "network.yaml").read_text())
    for template in pod_templates(submitted):
        (container,) = template["spec"]["containers"]
        assert {"configMapRef": {"name": settings["metadata"]["name"], "optional": True}} in container["envFrom"]
        said_already = {entry["name"] for entry in container["env"]}
        assert settings["data"].keys().isdisjoint(said_already), "what is said by name wins over what comes from a ConfigMap"


def test_quota_queue_and_limits_admit_a_job(submitted: Object, a100: list[Object]) -> None:
    ((queue,), (quota,), (limits,)) = (list(of_kind(a100, kind)) for kind in ("Queue", "ResourceQuota", "LimitRange"))
    asked: dict[str, Decimal] = {}
    for template in pod_templates(submitted):
        (container,) = template["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        for name, value in container["resources"]["requests"].items():
            asked[name] = asked.get(name, Decimal(0)) + parse_quantity(value)
            most = limits["spec"]["limits"][0]["max"].get(name)
            assert most is None or parse_quantity(value) <= parse_quantity(most), name
    assert {"cpu", "memory", "ephemeral-storage"} <= asked.keys()
    for name, value in asked.items():
        assert value <= parse_quantity(quota["spec"]["hard"][f"requests.{name}"]), name
        assert name == "ephemeral-storage" or value <= parse_quantity(queue["spec"]["capability"][name]), name


def test_images_are_by_digest_and_names_are_short_enough(submitted: Object) -> None:
    for task, template in zip(submitted["spec"]["tasks"], pod_templates(submitted), strict=True):
        assert re.search(r"@sha256:[0-9a-f]{64}$", template["spec"]["containers"][0]["image"])
        assert len(f"{submitted['metadata']['name']}-{task['name']}-0") <= 63


def test_the_launcher_s_role_is_what_the_launcher_uses(a100: list[Object]) -> None:
    (role,) = (item for item in of_kind(a100, "Role") if item["metadata"]["name"] == "rglcd-launcher")
    held = {
        (group, resource): set(rule["verbs"]) for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"]
    }
    assert held == {key: set(verbs) for key, verbs in VERBS.items()}


def test_metrics_in_alerts_are_those_that_pods_serve() -> None:
    served = set(re.findall(r'"(rglcd_\w+)"', (MANIFESTS.parent / "src/rglcd/launch/pod.py").read_text()))
    asked = set(re.findall(r"\brglcd_\w+", (MANIFESTS / "components/monitoring/alerts.yaml").read_text()))
    assert asked <= served
