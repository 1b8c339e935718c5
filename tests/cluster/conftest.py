"""The micro line, run on this machine by one process: what jobs begin with, and what they must equal; and jobs of the launcher."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torchx import specs

from rglcd.launch.kubernetes_job import run_kubernetes_job
from rglcd.launch.placement import Placement
from tests.cluster.control_plane import Cluster
from tests.cluster.launching import DISTILL, pods, wait_until
from tests.cluster.node import KubeletStandIn
from tests.cluster.volcano import VolcanoStandIn
from tests.end_to_end.conftest import Checkout, make_line


@pytest.fixture(scope="session")
def micro_line(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return make_line(tmp_path_factory.mktemp("micro-line") / "checkout")


def checkout_like(made: Checkout, root: Path) -> Checkout:
    """The same checkout with nothing made in it yet."""
    shutil.copytree(made.root, root, ignore=lambda folder, _: {"artifacts"} if Path(folder) == made.root else set())
    return Checkout(root)


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
