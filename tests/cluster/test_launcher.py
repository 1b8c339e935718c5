"""The launcher against a real API server and scheduler: submits, follows, explains, retries by cause.

Pods are processes of this machine (``node.py``), Volcano's job controller is a stand-in (``volcano.py``).
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rglcd.errors import InputError, TrainingDiverged
from rglcd.launch.failure import JobError
from rglcd.launch.kubernetes_job import run_kubernetes_job
from rglcd.launch.placement import Placement
from rglcd.launch.volcano_job import volcano_job
from rglcd.stages.table import stage_named
from tests.cluster.control_plane import Cluster
from tests.cluster.launching import DISTILL, SAVES, app, in_background, jobs, pods, running, wait_until
from tests.cluster.node import ROOT, KubeletStandIn
from tests.cluster.volcano import Faults, VolcanoStandIn

pytestmark = pytest.mark.cluster


# --- ends -----------------------------------------------------------------------------------------


def test_a_job_that_completes_returns_and_shows_its_log(cluster: Cluster, placement: Placement, launch, capfd) -> None:
    launch(app("print('said by the pod')"))
    assert "said by the pod" in capfd.readouterr().err
    (job,) = jobs(cluster, placement)
    assert job["status"]["state"]["phase"] == "Completed"


@pytest.mark.parametrize(("code", "kind"), [(2, InputError), (3, TrainingDiverged)])
def test_bad_input_and_divergence_are_never_tried_again(cluster: Cluster, placement: Placement, launch, code: int, kind: type) -> None:
    with pytest.raises(kind):
        launch(app(f"raise SystemExit({code})"), num_failures=5)
    (job,) = jobs(cluster, placement)
    assert job["status"]["state"]["phase"] == "Terminated"


def test_a_crash_is_tried_again_as_often_as_allowed_and_its_reason_is_kept(
    cluster: Cluster, placement: Placement, launch, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=r"exit code 9.*the last words") as ended:
        launch(app("print('the last words'); raise SystemExit(9)"), num_failures=1)
    assert ended.value.exit_code == 9
    assert sorted(job["metadata"]["labels"]["rg-lcd/attempt"] for job in jobs(cluster, placement)) == ["1", "2"]
    kept = json.loads((tmp_path / "student.failure.json").read_text())
    assert kept["exit_code"] == 9
    assert kept["last_lines"] == ["the last words"]
    assert kept["job"].endswith("-2")


def test_out_of_memory_is_named_as_the_reason(cluster: Cluster, placement: Placement, launch, nodes: dict[str, KubeletStandIn]) -> None:
    def kill() -> None:
        (pod,) = wait_until(lambda: running(cluster, placement), "the pod runs")
        nodes[pod["spec"]["nodeName"]].kill_for_memory(placement.namespace, pod["metadata"]["name"])

    in_background(kill)
    with pytest.raises(JobError, match="OOMKilled") as ended:
        launch(app("import time; time.sleep(60)"))
    assert ended.value.exit_code == 137


def test_job_whose_image_cannot_be_pulled_ends(cluster: Cluster, placement: Placement, launch) -> None:
    with pytest.raises((InputError, JobError), match=r"(ErrImagePull|ImagePullBackOff).*unpullable"):
        launch(app("pass", image="rg-lcd/unpullable@sha256:0"), start_seconds=5)
    assert jobs(cluster, placement) == []


def test_role_of_the_launcher_is_sufficient(cluster: Cluster, placement: Placement, launch) -> None:
    cluster.kubectl("apply", "-n", placement.namespace, "-f", str(ROOT / "manifests" / "base" / "access.yaml"))
    api = cluster.patient_client()
    api.set_default_header("Impersonate-User", f"system:serviceaccount:{placement.namespace}:rglcd-launcher")
    with pytest.raises(JobError, match="exit code 9"):
        run_kubernetes_job(app("raise SystemExit(9)"), stage=DISTILL, placement=placement, api=api, poll_seconds=0.3)
    given = replace(placement, num_nodes=3, queue_seconds=3)
    with pytest.raises(JobError, match="did not start within 3 s"):
        run_kubernetes_job(app("import time; time.sleep(60)", num_nodes=3), stage=DISTILL, placement=given, api=api, poll_seconds=0.3)


# --- waiting --------------------------------------------------------------------------------------


def test_a_job_that_finds_no_nodes_says_why_and_gives_up_at_its_deadline(cluster: Cluster, placement: Placement, launch, capfd) -> None:
    with pytest.raises(JobError, match=r"did not start within 20 s: .*nodes are available") as ended:
        # Longer than the 15 s after which the scheduler's events are asked for again: the first time there may be none.
        launch(app("import time; time.sleep(60)", num_nodes=3), num_nodes=3, queue_seconds=20)
    assert ended.value.exit_code == 75
    assert "waits: rglcd-distill" in capfd.readouterr().err
    assert jobs(cluster, placement) == []


def test_without_the_toleration_the_scheduler_leaves_it_pending(cluster: Cluster, placement: Placement, launch) -> None:
    job = volcano_job(app("pass"), stage=DISTILL, placement=placement)
    job["spec"]["tasks"][0]["template"]["spec"].pop("tolerations")
    cluster.apply(job)

    def refused_for_the_taint() -> bool:
        events = cluster.get("events", "-n", placement.namespace, "--field-selector", "reason=FailedScheduling")["items"]
        of_job = [event for event in events if event["involvedObject"]["name"].startswith(job["metadata"]["name"])]
        # The first word may be of what an earlier test's pods still hold.
        return any("had taint {nvidia.com/gpu: present}" in event["message"] for event in of_job)

    wait_until(refused_for_the_taint, "the scheduler says why")
    (pod,) = pods(cluster, placement)
    assert pod["status"]["phase"] == "Pending"


def test_a_stage_without_gpus_never_lands_on_a_gpu_node(cluster: Cluster, placement: Placement, launch) -> None:
    shard = stage_named("shard")
    given = app("pass")
    given.roles[0].resource.gpu = 0
    run_kubernetes_job(given, stage=shard, placement=placement, api=cluster.patient_client(), poll_seconds=0.3)
    (pod,) = pods(cluster, placement)
    assert pod["spec"]["nodeName"] == "cpu-0"
    # Not by the taint alone: the tolerant stay away too.
    job = volcano_job(given, stage=shard, placement=placement, attempt=2)
    spec = job["spec"]["tasks"][0]["template"]["spec"]
    spec["tolerations"] = [{"operator": "Exists"}]
    spec["nodeSelector"] = {"nvidia.com/gpu.present": "true"}
    cluster.apply(job)
    name = f"{job['metadata']['name']}-distill-0-0"
    wait_until(lambda: any(each["metadata"]["name"] == name for each in pods(cluster, placement)), "its pod is there")
    time.sleep(3)
    assert all("nodeName" not in each["spec"] for each in pods(cluster, placement) if each["metadata"]["name"] == name)


# --- evictions ------------------------------------------------------------------------------------


@pytest.fixture
def faults(volcano: VolcanoStandIn) -> Iterator[Faults]:
    """Volcano's known faults, switched back afterwards."""
    before = replace(volcano.faults)
    yield volcano.faults
    vars(volcano.faults).update(vars(before))


def test_many_evictions_do_not_end_a_run(cluster: Cluster, placement: Placement, launch, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("rglcd.launch.volcano_job.RESTARTS", 1)  # volcano-sh/volcano#2560 ends the job at the first eviction

    def evict() -> None:
        (pod,) = wait_until(lambda: running(cluster, placement), "the pod runs")
        time.sleep(1)
        cluster.kubectl("delete", "pod", "-n", placement.namespace, pod["metadata"]["name"], "--wait=false")

    in_background(evict)
    launch(app(SAVES.format(marker=str(tmp_path / "saved"))))  # num_failures is 0
    phases = {job["metadata"]["labels"]["rg-lcd/attempt"]: job["status"]["state"]["phase"] for job in jobs(cluster, placement)}
    assert phases == {"1": "Failed", "2": "Completed"}


def test_reason_of_a_failed_pod_survives_its_deletion(cluster: Cluster, placement: Placement, launch, faults: Faults) -> None:
    faults.failed_pods_vanish = True  # volcano-sh/volcano#1688
    with pytest.raises(JobError, match="exit code 9"):
        launch(app("import time; time.sleep(2); raise SystemExit(9)"))
    assert pods(cluster, placement) == []


@pytest.mark.parametrize("by", ["the API", "the node"])
def test_an_evicted_job_goes_on_and_no_failure_is_counted(
    cluster: Cluster, placement: Placement, launch, nodes: dict[str, KubeletStandIn], tmp_path: Path, by: str, capfd
) -> None:
    def evict() -> None:
        (pod,) = wait_until(lambda: running(cluster, placement), "the pod runs")
        time.sleep(1)  # until Python has its handler in place
        name = pod["metadata"]["name"]
        if by == "the node":
            nodes[pod["spec"]["nodeName"]].evict(placement.namespace, name)
        else:
            eviction = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": name, "namespace": placement.namespace}}
            path = f"/api/v1/namespaces/{placement.namespace}/pods/{name}/eviction"
            cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))

    in_background(evict)
    launch(app(SAVES.format(marker=str(tmp_path / "saved"))))  # num_failures is 0
    assert "goes on from what was saved" in capfd.readouterr().err
