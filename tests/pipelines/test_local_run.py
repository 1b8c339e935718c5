"""The whole pipeline on this machine: Kubeflow's local runner makes what the stages called directly make."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import ResNetConfig, ResNetModel

from rglcd.config import dump
from rglcd.data.manifest import read_manifest
from rglcd.launch.execute import execute
from rglcd.stages.table import SOURCE, inputs_of, stages_of
from tests.tiny_line import tiny_config, write_tiny_source
from tests.tiny_models import write_tiny_clip, write_tiny_teacher

CONFIG = tiny_config(
    "model.teacher.uri=./toy/teacher",
    "preparation.scorers.expert.source.uri=./toy/expert",
    "preparation.features.source.uri=./toy/features",
    "reward={kind: none}",
    "distillation.arms=[lcm]",
    "evaluation={num_images: 4, num_steps: [1], teacher_steps: 2, batch_size: 4, grid_prompts: 1}",
)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    write_tiny_source(data)
    (data / "prompts").mkdir()
    (data / "prompts" / "heldout.txt").write_text("picture 1\npicture 2\n")
    (data / "reference").mkdir()
    shutil.copytree(data / "images", data / "reference" / "images")
    shutil.copy(data / "index.tsv", data / "reference" / "index.tsv")
    write_tiny_teacher(tmp_path / "toy" / "teacher")
    write_tiny_clip(tmp_path / "toy" / "expert")
    features = ResNetConfig(num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(features).save_pretrained(tmp_path / "toy" / "features")
    (tmp_path / "params.yaml").write_text(dump(CONFIG))
    (tmp_path / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": "0" * 32 + ".dir", "path": "data"}]}))
    return tmp_path


def run_pipeline() -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pipelines", "run"], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_kubeflow_makes_what_direct_calls_make_and_makes_it_once(checkout: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{Path(__file__).parents[2] / 'src'}")
    ran = run_pipeline()
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"done; the report is {checkout / 'artifacts' / 'report' / 'index.html'}\n"
    for stage in stages_of(CONFIG):
        names = (*inputs_of(stage, CONFIG), *stage.outputs)
        folders = {name: checkout / ("data" if name == SOURCE else f"direct/{name}") for name in names}
        outcome = execute(stage.name, sections={name: CONFIG.section(name) for name in stage.sections}, artifacts=folders)
        assert outcome is not None
        made = read_manifest(checkout / "artifacts" / stage.outputs[0], made_by=stage.name)
        assert (made.key, made.digest) == (outcome.manifest.key, outcome.manifest.digest)
    again = run_pipeline()
    assert again.returncode == 0
    assert again.stderr == ""  # no stage reported progress: there was nothing to do
