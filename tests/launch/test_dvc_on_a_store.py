"""DVC and an object store: manifests are versioned, bytes stay where they are, and a run made elsewhere is adopted."""

import shutil
import subprocess
from pathlib import Path

import boto3
import pytest
import yaml
from dvc.repo import Repo

from rglcd.config import dump
from rglcd.errors import InputError
from rglcd.launch import dvc_file
from rglcd.launch.dvc_file import adopt, render, source_md5, source_place
from rglcd.stages.run import run_stage
from rglcd.stages.table import SOURCE, stage_named
from rglcd.store.manifest import MANIFEST, read_manifest
from tests.object_store import put_folder
from tests.tiny_line import run, tiny_config, write_pretrained_artifact, write_tiny_source

CONFIG = tiny_config("reward={kind: none}", "distillation.arms=[lcm]")


@pytest.fixture(autouse=True)
def two_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table cut short after ``cache``, with ``pretrained`` as given: the rest would only take longer."""
    stages = tuple(stage_named(name) for name in ("shard", "cache"))
    monkeypatch.setattr(dvc_file, "stages_of", lambda config: stages)


@pytest.fixture
def repository(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git and DVC repository with a remote and a store in the bucket, and no artifact."""
    monkeypatch.setenv("RGLCD_STORE", f"{bucket}/run")
    root = tmp_path / "checkout"
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    monkeypatch.chdir(root)
    with Repo.init(str(root)) as repo, repo.config.edit() as settings:
        settings["remote"] = {"store": {"url": f"{bucket}/dvc"}}
        settings["core"] = {"remote": "store"}
    (root / "params.yaml").write_text(dump(CONFIG))
    return root


def artifacts_of(root: Path) -> None:
    write_pretrained_artifact(root / "artifacts" / "pretrained")


def run_elsewhere(tmp_path: Path, *, source: str | None) -> None:
    """The same two stages on another machine: what they leave is in the store."""
    other = tmp_path / "elsewhere"
    write_pretrained_artifact(other / "pretrained")
    if source is None:
        write_tiny_source(other / "data")
        for stage in ("shard", "cache"):
            run(other, CONFIG, stage)
        return
    places = {name: other / name for name in ("pretrained", "shards", "latents")}
    run_stage("shard", {"sharding": CONFIG.sharding}, {SOURCE: source, "shards": places["shards"]})
    run_stage("cache", {"model": CONFIG.model, "caching": CONFIG.caching}, places)


def test_a_run_made_elsewhere_is_adopted_pushed_and_pulled(repository: Path, tmp_path: Path) -> None:
    """The source added with `dvc add`."""
    write_tiny_source(repository / "data")
    artifacts_of(repository)
    with Repo(str(repository)) as repo:
        repo.add(str(repository / "data"))
    (repository / "dvc.yaml").write_text(render(CONFIG))
    assert (source_place(repository), len(source_md5(repository))) == (repository / "data", 36)
    run_elsewhere(tmp_path, source=None)
    assert adopt(CONFIG, repository) == ["shard", "cache"]
    for name in ("shards", "latents"):
        assert [path.name for path in (repository / "artifacts" / name).iterdir()] == [MANIFEST]
    with Repo(str(repository)) as repo:
        assert repo.status() == {}
        repo.push()
    before = read_manifest(repository / "artifacts" / "latents", made_by="cache")
    shutil.rmtree(repository / "artifacts" / "latents")
    shutil.rmtree(repository / ".dvc" / "cache")
    with Repo(str(repository)) as repo:
        repo.pull()
        assert repo.status() == {}
    assert read_manifest(repository / "artifacts" / "latents", made_by="cache") == before


def test_a_source_imported_without_a_download_is_read_where_it_is(repository: Path, bucket: str, tmp_path: Path) -> None:
    """The source by `dvc import-url --no-download`."""
    write_tiny_source(tmp_path / "source")
    put_folder(tmp_path / "source", f"{bucket}/cc")
    artifacts_of(repository)
    with Repo(str(repository)) as repo:
        repo.imp_url(f"{bucket}/cc", "data", no_download=True)
    assert source_place(repository) == f"{bucket}/cc"
    assert source_md5(repository).endswith(".dir")
    (repository / "dvc.yaml").write_text(render(CONFIG, source=source_place(repository)))
    assert yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]["shard"]["deps"] == [f"{bucket}/cc"]
    run_elsewhere(tmp_path, source=f"{bucket}/cc")
    assert adopt(CONFIG, repository) == ["shard", "cache"]
    with Repo(str(repository)) as repo:
        assert repo.status(targets=["shard", "cache"]) == {}
    locked = yaml.safe_load((repository / "dvc.lock").read_text())["stages"]["shard"]["deps"]
    assert locked[0]["md5"] == source_md5(repository)
    assert not (repository / "data").exists()
    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key="cc/index.tsv", Body=b"images/00000.png\tanother\n")
    with pytest.raises(InputError, match="stage shard"):
        adopt(CONFIG, repository)
