"""A manifest tells equal results from unequal ones, and a whole artifact from an altered one."""

from pathlib import Path

import pytest

from rglcd.errors import InputError
from rglcd.store.manifest import (
    NOT_HASHED,
    Manifest,
    altered_files,
    folder_digest,
    read_manifest,
    results_digest,
    scan,
    write_json,
    write_manifest,
)
from rglcd.store.staging import remove_stale_staging


def published(folder: Path) -> Manifest:
    files = scan(folder)
    manifest = Manifest("shards", "shard", 1, "key", results_digest(files), {}, {}, files)
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "00000.tar").write_bytes(b"one" * 1000)
    (tmp_path / "deep" / "00001.tar").write_bytes(b"two" * 1000)
    return tmp_path


def test_a_manifest_reads_as_written_and_does_not_list_itself(folder: Path) -> None:
    manifest = published(folder)
    assert read_manifest(folder, made_by="shard") == manifest
    assert set(scan(folder)) == {"00000.tar", "deep/00001.tar"}
    assert altered_files(folder, manifest) == []


def test_only_timings_and_rendered_pages_are_left_out_of_the_digest(folder: Path) -> None:
    before = results_digest(scan(folder))
    for name in NOT_HASHED:
        (folder / name).write_text("12.3 s")
    assert results_digest(scan(folder)) == before
    (folder / "metrics.json").write_text("{}")
    assert results_digest(scan(folder)) != before


def test_looks_at_a_training_are_left_out_and_an_arm_or_a_scorer_called_panel_is_not(folder: Path) -> None:
    before = results_digest(scan(folder))
    (folder / "rg" / "panel").mkdir(parents=True)
    for name in ("about.json", "looks.jsonl", "teacher.png", "00000050.png"):
        (folder / "rg" / "panel" / name).write_text("seen")
    assert results_digest(scan(folder)) == before
    for name in ("panel/unet/config.json", "scorers/panel/model.safetensors"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("one")
        weighed = results_digest(scan(folder))
        (folder / name).write_text("another")
        assert results_digest(scan(folder)) != weighed


def test_a_digest_depends_on_names_and_contents_only(folder: Path) -> None:
    before = folder_digest(folder)
    (folder / "00000.tar").touch()
    assert folder_digest(folder) == before
    (folder / "00000.tar").rename(folder / "00002.tar")
    assert folder_digest(folder) != before


def test_cut_altered_and_missing_files_are_each_named(folder: Path) -> None:
    manifest = published(folder)
    (folder / "00000.tar").write_bytes(b"one" * 999)
    (folder / "deep" / "00001.tar").write_bytes(b"owt" * 1000)
    cut, altered = altered_files(folder, manifest)
    assert "00000.tar has 2997 bytes, not 3000" in cut
    assert "deep/00001.tar has sha256" in altered
    (folder / "00000.tar").unlink()
    assert "00000.tar is missing" in altered_files(folder, manifest)


def test_a_missing_manifest_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rglcd run shard"):
        read_manifest(tmp_path, made_by="shard")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": {}}', '{"files": {"a": {"sha256": 1}}}'])
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="manifest"):
        read_manifest(tmp_path, made_by="shard")


def test_a_folder_with_a_link_is_refused(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="link"):
        scan(folder)


def test_json_being_written_is_not_removed_by_another_worker_as_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the very moment between writing and renaming."""
    swept = []
    monkeypatch.setattr("os.fsync", lambda descriptor: swept.append(remove_stale_staging(tmp_path)))
    write_json(tmp_path / "fingerprint.json", {"a": 1})
    assert swept
    assert [path.name for path in tmp_path.iterdir()] == ["fingerprint.json"]


def test_a_failed_json_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n "a": 1\n}\n'
