"""Kubeflow's local runner with ``RGLCD_RUNTIME=torchx:kubernetes``: every stage that needs a GPU goes to the cluster as a job.

The API server and the scheduler are real; kubelet and Volcano's controller are the stand-ins of this folder.
"""

import pytest

from rglcd.stages.table import Profile, stages_of
from tests.cluster.control_plane import Cluster, free_port
from tests.end_to_end.conftest import MICRO, Checkout, make_checkout

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("nodes", "volcano", "claim")]


def test_the_micro_line_through_the_cluster_ends_in_the_digests_of_one_process(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here, there = (make_checkout(tmp_path_factory.mktemp(name) / "checkout") for name in ("here", "there"))
    environment = {
        "RGLCD_RUNTIME": "torchx:kubernetes",
        "RGLCD_RUN": "whole-line",
        "RGLCD_IMAGE": "rg-lcd/train@sha256:" + "0" * 64,
        "RGLCD_NUM_PROCESSES": "1",
        "RGLCD_ACCELERATORS": "simulated",
        "RGLCD_RENDEZVOUS_PORT": str(free_port()),
        # One volume holds source and artifacts, and is mounted where this machine has them.
        "RGLCD_STORE_CLAIM": f"rglcd-store={there.root}",
        "KUBECONFIG": str(cluster.kubeconfig),
    }
    done = there.run("python", "-m", "pipelines", "run", env=environment)
    assert done.returncode == 0, done.stderr
    jobs = cluster.get("jobs.batch.volcano.sh", "-n", "rglcd", "-l", "rg-lcd/run=whole-line")["items"]
    launched = {job["metadata"]["labels"]["rg-lcd/stage"]: job["status"]["state"]["phase"] for job in jobs}
    assert launched == {stage.name: "Completed" for stage in stages_of(MICRO) if stage.profile is not Profile.CPU}

    _run_all(here)
    assert there.digests() == here.digests()

    again = there.run("python", "-m", "pipelines", "run", env=environment)
    assert again.returncode == 0, again.stderr
    after = cluster.get("jobs.batch.volcano.sh", "-n", "rglcd", "-l", "rg-lcd/run=whole-line")["items"]
    assert {job["metadata"]["uid"] for job in after} == {job["metadata"]["uid"] for job in jobs}


def _run_all(checkout: Checkout) -> None:
    done = checkout.run("rglcd", "run", "all")
    assert done.returncode == 0, done.stderr
