"""A Volcano Job says everything that a real cluster asks for, and says it alike each time."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rglcd.cli import main
from rglcd.config import dump, load_preset
from rglcd.launch.appdef import cluster_app
from rglcd.launch.placement import Accelerators, Owner, Placement
from rglcd.launch.resources import RESOURCES
from rglcd.launch.volcano_job import volcano_job
from rglcd.stages.table import STAGES, Stage, stage_named

PLACEMENT = Placement(
    run="run-1",
    image="registry/train@sha256:" + "0123456789abcdef" * 4,
    store=("/store", "rglcd-store"),
    owner=Owner("launcher-1", "11111111-2222-3333-4444-555555555555"),
    provenance={"image": "sha256:" + "0123456789abcdef" * 4, "git-commit": "a" * 40, "dvc-lock": "b" * 64},
    environment={"AWS_REGION": "eu-west-1"},
)


def rendered(stage: Stage, placement: Placement = PLACEMENT, *, attempt: int = 1) -> dict[str, Any]:
    config = load_preset("micro")
    sections = {name: config.section(name) for name in stage.sections}
    artifacts = {name: Path("/store") / name for name in (*stage.inputs, *stage.outputs)}
    placement = replace(placement, processes_per_node=max(1, RESOURCES[stage.profile].gpus))
    return volcano_job(
        cluster_app(stage, sections=sections, artifacts=artifacts, placement=placement), stage=stage, placement=placement, attempt=attempt
    )


@pytest.mark.parametrize(("name", "num_nodes"), [("shard", 1), ("evaluate", 1), ("pretrain", 1), ("distill", 2)])
def test_the_job_of_each_profile_is_the_golden_one(check_golden, name: str, num_nodes: int) -> None:
    job = rendered(stage_named(name), replace(PLACEMENT, num_nodes=num_nodes))
    for task in job["spec"]["tasks"]:
        command = task["template"]["spec"]["containers"][0]["command"]
        # What the sections hold is another golden's business.
        command[command.index("--sections") + 1] = "{...}"
    job["metadata"]["annotations"]["rg-lcd/work"] = "their digest"
    check_golden(f"job-{name}.yaml", yaml.safe_dump(job, sort_keys=False, width=110))


def test_equal_arguments_give_equal_volcano_jobs() -> None:
    # TorchX draws a new random name for each app: nothing of it may be left.
    assert rendered(stage_named("distill")) == rendered(stage_named("distill"))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
class TestEveryStage:
    def pods(self, stage: Stage) -> list[dict[str, Any]]:
        return [task["template"] for task in rendered(stage)["spec"]["tasks"]]

    def test_all_pods_of_a_job_start_together_or_wait(self, stage: Stage) -> None:
        spec = rendered(stage, replace(PLACEMENT, num_nodes=3))["spec"]
        assert spec["minAvailable"] == sum(task["replicas"] for task in spec["tasks"]) == 3

    def test_requests_are_limits_and_shared_memory_is_within_them(self, stage: Stage) -> None:
        for pod in self.pods(stage):
            (container,) = pod["spec"]["containers"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert "ephemeral-storage" in container["resources"]["limits"]
            memory = {volume["name"]: volume for volume in pod["spec"]["volumes"]}["shared-memory"]["emptyDir"]
            assert memory["medium"] == "Memory"
            limit = container["resources"]["limits"]["memory"]
            assert int(memory["sizeLimit"].removesuffix("Gi")) < int(limit.removesuffix("Gi"))

    def test_gpus_are_tolerated_where_they_are_asked_for_and_nowhere_else(self, stage: Stage) -> None:
        for pod in self.pods(stage):
            gpus = pod["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
            assert ("tolerations" in pod["spec"]) == (gpus is not None)

    def test_no_token_of_the_api_server_is_mounted(self, stage: Stage) -> None:
        assert all(pod["spec"]["automountServiceAccountToken"] is False for pod in self.pods(stage))

    def test_pods_carry_the_label_of_azure_workload_identity(self, stage: Stage) -> None:
        assert all(pod["metadata"]["labels"]["azure.workload.identity/use"] == "true" for pod in self.pods(stage))

    def test_run_and_stage_are_labels_of_every_object(self, stage: Stage) -> None:
        job = rendered(stage)
        for labels in (job["metadata"]["labels"], *(pod["metadata"]["labels"] for pod in self.pods(stage))):
            assert labels["rg-lcd/run"] == "run-1"
            assert labels["rg-lcd/stage"] == stage.name
            assert labels["rg-lcd/git-commit"] == "a" * 40
            assert all(len(value) <= 63 for value in labels.values())

    def test_grace_period_leaves_time_to_save_a_checkpoint(self, stage: Stage) -> None:
        for pod in self.pods(stage):
            variables = {entry["name"]: entry.get("value") for entry in pod["spec"]["containers"][0]["env"]}
            grace = pod["spec"]["terminationGracePeriodSeconds"]
            assert grace >= 300
            assert int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < grace

    def test_policies_by_exit_code_come_before_those_by_event(self, stage: Stage) -> None:
        policies = rendered(stage)["spec"]["policies"]
        by_code = {policy["exitCode"]: policy["action"] for policy in policies if "exitCode" in policy}
        assert by_code == {75: "RestartJob", 2: "TerminateJob", 3: "TerminateJob"}
        assert {policy["event"]: policy["action"] for policy in policies if "event" in policy} == {
            "PodEvicted": "RestartJob",
            "PodFailed": "TerminateJob",
        }
        assert policies[-1] == {"event": "PodFailed", "action": "TerminateJob"}


def test_jobs_of_two_attempts_differ_in_name_and_label_only() -> None:
    first, second = (json.dumps(rendered(stage_named("distill"), attempt=attempt)) for attempt in (1, 2))
    assert second.replace("run-1-2", "run-1-1").replace('"rg-lcd/attempt": "2"', '"rg-lcd/attempt": "1"') == first


def test_preflight_expects_no_gpus_where_they_are_simulated() -> None:
    job = rendered(stage_named("distill"), replace(PLACEMENT, accelerators=Accelerators.SIMULATED))
    variables = {entry["name"]: entry.get("value") for entry in job["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["env"]}
    assert json.loads(variables["RGLCD_PREFLIGHT"]) == {"gpus": 0, "shared_memory_gib": 0}


def only_container(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["tasks"][0]["template"]["spec"]["containers"]
    return container


def test_pods_know_the_object_store_and_keep_unfinished_work_on_the_claim() -> None:
    placement = replace(PLACEMENT, object_store="s3://bucket/run")
    container = only_container(rendered(stage_named("distill"), placement))
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (variables["RGLCD_STORE"], variables["RGLCD_CACHE"]) == ("s3://bucket/run", "/store/.cache")
    assert {"secretRef": {"name": "rglcd-store", "optional": True}} in container["envFrom"]
    claimless = only_container(rendered(stage_named("distill"), replace(placement, store=None)))
    assert {entry["name"]: entry.get("value") for entry in claimless["env"]}["RGLCD_CACHE"] == "/cache/.cache"


def test_network_devices_are_requested_beside_gpus() -> None:
    asked = only_container(rendered(stage_named("distill"), replace(PLACEMENT, devices={"vpc.amazonaws.com/efa": "4"})))["resources"]
    assert asked["limits"]["vpc.amazonaws.com/efa"] == asked["requests"]["vpc.amazonaws.com/efa"] == "4"
    assert asked["limits"]["nvidia.com/gpu"] == "8"


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RGLCD_IMAGE", raising=False)
    (tmp_path / "params.yaml").write_text(dump(load_preset("micro")))
    return tmp_path


def test_dry_run_prints_the_job_and_needs_no_cluster(checkout: Path, capsys) -> None:
    assert main(["launch", "distill", "--dry-run", "--run", "r1", "--nodes", "2", "--image", PLACEMENT.image]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    assert job["metadata"]["name"] == "rglcd-distill-r1-1"
    assert job["spec"]["minAvailable"] == 2


def test_artifacts_in_an_object_store_are_named_by_url(checkout: Path, capsys) -> None:
    main(["launch", "distill", "--dry-run", "--image", PLACEMENT.image, "--store", "s3://bucket/run/"])
    container = only_container(yaml.safe_load(capsys.readouterr().out))
    assert "latents=s3://bucket/run/latents" in container["command"]
    assert {"name": "store", "mountPath": "/store"} in container["volumeMounts"]


def test_default_image_is_the_locked_one(checkout: Path, capsys) -> None:
    (checkout / "images").mkdir()
    (checkout / "images" / "lock.yaml").write_text("train: locked@sha256:1\n")
    main(["launch", "evaluate", "--dry-run"])
    job = yaml.safe_load(capsys.readouterr().out)
    assert job["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["image"] == "locked@sha256:1"


def test_missing_image_is_refused_with_what_to_do(checkout: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["launch", "distill", "--dry-run"])
    assert ended.value.code == 2
    assert "RGLCD_IMAGE" in capsys.readouterr().err
