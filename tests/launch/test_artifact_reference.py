"""What travels between Kubeflow tasks names one result, and only that one."""

import json
from pathlib import Path

import pytest

from rglcd.errors import InputError
from rglcd.launch.artifact_reference import read_reference, source_folder, write_reference
from rglcd.store.artifacts import ArtifactLocation, at_key
from rglcd.store.manifest import Manifest, write_manifest
from rglcd.store.places import Places

KEY, ANOTHER = "a" * 64, "b" * 64


def published(folder: Path, digest: str, *, key: str = KEY) -> Manifest:
    folder.mkdir(exist_ok=True, parents=True)
    manifest = Manifest("shards", "shard", 1, key, digest, {}, {}, {})
    write_manifest(folder, manifest)
    return manifest


def test_reference_names_the_result_of_its_artifact_by_key(tmp_path: Path) -> None:
    write_reference(tmp_path / "task" / "shards", published(tmp_path / "shards", "d1"), at=tmp_path / "shards")
    assert read_reference(tmp_path / "task" / "shards", artifact="shards") == at_key(tmp_path / "shards", KEY)
    assert (tmp_path / "task" / "shards").stat().st_size < 1000


def test_reference_finds_its_result_when_another_run_has_put_its_own_in_force(tmp_path: Path) -> None:
    places = Places(tmp_path / "shards")
    write_reference(tmp_path / "ref", published(tmp_path / "shards", "d1"), at=tmp_path / "shards")
    published(places.work(ANOTHER), "d2", key=ANOTHER)
    places.put_in_force(places.work(ANOTHER))
    location = read_reference(tmp_path / "ref", artifact="shards")
    folder, manifest = ArtifactLocation.of("shards", location).read(made_by="shard")
    assert (folder, manifest.digest) == (places.kept(KEY), "d1")


def test_reference_to_a_result_that_was_made_again_differently_is_refused(tmp_path: Path) -> None:
    write_reference(tmp_path / "ref", published(tmp_path / "shards", "d1"), at=tmp_path / "shards")
    published(tmp_path / "shards", "d2")
    with pytest.raises(InputError, match="made again"):
        read_reference(tmp_path / "ref", artifact="shards")


def test_reference_to_a_vanished_artifact_names_its_stage(tmp_path: Path) -> None:
    write_reference(tmp_path / "ref", published(tmp_path / "shards", "d1"), at=tmp_path / "shards")
    (tmp_path / "shards" / "manifest.json").unlink()
    with pytest.raises(InputError, match="rglcd run shard"):
        read_reference(tmp_path / "ref", artifact="shards")


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"artifact": "shards"})])
def test_file_that_is_no_reference_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "ref").write_text(text)
    with pytest.raises(InputError, match="not a reference"):
        read_reference(tmp_path / "ref", artifact="shards")


def test_reference_to_another_artifact_is_refused(tmp_path: Path) -> None:
    write_reference(tmp_path / "ref", published(tmp_path / "shards", "d1"), at=tmp_path / "shards")
    with pytest.raises(InputError, match="'latents'"):
        read_reference(tmp_path / "ref", artifact="latents")


def test_source_is_a_local_folder_with_its_md5() -> None:
    assert source_folder("/some@where/data@0123.dir") == Path("/some@where/data")
    assert source_folder("s3://bucket/prefix@0123") == "s3://bucket/prefix"
    for wrong in ("data", "@0123", "data@", ""):
        with pytest.raises(InputError):
            source_folder(wrong)
