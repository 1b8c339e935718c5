"""Kubeflow's local runner with ``RGLCD_RUNTIME=torchx:kubernetes``: every stage that needs a GPU goes to the cluster as a job.

The API server, the scheduler and the S3 API are real; kubelet and Volcano's controller are the stand-ins of this folder.
"""

import os
from pathlib import Path

import pytest

from rglcd.stages.table import Profile, stages_of
from rglcd.store.manifest import read_manifest
from tests.cluster.conftest import checkout_like
from tests.cluster.control_plane import Cluster, free_port
from tests.end_to_end.conftest import ARTIFACTS, MICRO, Checkout
from tests.object_store import CREDENTIALS

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("nodes", "volcano", "claim")]


def test_the_micro_line_through_the_cluster_ends_in_the_digests_of_one_process(
    cluster: Cluster, micro_line: Checkout, bucket: str, tmp_path: Path
) -> None:
    there = checkout_like(micro_line, tmp_path / "checkout")
    environment = {
        "RGLCD_RUNTIME": "torchx:kubernetes",
        "RGLCD_RUN": "whole-line",
        "RGLCD_IMAGE": "rg-lcd/train@sha256:" + "1" * 64,
        "RGLCD_NUM_PROCESSES": "1",
        "RGLCD_ACCELERATORS": "simulated",
        "RGLCD_RENDEZVOUS_PORT": str(free_port()),
        # One volume holds the source, manifests and checkpoints, and is mounted where this machine has them; the bytes lie in the bucket.
        "RGLCD_STORE_CLAIM": f"rglcd-store={there.root}",
        "RGLCD_STORE": f"{bucket}/whole-line",
        "KUBECONFIG": str(cluster.kubeconfig),
    }
    keys = {name: os.environ[name] for name in (*CREDENTIALS, "AWS_ENDPOINT_URL")}
    metadata = {"name": "rglcd-store", "namespace": "rglcd"}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys})
    done = there.run("python", "-m", "pipelines", "run", env=environment)
    assert done.returncode == 0, done.stderr
    jobs = cluster.get("jobs.batch.volcano.sh", "-n", "rglcd", "-l", "rg-lcd/run=whole-line")["items"]
    launched = {job["metadata"]["labels"]["rg-lcd/stage"]: job["status"]["state"]["phase"] for job in jobs}
    assert launched == {stage.name: "Completed" for stage in stages_of(MICRO) if stage.profile is not Profile.CPU}

    assert there.digests() == micro_line.digests()
    for name in ARTIFACTS:
        manifest = read_manifest(there.root / "artifacts" / name, made_by="?")
        assert manifest.store == f"{bucket}/whole-line/{name}/{manifest.key}"

    again = there.run("python", "-m", "pipelines", "run", env=environment)
    assert again.returncode == 0, again.stderr
    after = cluster.get("jobs.batch.volcano.sh", "-n", "rglcd", "-l", "rg-lcd/run=whole-line")["items"]
    assert {job["metadata"]["uid"] for job in after} == {job["metadata"]["uid"] for job in jobs}
