"""The micro distillation as a job of two pods: trained, evicted in the middle, resumed, the same to the last bit.

The API server and the scheduler are real; kubelet and Volcano's controller are the stand-ins of this folder.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rglcd.store.manifest import read_manifest
from tests.cluster.control_plane import Cluster, free_port
from tests.cluster.failing_proxy import FailingProxy, Fate, Outage, Schedule
from tests.cluster.launching import wait_until
from tests.cluster.node import KubeletStandIn
from tests.end_to_end.conftest import Checkout

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("nodes", "volcano", "claim")]

IMAGE = "rg-lcd/train@sha256:" + "1" * 64


@dataclass(frozen=True)
class Launch:
    """``rglcd launch distill`` on a store of its own."""

    cluster: Cluster
    checkout: Checkout
    store: Path
    run: str
    variables: Mapping[str, str] = field(default_factory=dict)
    kubeconfig: Path | None = None

    def start(self) -> subprocess.Popen[str]:
        environment = self.checkout.environment(
            KUBECONFIG=str(self.kubeconfig or self.cluster.kubeconfig),
            RGLCD_NUM_PROCESSES="1",
            RGLCD_ACCELERATORS="simulated",
            RGLCD_RENDEZVOUS_PORT=str(free_port()),
            RGLCD_FAILURES="1",
            **{"RGLCD_GRACE_SECONDS": "60", **self.variables},
        )
        words = (
            "rglcd",
            "launch",
            "distill",
            "--run",
            self.run,
            "--nodes",
            "2",
            "--image",
            IMAGE,
            "--store",
            str(self.store),
        )
        return subprocess.Popen(
            self.checkout.command(*words),
            cwd=self.checkout.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def pods(self) -> list[dict[str, Any]]:
        return self.cluster.get("pods", "-n", "rglcd", "-l", f"rg-lcd/run={self.run}")["items"]

    def jobs(self) -> list[dict[str, Any]]:
        return self.cluster.get("jobs.batch.volcano.sh", "-n", "rglcd", "-l", f"rg-lcd/run={self.run}")["items"]

    def job(self) -> dict[str, Any]:
        (job,) = self.jobs()
        return job

    def checkpoints(self) -> list[Path]:
        return sorted(self.store.glob(".work/student-*/.*.checkpoints/step-*"))

    def first_step(self) -> int:
        """The first step that the pods of the last start report."""
        for pod in self.pods():
            for line in self.cluster.kubectl("logs", "-n", "rglcd", pod["metadata"]["name"]).stdout.splitlines():
                progress = json.loads(line).get("progress", {})
                if progress.get("task", "").startswith("distill ") and progress["done"] > 0:
                    return int(progress["done"])
        raise AssertionError("the pods report no step")

    def digest(self) -> str:
        return read_manifest(self.store / "student", made_by="distill").digest


def launch_on(cluster: Cluster, checkout: Checkout, tmp_path: Path, run: str, **variables: str) -> Launch:
    """A launch on a store that holds what is made before the distillation, and nothing of that."""
    store = tmp_path / "store"
    shutil.copytree(checkout.root / "artifacts", store, ignore=shutil.ignore_patterns("student", "report"))
    return Launch(cluster, checkout, store, run, variables)


@pytest.fixture(scope="module")
def unbroken(cluster: Cluster, micro_line: Checkout, tmp_path_factory: pytest.TempPathFactory, claim: None) -> Iterator[Launch]:
    launched = launch_on(cluster, micro_line, tmp_path_factory.mktemp("unbroken"), "unbroken")
    process = launched.start()
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return launched


def test_two_pods_train_one_student(unbroken: Launch) -> None:
    job = unbroken.job()
    assert job["status"]["state"]["phase"] == "Completed"
    assert {pod["spec"]["nodeName"] for pod in unbroken.pods()} == {"a100-0", "a100-1"}
    assert unbroken.digest()


def test_training_that_was_evicted_ends_in_the_same_student(
    cluster: Cluster, micro_line: Checkout, unbroken: Launch, tmp_path: Path
) -> None:
    launched = launch_on(cluster, micro_line, tmp_path, "evicted")
    process = launched.start()
    wait_until(launched.checkpoints, "a checkpoint is there", seconds=300)
    before = {pod["metadata"]["uid"] for pod in launched.pods()}
    name = launched.job()["metadata"]["name"] + "-distill-1-0"
    eviction = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": name, "namespace": "rglcd"}}
    cluster.kubectl("create", "--raw", f"/api/v1/namespaces/rglcd/pods/{name}/eviction", "-f", "-", stdin=json.dumps(eviction))
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    versions = {pod["metadata"]["uid"]: pod["metadata"]["annotations"]["volcano.sh/job-version"] for pod in launched.pods()}
    assert set(versions.values()) == {"1"}
    assert not before & versions.keys()
    assert launched.first_step() > 1  # from the checkpoint, not from the beginning
    assert launched.job()["metadata"]["labels"]["rg-lcd/attempt"] == "1"
    assert launched.digest() == unbroken.digest()


def test_training_through_an_api_server_that_fails_ends_in_the_same_student(
    cluster: Cluster, micro_line: Checkout, unbroken: Launch, tmp_path: Path
) -> None:
    """One call in five ends badly, nothing gets through for half a minute while it trains, and logs are cut every two seconds."""
    rates = dict.fromkeys((Fate.ERROR, Fate.BUSY, Fate.UNKNOWN, Fate.RESET, Fate.LOST, Fate.HALF), 0.03) | {Fate.SILENT: 0.01}
    schedule = Schedule("training", rates, (Outage(begins=10, lasts=30),), stream_seconds=2)
    proxy = FailingProxy(cluster, schedule)
    launched = replace(launch_on(cluster, micro_line, tmp_path, "failing-server"), kubeconfig=proxy.kubeconfig(tmp_path / "kubeconfig"))
    said, _ = (process := launched.start()).communicate(timeout=600)
    proxy.close()
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert proxy.seen[Fate.RESET] > 1, "the outage was seen"
    assert launched.job()["metadata"]["labels"]["rg-lcd/attempt"] == "1"
    assert launched.digest() == unbroken.digest()


def test_a_killed_rank_is_named_and_the_next_attempt_goes_on(
    cluster: Cluster, micro_line: Checkout, unbroken: Launch, nodes: dict[str, KubeletStandIn], tmp_path: Path
) -> None:
    launched = launch_on(cluster, micro_line, tmp_path, "killed")
    process = launched.start()
    wait_until(launched.checkpoints, "a checkpoint is there", seconds=300)
    pod = next(pod for pod in launched.pods() if pod["metadata"]["name"].endswith("distill-1-0"))
    os.kill(_rank_of(nodes[pod["spec"]["nodeName"]].process_of(pod)), signal.SIGKILL)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "ended with exit code 137" in said
    assert {job["metadata"]["labels"]["rg-lcd/attempt"]: job["status"]["state"]["phase"] for job in launched.jobs()} == {
        "1": "Terminated",
        "2": "Completed",
    }
    assert launched.digest() == unbroken.digest()


def test_frozen_rank_times_out_and_the_next_attempt_goes_on(
    cluster: Cluster, micro_line: Checkout, unbroken: Launch, nodes: dict[str, KubeletStandIn], tmp_path: Path
) -> None:
    """It does not fail, it does not answer: the other one's collective operation times out, and the job fails."""
    launched = launch_on(cluster, micro_line, tmp_path, "frozen", RGLCD_COLLECTIVE_TIMEOUT="15", RGLCD_GRACE_SECONDS="20")
    process = launched.start()
    wait_until(launched.checkpoints, "a checkpoint is there", seconds=300)
    ranks = [_rank_of(nodes[pod["spec"]["nodeName"]].process_of(pod)) for pod in launched.pods()]
    os.kill(ranks[-1], signal.SIGSTOP)
    wait_until(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), "both ranks are gone", seconds=60)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert {job["metadata"]["labels"]["rg-lcd/attempt"]: job["status"]["state"]["phase"] for job in launched.jobs()} == {
        "1": "Terminated",
        "2": "Completed",
    }
    assert launched.digest() == unbroken.digest()


def _rank_of(entry: int) -> int:
    """The process id of the one rank under a pod's entry."""
    children = Path(f"/proc/{entry}/task/{entry}/children")
    for _ in range(50):
        ranks = [int(word) for word in children.read_text().split() if b"\0run\0distill\0" in Path(f"/proc/{word}/cmdline").read_bytes()]
        if ranks:
            return ranks[0]
        time.sleep(0.1)
    raise AssertionError("the pod has no rank")
