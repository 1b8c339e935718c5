"""TorchX's own command line runs a stage by our component file and .torchxconfig."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torchx.components.component_test_base import ComponentTestCase

from rglcd.config import dump, load_preset
from rglcd.errors import InputError
from rglcd.launch import component

ROOT = Path(__file__).parents[2]
IMAGE = "registry/train@sha256:" + "0" * 64


class TestComponent(ComponentTestCase):
    def test_torchx_validates_the_component(self) -> None:
        self.validate(component, "stage")


def test_unknown_stage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(dump(load_preset("micro", overrides=["reward={kind: none}"])))
    with pytest.raises(InputError, match="its stages are: shard, prepare, cache, distill, evaluate"):
        component.stage("pretrain", IMAGE, params=str(tmp_path / "params.yaml"))


def test_torchx_command_line_renders_the_component(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(dump(load_preset("micro")))
    shutil.copyfile(ROOT / ".torchxconfig", tmp_path / ".torchxconfig")
    words = ["torchx", "run", "--dryrun", "-cfg", "validate_spec=False", f"{component.__file__}:stage"]
    given = ["--name", "distill", "--image", IMAGE, "--nodes", "2"]
    command = [str(Path(sys.executable).parent / words[0]), *words[1:], *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    job = yaml.safe_load(done.stdout.partition("=== SCHEDULER REQUEST ===")[2])
    assert job["spec"]["queue"] == "rglcd"
    assert len(job["spec"]["tasks"]) == 2
    for task in job["spec"]["tasks"]:
        pod = task["template"]
        assert pod["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        assert pod["spec"]["terminationGracePeriodSeconds"] == 300
        assert pod["spec"]["serviceAccountName"] == "rglcd-stage"
        assert pod["metadata"]["labels"]["rg-lcd/stage"] == "distill"
        variables = {entry["name"]: entry for entry in pod["spec"]["containers"][0]["env"]}
        assert variables["RGLCD_POD_IP"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
        assert variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]["value"] == "290"
