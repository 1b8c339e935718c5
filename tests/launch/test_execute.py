"""Where a stage runs is the environment's business, and a failure looks the same wherever it ran."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rglcd.config import load_preset
from rglcd.errors import InputError
from rglcd.launch.child_processes import children_reporting
from rglcd.launch.execute import execute
from rglcd.launch.kubeflow import assist_component
from tests.tiny_line import run as run_tiny
from tests.tiny_line import tiny_config, write_tiny_source

REFUSES = """
from rglcd.errors import InputError
from rglcd.launch.boundary import process_boundary
with process_boundary():
    raise InputError("no")
"""


def ask(stage: str, tmp_path: Path, *sections: str) -> None:
    config = load_preset("micro")
    folders = {name: tmp_path / name for name in ("source", "shards", "pretrained", "latents", "student", "report")}
    execute(stage, sections={name: config.section(name) for name in sections}, artifacts=folders)


@pytest.mark.parametrize(
    ("variable", "value", "match"),
    [
        ("RGLCD_RUNTIME", "slurm", "'slurm'; it is one of: inline, torchx:local_cwd, torchx:kubernetes"),
        ("RGLCD_NUM_PROCESSES", "many", "whole number"),
        ("RGLCD_NUM_PROCESSES", "0", "whole number"),
    ],
)
def test_wrong_variable_is_refused_before_a_stage_runs(monkeypatch, tmp_path: Path, variable: str, value: str, match: str) -> None:
    monkeypatch.setenv("RGLCD_RUNTIME", "torchx:local_cwd")
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=match):
        ask("evaluate", tmp_path, "model", "evaluation")


@pytest.mark.parametrize("runtime", ["inline", "torchx:local_cwd"])
def test_missing_input_has_the_same_message_here_and_in_a_job(monkeypatch, tmp_path: Path, runtime: str) -> None:
    (tmp_path / "source").mkdir()
    monkeypatch.setenv("RGLCD_RUNTIME", runtime)
    with pytest.raises(InputError, match=r"pretrained is missing or unfinished; make it with: rglcd run prepare$"):
        ask("evaluate", tmp_path, "model", "evaluation")


def test_children_report_through_the_channel_and_the_environment_is_restored(monkeypatch) -> None:
    monkeypatch.setenv("RGLCD_PROGRESS", "/before")
    with children_reporting() as channel:
        assert channel.failure() is None
        assert subprocess.run([sys.executable, "-c", REFUSES], check=False, capture_output=True).returncode == 2
        failure = channel.failure()
    assert failure is not None
    assert (failure.message, failure.exit_code) == ("no", 2)
    assert os.environ["RGLCD_PROGRESS"] == "/before"
    assert "TORCHELASTIC_ERROR_FILE" not in os.environ


def test_worker_makes_its_part_of_a_stage_and_publishes_nothing(tmp_path: Path, capsys) -> None:
    config = tiny_config("sharding.parts=2")
    write_tiny_source(tmp_path / "data")
    sections = {"sharding": config.sharding.model_dump(mode="json")}
    made: dict[str, int] = {}
    for part, names in enumerate([["00000.tar", "00002.tar"], ["00001.tar"]]):
        assist_component("shard", sections=sections, source=f"{tmp_path / 'data'}@md5", store=str(tmp_path), part=part)
        assert f"part {part}" in capsys.readouterr().out
        assert not (tmp_path / "shards").exists()
        (staging,) = tmp_path.glob(".work/shards-*/")
        before, made = made, {path.name: path.stat().st_mtime_ns for path in staging.glob("*.tar")}
        assert sorted(made.keys() - before.keys()) == names
        assert before.items() <= made.items()
    published = run_tiny(tmp_path, config, "shard").folder
    assert {path.name: path.stat().st_mtime_ns for path in published.glob("*.tar")} == made
