"""cluster.yaml for other clusters than eight A100 a node: what it says is in the Volcano Job, and in the Kubeflow pipeline."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.rg_lcd import compile_pipeline
from rglcd.cli import main
from rglcd.config import dump, load_preset
from rglcd.launch.settings import load_settings
from tests.launch.conftest import IMAGE

H100 = {"gpus": 1, "gpu_label": "nvidia.com/gpu.family=hopper", "cpus": 16, "memory_gib": 120, "cpu_stages": "anywhere"}
B200_SPOT = {
    "gpu_label": "nvidia.com/gpu.family=blackwell",
    "node_selector": {"cloud.google.com/gke-spot": "true"},
    "tolerations": ["cloud.google.com/gke-spot=true:NoSchedule"],
}
L40S = {"gpus": 4, "gpu_label": "nvidia.com/gpu.product=NVIDIA-L40S"}
MIG = {"gpus": 1, "gpu_resource": "nvidia.com/mig-3g.40gb", "gpu_label": "nvidia.com/mig.strategy=mixed"}
GKE = {"any_gpu_label": "cloud.google.com/gke-accelerator", "gpu_label": "cloud.google.com/gke-accelerator=nvidia-h200-141gb"}
KIND = {"gpus": 0, "cpus": 4, "memory_gib": 8, "disk_gib": 20}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(dump(load_preset("micro")))


def job(stage: str, capsys, settings: dict[str, Any]) -> dict[str, Any]:
    Path("cluster.yaml").write_text(yaml.safe_dump({"image": IMAGE, **settings}))
    assert main(["launch", stage, "--dry-run"]) == 0
    rendered: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return rendered


def pod(stage: str, capsys, settings: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job(stage, capsys, settings)["spec"]["tasks"][0]["template"]["spec"]
    return spec


def nodes(spec: dict[str, Any]) -> list[dict[str, Any]]:
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    found: list[dict[str, Any]] = term["matchExpressions"]
    return found


@pytest.mark.parametrize(
    ("settings", "limits", "on"),
    [
        ({}, {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"}, ("nvidia.com/gpu.family", ["ampere"])),
        (H100, {"cpu": "16", "memory": "120Gi", "nvidia.com/gpu": "1"}, ("nvidia.com/gpu.family", ["hopper"])),
        (B200_SPOT, {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"}, ("nvidia.com/gpu.family", ["blackwell"])),
        (L40S, {"cpu": "32", "memory": "256Gi", "nvidia.com/gpu": "4"}, ("nvidia.com/gpu.product", ["NVIDIA-L40S"])),
        (MIG, {"cpu": "8", "memory": "64Gi", "nvidia.com/mig-3g.40gb": "1"}, ("nvidia.com/mig.strategy", ["mixed"])),
        (GKE, {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"}, ("cloud.google.com/gke-accelerator", ["nvidia-h200-141gb"])),
    ],
    ids=["A100", "one H100", "B200 spot", "four L40S", "MIG", "GKE H200"],
)
def test_training_asks_for_the_gpus_that_the_cluster_has(settings, limits, on, capsys) -> None:
    spec = pod("distill", capsys, settings)
    (container,) = spec["containers"]
    asked = {name: amount for name, amount in container["resources"]["limits"].items() if name != "ephemeral-storage"}
    assert asked == limits
    assert [(each["key"], each["values"]) for each in nodes(spec)] == [on]
    command = container["command"]
    assert command[command.index("--nproc-per-node") + 1] == list(limits.values())[-1]


def test_spot_nodes_are_selected_and_tolerated_by_pods_with_gpus_alone(capsys) -> None:
    spec = pod("distill", capsys, B200_SPOT)
    assert spec["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert spec["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
    ]
    assert not {"nodeSelector", "tolerations"} & pod("shard", capsys, B200_SPOT).keys()


def test_a_cluster_without_a_gpu_is_asked_for_none(capsys) -> None:
    for stage in ("distill", "cache", "evaluate"):
        spec = pod(stage, capsys, KIND)
        (container,) = spec["containers"]
        limits = container["resources"]["limits"]
        assert (limits["cpu"], limits["memory"], limits["ephemeral-storage"]) == ("4", "8Gi", "20Gi")
        assert not any("gpu" in name for name in limits)
        assert not {"affinity", "tolerations"} & spec.keys()
        assert '"gpus": 0' in next(entry["value"] for entry in container["env"] if entry["name"] == "RGLCD_PREFLIGHT")


def test_on_a_cluster_of_one_node_pods_without_gpus_run_beside_the_gpus(capsys) -> None:
    assert "affinity" not in pod("shard", capsys, H100)
    assert nodes(pod("shard", capsys, {})) == [{"key": "nvidia.com/gpu.present", "operator": "DoesNotExist"}]


def test_pods_get_pull_secrets_priority_variables_and_keys_of_secrets(capsys) -> None:
    given = {"pull_secrets": ["registry"], "priority": "gold", "variables": {"NO_PROXY": "a,b"}, "secrets": ["hub/HF_TOKEN"]}
    rendered = job("distill", capsys, given)
    assert rendered["spec"]["priorityClassName"] == "gold"
    spec = rendered["spec"]["tasks"][0]["template"]["spec"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    environment = {entry["name"]: entry for entry in spec["containers"][0]["env"]}
    assert environment["NO_PROXY"]["value"] == "a,b"
    assert environment["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "HF_TOKEN"}


# --- Kubeflow ------------------------------------------------------------------------------------


def compiled(settings: dict[str, Any], tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Kubeflow's executors are, and what the platform is to do with them, by stage."""
    Path("cluster.yaml").write_text(yaml.safe_dump(settings))
    out = tmp_path / "pipeline.yaml"
    compile_pipeline(load_preset("micro"), out, source="/store/data@0", cluster=load_settings())
    spec, platform = yaml.safe_load_all(out.read_text())
    executors = spec["deploymentSpec"]["executors"]
    on_kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return (
        {name.removeprefix("exec-"): value["container"] for name, value in executors.items()},
        {name.removeprefix("exec-"): value for name, value in on_kubernetes.items()},
    )


def test_settings_are_in_the_pipeline_when_it_is_compiled(tmp_path: Path) -> None:
    given = {
        **B200_SPOT,
        "num_nodes": 2,
        "devices": {"vpc.amazonaws.com/efa": 4},
        "queue": "gold",
        "failures": 0,
        "secrets": ["hub/HF_TOKEN"],
        "variables": {"HTTPS_PROXY": "http://proxy:3128"},
        "pull_secrets": ["registry"],
        "cpu_node_selector": {"pool": "cpu"},
        "cpu_tolerations": ["batch:NoSchedule"],
    }
    tasks, platform = compiled(given, tmp_path)
    told = {entry["name"]: entry["value"] for entry in tasks["distill"]["env"]}
    assert told["RGLCD_NODE_SELECTOR"] == "cloud.google.com/gke-spot=true"
    assert told["RGLCD_TOLERATIONS"] == "cloud.google.com/gke-spot=true:NoSchedule"
    assert (told["RGLCD_NUM_NODES"], told["RGLCD_QUEUE"], told["RGLCD_FAILURES"]) == ("2", "gold", "0")
    assert (told["RGLCD_DEVICES"], told["RGLCD_SECRETS"]) == ("vpc.amazonaws.com/efa=4", "hub/HF_TOKEN")
    for name in ("shard", "prepare", "distill", "end-jobs"):
        assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in tasks[name]["env"]
        assert platform[name]["nodeSelector"] == {"labels": {"pool": "cpu"}}
        assert [each["key"] for each in platform[name]["tolerations"]] == ["batch"]
        assert "registry" in str(platform[name]["imagePullSecret"])
        from_secrets = {key["envVar"] for secret in platform[name]["secretAsEnv"] for key in secret["keyToEnv"]}
        assert {"HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"} <= from_secrets


def test_pods_that_launch_and_wait_are_kept_from_autoscalers(tmp_path: Path) -> None:
    _, platform = compiled({}, tmp_path)
    annotated = {name for name, value in platform.items() if "annotations" in value.get("podMetadata", {})}
    assert {"cache", "distill", "evaluate", "end-jobs"} <= annotated
    assert not {"shard", "prepare"} & annotated
    annotations = platform["distill"]["podMetadata"]["annotations"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"


def test_a_launching_task_lasts_as_long_as_its_job_may_wait_and_work(tmp_path: Path) -> None:
    _, platform = compiled({"run_seconds": 30 * 86400}, tmp_path)
    assert int(platform["distill"]["activeDeadlineSeconds"]) > 30 * 86400 + 6 * 3600


def test_tasks_are_not_retried_where_the_settings_say_so(tmp_path: Path) -> None:
    Path("cluster.yaml").write_text("task_retries: 0\n")
    out = tmp_path / "pipeline.yaml"
    compile_pipeline(load_preset("micro"), out, source="/store/data@0", cluster=load_settings())
    assert "maxRetryCount: 3" not in out.read_text()
