"""All six stages with their bytes in an object store: in folders that keep manifests, as Kubeflow's tasks, and in a small cache."""

import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.shard_part import shard_part
from pipelines.rg_lcd import arguments
from rglcd.config import Config
from rglcd.launch.artifact_reference import read_reference
from rglcd.stages.run import run_part, run_stage
from rglcd.stages.table import SOURCE, STAGES, inputs_of, stage_named
from rglcd.store.artifacts import at_key
from rglcd.store.manifest import MANIFEST, read_manifest
from tests.object_store import put_folder
from tests.tiny_line import (
    TINY_EVALUATION,
    published_model_settings,
    run,
    tiny_config,
    write_published_models,
    write_tiny_evaluation_data,
    write_tiny_source,
)

NAMES = tuple(stage.name for stage in STAGES)
CARDS = {"metrics": "metrics.json", "page": "index.html", "summary": "report.md"}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source, model folders, and every stage of the pipeline run in folders; read it, do not write it."""
    root = tmp_path_factory.mktemp("line")
    write_tiny_source(root / "data")
    write_tiny_evaluation_data(root / "data")
    write_published_models(root / "models")
    for name in NAMES:
        run(root, config_of(root), name)
    return root


def config_of(line: Path, *overrides: str) -> Config:
    return tiny_config(*published_model_settings(line / "models"), *TINY_EVALUATION, *overrides)


def digests(root: Path) -> dict[str, str]:
    return {(path := root / output).name: read_manifest(path, made_by="?").digest for stage in STAGES for output in stage.outputs}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_every_stage_runs_on_a_store_with_a_small_cache(line: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RGLCD_STORE", f"{bucket}/run")
    tars = [entry.bytes for name, entry in read_manifest(line / "shards", made_by="?").files.items() if name.endswith(".tar")]
    limit = max(tars) + sum(entry.bytes for entry in read_manifest(line / "pretrained", made_by="?").files.values())
    monkeypatch.setenv("RGLCD_CACHE_GIB", repr(limit / 2**30))
    shutil.copytree(line / "data", tmp_path / "data")
    for name in NAMES:
        assert not run(tmp_path, config_of(line), name).was_done
        assert sum(path.stat().st_size for path in (tmp_path / ".cache").rglob("*") if path.is_file()) <= limit
        if name == "cache":
            assert len(list((tmp_path / ".cache").glob("shards-*/*.tar"))) < len(tars), "they were let go, one by one"
    assert digests(tmp_path) == digests(line)
    assert files(tmp_path / "pretrained") == {MANIFEST}
    assert files(tmp_path / "report") == {MANIFEST, *read_manifest(line / "report", made_by="?").matching(stage_named("evaluate").kept)}
    for kept in ("metrics.json", "metrics/rg-2.json", "quality.csv"):
        assert (tmp_path / "report" / kept).read_bytes() == (line / "report" / kept).read_bytes()
    shutil.rmtree(tmp_path / ".cache")
    assert all(run(tmp_path, config_of(line), name).was_done for name in NAMES)


def test_measurements_in_the_store_are_reused(line: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its times too: nothing was drawn again."""
    root = Path(shutil.copytree(line, tmp_path / "line"))
    monkeypatch.setenv("RGLCD_STORE", f"{bucket}/run")
    moved = run(root, config_of(line), "evaluate")
    assert moved.was_done
    shutil.rmtree(root / ".cache")
    more = run(root, config_of(line, "evaluation.num_steps=[1,2,3]"), "evaluate")
    drawn = {name: entry for name, entry in moved.manifest.files.items() if name.startswith("draws/")}
    assert any(name.endswith("speed.json") for name in drawn)
    assert drawn.items() < {name: entry for name, entry in more.manifest.files.items() if name.startswith("draws/")}.items()


def test_kubeflow_tasks_share_only_the_store(line: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task on a disk of its own, the source in the bucket too, nothing handed on but what Kubeflow does: small references."""
    put_folder(line / "data", f"{bucket}/source")
    config = config_of(line, "sharding.parts=2")
    given = arguments(config, source=f"{bucket}/source@md5", store=f"{bucket}/run")
    for part in range(2):
        monkeypatch.setenv("RGLCD_CACHE", str(tmp_path / f"worker{part}"))
        shard_part.python_func(sharding=given["sharding"], source=given[SOURCE], store=given["store"], part=part)
    made: dict[str, dsl.Artifact] = {}
    for stage in STAGES:
        monkeypatch.setenv("RGLCD_CACHE", str(tmp_path / stage.name))
        made |= _task(stage.name, given, {name: made[name] for name in inputs_of(stage, config) if name != SOURCE}, tmp_path)
    found = {name: artifact.metadata["digest"] for name, artifact in made.items() if name not in CARDS}
    assert found == digests(line)
    keys = {name: read_manifest(line / name, made_by="?").key for name in found}
    stored = {name: artifact.metadata["uri"].rpartition("/") for name, artifact in made.items() if name not in CARDS}
    assert {name: place for name, (place, _, _) in stored.items()} == {name: f"{bucket}/run/{name}" for name in found}
    assert stored["pretrained"][2] == keys["pretrained"], "what reads no source has the same key everywhere"
    assert not list((tmp_path / "shard").glob("**/*.tar")), "the tars were made by the workers, and stayed where they are"
    for card, name in CARDS.items():
        assert Path(made[card].path).read_bytes() or name
    assert Path(made["metrics"].path).read_bytes() == (line / "report" / "metrics.json").read_bytes()


def test_a_task_on_a_shared_folder_with_a_store_passes_the_folder_on(
    line: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a cluster: a job's artifacts are named by the folder that its pods mount, and their bytes lie in the store."""
    monkeypatch.setenv("RGLCD_STORE", f"{bucket}/run")
    given = arguments(config_of(line), source=f"{line / 'data'}@md5", store=str(tmp_path / "mounted"))
    made = _task("shard", given, {}, tmp_path)["shards"]
    key = read_manifest(line / "shards", made_by="shard").key
    assert read_reference(Path(made.path), artifact="shards") == at_key(tmp_path / "mounted" / "shards", key)
    assert made.metadata["uri"] == f"{bucket}/run/shards/{key}"
    assert files(tmp_path / "mounted" / "shards") == {MANIFEST}


def _task(name: str, given: Mapping[str, Any], inputs: dict[str, dsl.Artifact], folder: Path) -> dict[str, dsl.Artifact]:
    """The component ``name`` as Kubeflow calls it; returns what it wrote."""
    stage = stage_named(name)
    cards = tuple(CARDS) if name == "evaluate" else ()
    outputs = {output: dsl.Artifact(uri=str(folder / f"kfp-{output}")) for output in (*stage.outputs, *cards)}
    values = {word: given[word] for word in (*stage.sections, "store", *({SOURCE} & set(stage.inputs)))}
    getattr(import_module(f"components.{name}"), name).python_func(**values, **inputs, **outputs)
    return outputs


@pytest.mark.parametrize("count", [2, 5])
def test_sharding_parts_on_machines_that_share_only_the_store_are_complete(
    line: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Three shards in two parts, and in more parts than there are shards."""
    monkeypatch.setenv("RGLCD_STORE", f"{bucket}/run")
    config = config_of(line, f"sharding.parts={count}")
    sections = {"sharding": config.sharding}
    for index in range(count):
        run_part("shard", sections, {SOURCE: line / "data", "shards": tmp_path / f"pod{index}" / "shards"}, index=index)
    whole = run_stage("shard", sections, {SOURCE: line / "data", "shards": tmp_path / "shards"})
    assert whole.manifest.digest == digests(line)["shards"]
    assert not list(tmp_path.glob("**/.cache/**/*.tar")), "the last act moved no bytes"
