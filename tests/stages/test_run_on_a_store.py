"""The stages with their bytes in an object store: parts, publishers, refusals (whole: test_pipeline_on_a_store)."""

import json
import shutil
from pathlib import Path

import boto3
import pytest

from rglcd.errors import InputError, TryAgain
from rglcd.stages.run import Outcome, run_part, run_stage
from rglcd.stages.table import SOURCE, inputs_of, stage_named
from rglcd.store.artifact_store import ArtifactStore
from rglcd.store.manifest import MANIFEST, Manifest, read_manifest
from tests.object_store import put_folder
from tests.tiny_line import run, tiny_config, up_to_latents, write_pretrained_artifact, write_tiny_source

CONFIG = tiny_config()
STAGES = ("shard", "cache", "pretrain", "distill")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The line in folders; read it, do not write it."""
    root = tmp_path_factory.mktemp("line")
    up_to_latents(root, CONFIG)
    run(root, CONFIG, "pretrain")
    run(root, CONFIG, "distill")
    return root


def digests(root: Path) -> dict[str, str]:
    return {name: read_manifest(root / name, made_by="?").digest for name in ("shards", "latents", "reward_model", "student")}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Source and pretrained models, in folders; nothing else."""
    monkeypatch.delenv("RGLCD_STORE", raising=False)
    write_tiny_source(tmp_path / "data")
    write_pretrained_artifact(tmp_path / "pretrained")
    return tmp_path


def in_store(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setenv("RGLCD_STORE", f"{bucket}/run")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def by_url(stage_name: str, bucket: str, root: Path) -> Outcome:
    """Run a stage whose artifacts are all named by URL, as a pod does."""
    stage = stage_named(stage_name)
    names = (*inputs_of(stage, CONFIG), *stage.outputs)
    local = {SOURCE: root / "data", "pretrained": root / "pretrained"}
    artifacts = {name: local.get(name, f"{bucket}/run/{name}") for name in names}
    return run_stage(stage_name, {section: CONFIG.section(section) for section in stage.sections}, artifacts)


def test_another_machine_reads_the_artifact_from_the_store(
    workspace: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_store(monkeypatch, bucket)
    for stage in ("shard", "cache"):
        run(workspace, CONFIG, stage)
    other = tmp_path / "other"
    write_tiny_source(other / "data")
    write_pretrained_artifact(other / "pretrained")
    assert run(other, CONFIG, "shard").was_done
    shutil.rmtree(other / "shards")
    assert run(other, CONFIG, "cache").was_done, "its input's manifest is in the store"
    made = run(other, CONFIG, "pretrain")
    assert not made.was_done
    copy = next((other / ".cache").glob("latents-*"))
    assert {name for name in files(copy) if name.endswith(".safetensors")} == {
        "00000.safetensors",
        "00001.safetensors",
        "00002.safetensors",
    }


def test_an_artifact_in_a_folder_is_uploaded_not_made_again(workspace: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(workspace, CONFIG, "shard").manifest
    in_store(monkeypatch, bucket)
    moved = run(workspace, CONFIG, "shard")
    assert moved.was_done
    assert moved.manifest.files == before.files
    assert files(workspace / "shards") == {MANIFEST}
    assert ArtifactStore(f"{bucket}/run/shards").current() == moved.manifest


def test_a_source_folder_in_the_store_gives_the_same_result(workspace: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RGLCD_CACHE", str(workspace / "cache"))
    put_folder(workspace / "data", f"{bucket}/cc")
    sections = {"sharding": CONFIG.sharding}
    here = run(workspace, CONFIG, "shard").manifest
    artifacts: dict[str, Path | str] = {"source": f"{bucket}/cc", "shards": workspace / "from-store"}
    there = run_stage("shard", sections, artifacts)
    assert (there.manifest.digest, there.manifest.key == here.key) == (here.digest, False)
    assert run_stage("shard", sections, artifacts).was_done
    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key="cc/index.tsv", Body=b"images/00000.png\tanother\n")
    assert run_stage("shard", sections, artifacts).manifest.digest != here.digest


def test_parts_on_machines_that_share_only_the_store_complete_the_artifact(
    line: Path, workspace: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_store(monkeypatch, bucket)
    run(workspace, CONFIG, "shard")
    config = tiny_config("caching.parts=2")
    sections = {"model": config.model, "caching": config.caching}
    for index in range(2):
        pod = tmp_path / f"pod{index}"
        write_pretrained_artifact(pod / "pretrained")
        artifacts = {name: pod / name for name in ("shards", "pretrained", "latents")}
        run_part("cache", sections, artifacts, index=index)
        assert not (pod / "latents").exists()
    whole = run(workspace, config, "cache")
    assert whole.manifest.digest == digests(line)["latents"]
    assert not list((workspace / ".cache").glob("latents-*/*.safetensors")), "the last act moved no bytes"


def test_a_worker_that_lost_its_disk_continues_from_the_store(workspace: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was finished before the kill is in the store: the second worker makes the rest only."""
    in_store(monkeypatch, bucket)
    run(workspace, CONFIG, "shard")
    config = tiny_config("caching.parts=2")
    sections, artifacts = (
        {"model": config.model, "caching": config.caching},
        {n: workspace / n for n in ("shards", "pretrained", "latents")},
    )
    run_part("cache", sections, artifacts, index=0)
    (staging,) = workspace.glob(".work/latents-*/")
    shutil.rmtree(staging)
    made: list[str] = []
    from rglcd.stages import cache as stage

    original = stage.write_latents
    monkeypatch.setattr(
        stage, "write_latents", lambda folder, name, *rest, **named: (made.append(name), original(folder, name, *rest, **named))
    )
    run(workspace, config, "cache")
    assert made == ["00001"]


class TestTwoPublishers:
    def test_the_first_of_two_publishers_wins_and_the_other_adopts_its_result(self, line: Path, bucket: str, tmp_path: Path) -> None:
        """They differ where equal runs may: in their times."""
        manifest = read_manifest(line / "shards", made_by="shard")
        store = ArtifactStore(f"{bucket}/run/shards")
        first = store.publish(line / "shards", manifest)
        late = Path(shutil.copytree(line / "shards", tmp_path / "late"))
        (late / "timings.json").write_text('{"shard": 1000}')
        other = _again(late, manifest)
        assert other.digest == manifest.digest
        assert store.publish(late, other) == first
        assert store.current() == store.made(manifest.key) == first

    def test_one_of_many_simultaneous_publishers_commits(self, line: Path, bucket: str) -> None:
        from concurrent.futures import ThreadPoolExecutor
        from dataclasses import replace

        manifest = read_manifest(line / "shards", made_by="shard")
        store = ArtifactStore(f"{bucket}/run/shards")
        with ThreadPoolExecutor(8) as pool:
            standing = list(pool.map(lambda n: store.publish(line / "shards", replace(manifest, facts={"worker": n})), range(8)))
        assert len({json.dumps(found.facts) for found in standing}) == 1


def _again(folder: Path, manifest: Manifest) -> Manifest:
    from dataclasses import replace

    from rglcd.store.manifest import results_digest, scan

    found = scan(folder)
    return replace(manifest, files=found, digest=results_digest(found))


class TestRefusals:
    def test_an_empty_store_is_refused_naming_the_stage_to_run(self, workspace: Path, bucket: str) -> None:
        with pytest.raises(InputError, match=r"s3://.*/shards holds nothing .* rglcd run shard$"):
            by_url("cache", bucket, workspace)

    def test_a_file_damaged_in_the_store_is_refused_by_its_address(
        self, workspace: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        in_store(monkeypatch, bucket)
        manifest = run(workspace, CONFIG, "shard").manifest
        shutil.rmtree(workspace / ".cache")
        name = bucket.removeprefix("s3://")
        key = f"run/shards/{manifest.key}/files/{manifest.files['00001.tar'].sha256}/00001.tar"
        boto3.client("s3").put_object(Bucket=name, Key=key, Body=bytes(manifest.files["00001.tar"].bytes))
        monkeypatch.setattr("rglcd.store.connection.NUM_ATTEMPTS", 2)
        with pytest.raises(InputError, match=r"00001\.tar has sha256 .*, not .* damaged"):
            run(workspace, CONFIG, "cache")

    def test_a_manifest_with_one_changed_bit_is_refused(self, workspace: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        in_store(monkeypatch, bucket)
        run(workspace, CONFIG, "shard")
        path = workspace / "shards" / MANIFEST
        path.write_bytes(path.read_bytes().replace(b'"resolution": 16', b'"resolution": 17', 1))
        with pytest.raises(InputError, match="seal"):
            run(workspace, CONFIG, "cache")

    def test_a_store_setting_that_is_no_url_is_refused(self, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RGLCD_STORE", "bucket/run")
        with pytest.raises(InputError, match="RGLCD_STORE is 'bucket/run'"):
            run(workspace, CONFIG, "shard")

    def test_an_unreachable_store_asks_to_try_again(self, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import fsspec

        monkeypatch.setattr("rglcd.store.connection.NUM_ATTEMPTS", 2)
        monkeypatch.setenv("RGLCD_STORE", "s3://nowhere/run")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "any")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(TryAgain, match="cannot be reached"):
            run(workspace, CONFIG, "shard")


@pytest.mark.parametrize("what", ["parts/", "manifest.json"])
def test_a_commit_damaged_in_the_store_is_replaced(workspace: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The middle third of it is zeros, as after the loss of a part; a conditional put would find it there for ever."""
    in_store(monkeypatch, bucket)
    made = run(workspace, CONFIG, "shard").manifest
    client, name = boto3.client("s3"), bucket.removeprefix("s3://")
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=name, Prefix=f"run/shards/{made.key}/{what}")["Contents"]]
    for key in keys:
        body = client.get_object(Bucket=name, Key=key)["Body"].read()
        third = len(body) // 3
        client.put_object(Bucket=name, Key=key, Body=body[:third] + bytes(len(body) - 2 * third) + body[len(body) - third :])
    if what == "parts/":
        client.delete_object(Bucket=name, Key=f"run/shards/{made.key}/manifest.json")
    shutil.rmtree(workspace / "shards")
    shutil.rmtree(workspace / ".cache")
    again = run(workspace, CONFIG, "shard")
    assert not again.was_done
    assert again.manifest.digest == made.digest
    assert ArtifactStore(f"{bucket}/run/shards").made(made.key) == again.manifest
