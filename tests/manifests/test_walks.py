"""The walks of docs/operations.md for three clusters, line by line, on a real API server without nodes."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rglcd.cli import main
from rglcd.stages.table import STAGES
from tests.cluster.control_plane import Cluster
from tests.launch.conftest import IMAGE
from tests.manifests.rendering import MANIFESTS

pytestmark = pytest.mark.cluster

PAGE = MANIFESTS.parent / "docs" / "operations.md"
OVERLAYS = ("a100", "one-gpu", "local")


def walk(overlay: str) -> list[str]:
    """The lines of the code block that applies ``overlay``."""
    section = PAGE.read_text().partition("### Three clusters")[2].partition("\n### ")[0]
    blocks = [block.strip().splitlines() for block in re.findall("^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)]
    (found,) = (lines for lines in blocks if any(f"overlays/{overlay} " in line for line in lines))
    return found


@pytest.fixture
def checkout(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty project with the manifests, and a cluster without anything of ours before and after."""
    ours = ["namespace/rglcd", "queue.scheduling.volcano.sh/rglcd", "priorityclass/rglcd-training", "priorityclass/rglcd-evaluation"]
    cluster.kubectl("delete", *ours, "--ignore-not-found", "--timeout=120s")
    (tmp_path / "manifests").symlink_to(MANIFESTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    monkeypatch.setenv("RGLCD_IMAGE", IMAGE)
    yield tmp_path
    cluster.kubectl("delete", *ours, "--ignore-not-found", "--timeout=120s")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_walk_ends_in_jobs_that_the_cluster_takes(overlay: str, cluster: Cluster, checkout: Path, capsys) -> None:
    """Jobs are dry runs here, and no pod looks around: there are no nodes."""
    said = ""
    for line in walk(overlay):
        words = line.split()
        match words:
            case ["for", "stage", "in", *rest]:
                stages = [word.rstrip(";") for word in rest[: rest.index("do")]]
                assert set(stages) <= {stage.name for stage in STAGES}
                assert line.endswith("do rglcd launch $stage || break; done")
                for stage in stages:
                    main(["launch", stage, "--dry-run"])
                    job = capsys.readouterr().out
                    made = cluster.kubectl("apply", "-f", "-", "--dry-run=server", "--validate=strict", stdin=job).stdout
                    assert "created (server dry run)" in made
            case ["rglcd", "doctor", "--cluster", "--pod"]:
                with pytest.raises(SystemExit):
                    main(["doctor", "--cluster"])
                said = capsys.readouterr().out
            case ["rglcd", *rest]:
                main(rest)
            case _:
                subprocess.run(words, cwd=checkout, check=True, capture_output=True)
    capsys.readouterr()
    missing = [each.removeprefix("MISSING  ") for each in said.splitlines() if each.startswith("MISSING")]
    assert all(each.startswith(("Kubernetes v1.", "nodes with ")) for each in missing), said
    for stage in ("shard", "cache", "distill", "evaluate"):
        assert f"ok       {stage} fits" in said
