"""Launchers that are killed, cancelled, or lost with their pod: the next one adopts their job, or nothing of it is left."""

import os
import signal
import time
from pathlib import Path

import pytest

from pipelines.rg_lcd import OWN_FIELDS
from rglcd.errors import InputError, TryAgain
from rglcd.launch.placement import Placement
from tests.cluster.control_plane import Cluster
from tests.cluster.launching import LAUNCHER, SAVES, app, jobs, pods, read_until_attached, running, start_launcher, wait_until
from tests.cluster.node import KubeletStandIn

pytestmark = pytest.mark.cluster


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
