"""The launcher against a real API server and scheduler: submits, adopts, follows, explains, retries by cause, cancels.

Pods are processes of this machine (``node.py``), Volcano's job controller is a stand-in (``volcano.py``).
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torchx import specs

from pipelines.rg_lcd import OWN_FIELDS
from rglcd.cli import main
from rglcd.config import dump, load_preset
from rglcd.errors import InputError, TrainingDiverged, TryAgain
from rglcd.launch.failure import JobError
from rglcd.launch.kubernetes_job import run_kubernetes_job
from rglcd.launch.placement import Placement
from rglcd.launch.volcano_job import volcano_job
from rglcd.stages.table import stage_named
from tests.cluster.control_plane import Cluster
from tests.cluster.node import ROOT, KubeletStandIn, process_environment
from tests.cluster.volcano import Faults, VolcanoStandIn
from tests.manifests import pod_security

pytestmark = pytest.mark.cluster

DISTILL = stage_named("distill")


def app(body: str, *, num_nodes: int = 1, image: str = "rg-lcd/train@sha256:0") -> specs.AppDef:
    resource = specs.Resource(cpu=1, gpu=8, memMB=1024)
    role = specs.Role(name="distill", image=image, entrypoint="python", args=["-c", body], num_replicas=num_nodes, resource=resource)
    return specs.AppDef(name="rglcd-distill", roles=[role])


@pytest.fixture
def placement(request: pytest.FixtureRequest, namespace: str, nodes: dict[str, KubeletStandIn], volcano: VolcanoStandIn) -> Placement:
    run = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:60].strip("-")
    return Placement(run=run, image="rg-lcd/train@sha256:0", namespace=namespace, grace_seconds=10, num_failures=0)


@pytest.fixture
def launch(cluster: Cluster, placement: Placement, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Run an app to its end, and leave nothing of it."""

    def run(given: specs.AppDef, **changes: Any) -> None:
        run_kubernetes_job(
            given,
            stage=DISTILL,
            placement=replace(placement, **changes),
            api=cluster.patient_client(),
            failure_file=tmp_path / "student.failure.json",
            poll_seconds=0.3,
        )

    yield run
    cluster.kubectl("delete", "jobs.batch.volcano.sh", "-n", placement.namespace, "-l", f"rg-lcd/run={placement.run}", "--wait=true")
    wait_until(lambda: not pods(cluster, placement), "the pods of a deleted job are gone")


def jobs(cluster: Cluster, placement: Placement) -> list[dict[str, Any]]:
    return cluster.get("jobs.batch.volcano.sh", "-n", placement.namespace, "-l", f"rg-lcd/run={placement.run}")["items"]


def pods(cluster: Cluster, placement: Placement) -> list[dict[str, Any]]:
    return cluster.get("pods", "-n", placement.namespace, "-l", f"rg-lcd/run={placement.run}")["items"]


def wait_until(holds: Callable[[], Any], what: str, *, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return value


def running(cluster: Cluster, placement: Placement, number: int = 1) -> list[dict[str, Any]]:
    found = [pod for pod in pods(cluster, placement) if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]]
    return found if len(found) == number else []


def in_background(act: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


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
    with pytest.raises((InputError, JobError), match=r"ImagePullBackOff.*unpullable"):
        launch(app("pass", image="rg-lcd/unpullable@sha256:0"), start_seconds=5)
    assert jobs(cluster, placement) == []


def test_role_of_the_launcher_is_sufficient(cluster: Cluster, placement: Placement, launch) -> None:
    cluster.kubectl("apply", "-n", placement.namespace, "-f", str(ROOT / "manifests" / "base" / "access.yaml"))
    api = cluster.patient_client()
    api.set_default_header("Impersonate-User", f"system:serviceaccount:{placement.namespace}:rglcd-launcher")
    with pytest.raises(JobError, match="exit code 9"):
        run_kubernetes_job(app("raise SystemExit(9)"), stage=DISTILL, placement=placement, api=api, poll_seconds=0.3)
    given = replace(placement, num_nodes=3, queue_seconds=3)
    with pytest.raises(JobError, match="no nodes after 3 s"):
        run_kubernetes_job(app("import time; time.sleep(60)", num_nodes=3), stage=DISTILL, placement=given, api=api, poll_seconds=0.3)


# --- waiting --------------------------------------------------------------------------------------


def test_a_job_that_finds_no_nodes_says_why_and_gives_up_at_its_deadline(cluster: Cluster, placement: Placement, launch, capfd) -> None:
    with pytest.raises(JobError, match=r"no nodes after 20 s: .*nodes are available") as ended:
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

SAVES = """
import pathlib, signal, sys, time
marker = pathlib.Path({marker!r})
if marker.exists():
    print("goes on from what was saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: (marker.touch(), sys.exit(75)))
time.sleep(60)
"""


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


# --- the launcher comes and goes ------------------------------------------------------------------

LAUNCHER = """
import os, sys
from kubernetes import client, config
from rglcd.launch.boundary import process_boundary
from rglcd.launch.cluster_client import PatientClient
from rglcd.launch.kubernetes_job import run_kubernetes_job
from rglcd.launch.settings import load_settings, placement_of
from rglcd.stages.table import stage_named
from tests.cluster.test_launcher import app
kubeconfig, body = sys.argv[1:]
configuration = client.Configuration()
config.load_kube_config(kubeconfig, client_configuration=configuration)
stage = stage_named("distill")
placement = placement_of(load_settings(), stage=stage, request=body)
with process_boundary():
    run_kubernetes_job(app(body), stage=stage, placement=placement, api=PatientClient(configuration), poll_seconds=0.3)
"""


def start_launcher(cluster: Cluster, placement: Placement, body: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", LAUNCHER, str(cluster.kubeconfig), body]
    variables = {"RGLCD_RUN": placement.run, "RGLCD_NAMESPACE": placement.namespace}
    environment = process_environment(**variables, RGLCD_IMAGE=placement.image, RGLCD_GRACE_SECONDS="10")
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)


def read_until_attached(launcher: subprocess.Popen[str]) -> None:
    assert launcher.stderr is not None
    line = launcher.stderr.readline()
    while not ("submitted" in line or "following" in line):
        assert line, "the launcher ended by itself"
        line = launcher.stderr.readline()


def test_a_launcher_killed_ten_times_has_one_job(cluster: Cluster, placement: Placement, launch, tmp_path: Path) -> None:
    body = f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.2)"
    seen: set[str] = set()
    for _ in range(10):
        launcher = start_launcher(cluster, placement, body)
        read_until_attached(launcher)
        launcher.kill()
        launcher.wait()
        seen |= {job["metadata"]["uid"] for job in jobs(cluster, placement)}
    assert len(seen) == 1
    last = start_launcher(cluster, placement, body)
    read_until_attached(last)
    (tmp_path / "go").touch()
    _, said = last.communicate(timeout=180)
    assert last.returncode == 0, said
    assert {job["metadata"]["uid"] for job in jobs(cluster, placement)} == seen


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_cancelled_launcher_leaves_no_job_and_no_pod(
    cluster: Cluster, placement: Placement, launch, tmp_path: Path, sent: signal.Signals
) -> None:
    launcher = start_launcher(cluster, placement, SAVES.format(marker=str(tmp_path / "saved")))
    wait_until(lambda: running(cluster, placement), "the pod runs")
    time.sleep(1)
    launcher.send_signal(sent)
    _, said = launcher.communicate(timeout=180)
    assert launcher.returncode == TryAgain.exit_code, said
    assert jobs(cluster, placement) == []
    assert pods(cluster, placement) == []
    assert (tmp_path / "saved").exists()


def test_other_work_under_the_same_run_id_is_refused(cluster: Cluster, placement: Placement, launch) -> None:
    launcher = start_launcher(cluster, placement, "import time; time.sleep(60)")
    wait_until(lambda: jobs(cluster, placement), "the job is there")
    with pytest.raises(InputError, match="does other work"):
        launch(app("pass"))
    launcher.terminate()
    launcher.wait(timeout=60)


def test_job_is_deleted_with_its_launchers_pod(cluster: Cluster, placement: Placement, launch, nodes: dict[str, KubeletStandIn]) -> None:
    """Killed too suddenly to delete its job: Kubernetes' garbage collector does, by what Kubeflow's tasks know of themselves."""
    own = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in OWN_FIELDS.items()]
    said = [{"name": "RGLCD_IMAGE", "value": placement.image}, {"name": "RGLCD_GRACE_SECONDS", "value": "10"}]
    words = ["python", "-c", LAUNCHER, str(cluster.kubeconfig), "import time; time.sleep(600)"]
    container = {"name": "main", "image": "rg-lcd/step@sha256:0", "command": words, "env": [*own, *said]}
    metadata = {"name": "launcher", "namespace": placement.namespace, "labels": {"pipeline/runid": placement.run}}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"restartPolicy": "Never", "containers": [container]}})
    wait_until(lambda: running(cluster, placement), "the job's pod runs")
    launcher = cluster.get("pod", "launcher", "-n", placement.namespace)
    (job,) = jobs(cluster, placement)
    assert [owner["uid"] for owner in job["metadata"]["ownerReferences"]] == [launcher["metadata"]["uid"]]

    os.kill(nodes[launcher["spec"]["nodeName"]].process_of(launcher), signal.SIGKILL)
    wait_until(lambda: cluster.get("pod", "launcher", "-n", placement.namespace)["status"]["phase"] == "Failed", "the launcher is dead")
    assert jobs(cluster, placement), "as long as its pod is there, another try may find the job"
    cluster.kubectl("delete", "pod", "launcher", "-n", placement.namespace)
    wait_until(lambda: not jobs(cluster, placement) and not pods(cluster, placement), "job and pods are gone")


# --- TorchX's own command line ---------------------------------------------------------------------


def test_torchx_run_makes_a_job_that_the_namespace_admits(cluster: Cluster, placement: Placement, tmp_path: Path, claim: None) -> None:
    """As a user types it; nothing of a run lies in the claim, so the pod ends with the code of bad input."""
    (tmp_path / "params.yaml").write_text(dump(load_preset("micro")))
    (tmp_path / "cluster.yaml").write_text("cpus: 1\nmemory_gib: 1\ndisk_gib: 8\naccelerators: simulated\nnum_processes: 1\n")
    shutil.copyfile(ROOT / ".torchxconfig", tmp_path / ".torchxconfig")
    component, store = ROOT / "src" / "rglcd" / "launch" / "component.py", tmp_path / "store"
    store.mkdir()
    given = ["--name", "distill", "--image", placement.image, "--run", placement.run, "--store", str(store)]
    words = [str(Path(sys.executable).parent / "torchx"), "run", f"{component}:stage", *given]
    environment = process_environment(KUBECONFIG=str(cluster.kubeconfig), HOME=str(tmp_path))
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (pod,) = wait_until(lambda: [each for each in pods(cluster, placement) if each["status"]["phase"] == "Failed"], "the pod ended")
    assert pod_security.violations(pod["spec"]) == set()
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended["exitCode"] == InputError.exit_code
    assert "is missing or unfinished" in ended["message"]
    name = done.stdout.strip().rpartition("/")[2]
    assert name.rpartition(":")[2] == pod["metadata"]["annotations"]["volcano.sh/job-name"]
    cluster.kubectl("delete", "jobs.batch.volcano.sh", "-n", placement.namespace, name.rpartition(":")[2])


# --- doctor ----------------------------------------------------------------------------------------


def test_doctor_s_pod_is_admitted_looks_and_is_deleted(
    cluster: Cluster, placement: Placement, claim: None, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Names of a cluster are not found on this machine, which the pod says; the claim is a folder here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    Path("params.yaml").write_text(dump(load_preset("micro")))
    Path("cluster.yaml").write_text(f"image: {placement.image}\nstore_claim: rglcd-store={tmp_path}\n")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--cluster", "--pod"])
    assert ended.value.code == InputError.exit_code
    said = capsys.readouterr().out
    assert f"ok       a pod of {placement.image} starts" in said
    assert "MISSING  names are found in a pod (" in said
    assert "ok       the claim is writable for user 10001" in said
    wait_until(
        lambda: not cluster.get("pods", "-n", placement.namespace, "-l", "app.kubernetes.io/name=rglcd-doctor")["items"], "it is gone"
    )
