"""TorchX's own command line runs a stage by our component file and .torchxconfig, as a user types it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchx.components.component_test_base import ComponentTestCase

from rglcd.cli import main
from rglcd.config import dump, load_preset
from rglcd.launch import component
from tests.launch.conftest import IMAGE
from tests.manifests import pod_security

ROOT = Path(__file__).parents[2]
TYPED = ("torchx", "run", "--dryrun", f"{component.__file__}:stage", "--image", IMAGE)


class TestComponent(ComponentTestCase):
    def test_torchx_validates_the_component(self) -> None:
        self.validate(component, "stage")


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Path:
    """A configuration, TorchX's settings as the repository has them, and no cluster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    (tmp_path / "params.yaml").write_text(dump(load_preset("micro")))
    shutil.copyfile(ROOT / ".torchxconfig", tmp_path / ".torchxconfig")
    return tmp_path


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / TYPED[0]), *TYPED[1:], *words]
    return subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [task["template"] for task in job["spec"]["tasks"]]


def test_torchx_s_command_line_makes_the_pods_of_rglcd_launch(project: Path, capsys) -> None:
    (project / "cluster.yaml").write_text(yaml.safe_dump({"gpus": 4, "gpu_label": "nvidia.com/gpu.family=hopper", "pull_secrets": ["r"]}))
    done = typed("--name", "distill", "--nodes", "2")
    assert done.returncode == 0, done.stderr
    job = yaml.safe_load(done.stdout.partition("=== SCHEDULER REQUEST ===")[2])
    assert (job["spec"]["queue"], job["spec"]["priorityClassName"]) == ("rglcd", "rglcd-training")
    words = ["--run", "torchx", "--nodes", "2", "--image", IMAGE, "--store", "/store"]
    assert main(["launch", "distill", "--dry-run", *words]) == 0
    ours = yaml.safe_load(capsys.readouterr().out)
    assert len(pods(job)) == len(pods(ours)) == 2
    for theirs, own in zip(pods(job), pods(ours), strict=True):
        assert pod_security.violations(theirs["spec"]) == set()
        assert _comparable(theirs, job) == _comparable(own, ours)


def _comparable(pod: dict[str, Any], job: dict[str, Any]) -> str:
    """A pod without TorchX's own labels and variables, and without the job's name."""
    name, spec = job["metadata"]["name"], {**pod["spec"]}
    (container,) = spec.pop("containers")
    variables = {entry["name"]: entry for entry in container["env"] if not entry["name"].startswith("TORCHX_")}
    labels = {key: value for key, value in pod["metadata"]["labels"].items() if "torchx" not in key and "kubernetes.io" not in key}
    text = yaml.safe_dump({"labels": labels, "spec": {key: value for key, value in spec.items() if value}})
    text += yaml.safe_dump({**container, "env": variables})
    return text.replace(name, "JOB")


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (["--name", "pretend"], {}, "'pretend' is no stage of params.yaml; its stages are: shard, prepare, cache, pretrain, distill"),
        (["--name", "distill", "--params", "none.yaml"], {}, "none.yaml is missing; write it with: rglcd config use toy"),
        (["--name", "distill"], {"gpu": 1}, "cluster.yaml"),
        (["--name", "distill"], {"secrets": ["hub/HF_TOKEN"]}, "TorchX's overlay cannot hand on a key of a Secret (hub/HF_TOKEN"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], settings: dict[str, Any], said: str, project: Path, capsys) -> None:
    from torchx.cli.main import main as torchx

    (project / "cluster.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as ended:
        torchx([*TYPED[1:], *words])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    (line,) = [line for line in error.splitlines() if line.startswith("rglcd: ")]
    assert said in line
    assert "Traceback" not in error
