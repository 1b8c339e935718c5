"""TorchX's own command line and ``rglcd doctor`` on the test's cluster."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rglcd.cli import main
from rglcd.config import dump, load_preset
from rglcd.errors import InputError
from rglcd.launch.placement import Placement
from rglcd.launch.volcano_job import USER
from tests.cluster.control_plane import Cluster
from tests.cluster.launching import pods, wait_until
from tests.cluster.node import ROOT, KubeletStandIn, process_environment
from tests.manifests import pod_security
from tests.manifests.rendering import MANIFESTS

pytestmark = pytest.mark.cluster


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


@pytest.mark.skipif(os.getuid() != 0, reason="changes an owner, as the pod's root does: needs root")
def test_the_job_for_a_fresh_claim_gives_it_to_the_pods_user(
    cluster: Cluster, placement: Placement, nodes: dict[str, KubeletStandIn], claim: None, tmp_path: Path
) -> None:
    """The command of docs/operations.md, but for the claim, which is a folder here."""
    store = tmp_path / "store"
    store.mkdir(mode=0o755)
    (store / "lost+found").mkdir()
    words = "kubectl kustomize manifests/fresh-claim | sed \"s|image: step$|image: $(sed -n 's/^step: //p' images/lock.yaml)|\""
    assert words in (ROOT / "docs" / "operations.md").read_text()
    made = subprocess.run(["bash", "-c", words], cwd=MANIFESTS.parent, capture_output=True, text=True, check=True).stdout
    assert "image: rg-lcd/python-step@sha256:" in made
    cluster.kubectl("apply", "-f", "-", "--validate=strict", stdin=made.replace("/store", str(store)))
    cluster.kubectl("wait", "-n", placement.namespace, "--for=condition=complete", "job/rglcd-fresh-claim", "--timeout=60s")
    assert (store.stat().st_uid, store.stat().st_gid) == (USER, USER)
    assert (store / "lost+found").stat().st_uid == 0
    cluster.kubectl("delete", "job", "-n", placement.namespace, "rglcd-fresh-claim")
