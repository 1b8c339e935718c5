"""Running a stage: what is done again and what is not, what is written, and what other ranks do."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from rglcd.stages.computation import TIMINGS, digest_of_parts
from rglcd.stages.run import assist_stage, run_stage
from rglcd.stages.table import parts_read, stage_named
from rglcd.store.manifest import MANIFEST, NOT_HASHED, digest_of, read_manifest, results_digest, scan, write_manifest
from rglcd.store.places import Places
from tests.publishing import watch_folder_renames
from tests.stages.artifact_folders import SHARDING, hidden, results, shard, snapshot
from tests.tiny_line import run, tiny_config, write_tiny_source

# --- what is done already ------------------------------------------------------------------------


def test_a_second_call_finds_it_done_and_touches_nothing(own: Path) -> None:
    before = snapshot(own)
    outcome = shard(own)
    assert outcome.was_done
    assert outcome.seconds == 0
    after = snapshot(own)
    assert {path: state for path, state in after.items() if path != ".work"} == {path: before[path] for path in after if path != ".work"}


@pytest.mark.parametrize("harm", ["cut", "missing", "manifest cut", "manifest missing", "folder missing"])
def test_an_incomplete_published_artifact_is_made_again(line: Path, own: Path, harm: str) -> None:
    published = own / "shards"
    victim = published / ("00001.tar" if "manifest" not in harm else MANIFEST)
    if harm == "folder missing":
        shutil.rmtree(published)
    elif harm.endswith("missing"):
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-7])
    outcome = shard(own)
    assert not outcome.was_done
    assert results(published) == results(line / "shards")
    assert outcome.manifest.files == read_manifest(published, made_by="shard").files
    assert hidden(own) == []


def test_of_two_processes_making_one_artifact_the_second_waits(line: Path, tmp_path: Path, capsys) -> None:
    write_tiny_source(tmp_path / "data")
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda _: run(tmp_path, tiny_config(), "shard"), range(2)))
    assert sorted(outcome.was_done for outcome in outcomes) == [False, True]
    key = outcomes[0].manifest.key
    assert capsys.readouterr().err == f"rglcd: another process is making {tmp_path / 'shards'} ({key[:12]}); this one waits for it\n"
    assert results(tmp_path / "shards") == results(line / "shards")
    assert {path.name for path in tmp_path.iterdir()} <= {"data", "shards", ".work", ".seen"}
    assert hidden(tmp_path) == []


def test_another_configuration_is_put_in_force_as_a_whole_and_the_earlier_result_is_kept(line: Path, own: Path) -> None:
    outcome = shard(own, SHARDING.model_copy(update={"samples_per_shard": 12}))
    assert not outcome.was_done
    assert {path.name for path in own.glob("shards/*.tar")} == {"00000.tar"}
    kept = Places(own / "shards").kept(read_manifest(line / "shards", made_by="shard").key)
    assert results(kept) == results(line / "shards")
    assert hidden(own) == []
    assert shard(own).was_done
    assert results(own / "shards") == results(line / "shards")
    assert [place.name for place in kept.parent.iterdir()] == [f"shards-{outcome.manifest.key[:12]}"]


def test_a_changed_source_is_another_computation(own: Path) -> None:
    before = read_manifest(own / "shards", made_by="shard")
    index = own / "data" / "index.tsv"
    index.write_text(index.read_text().replace("aaa", "zzz"))
    after = shard(own).manifest
    assert after.key != before.key
    assert after.digest != before.digest


def test_an_artifact_is_on_disk_before_it_gets_its_name(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = watch_folder_renames(monkeypatch)
    assert not shard(own, SHARDING.model_copy(update={"samples_per_shard": 12})).was_done
    assert renamed["shards"] == []


def test_a_student_is_on_disk_before_it_gets_its_name(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(own, tiny_config(), "pretrain")
    renamed = watch_folder_renames(monkeypatch)
    arms = run(own, tiny_config(), "distill").manifest.facts["arms"]
    assert {name: renamed[name] for name in arms} == {key: [] for key in arms}


# --- what is written down ------------------------------------------------------------------------


def test_files_that_hold_times_or_renderings_leave_every_digest_alone(own: Path) -> None:
    manifest = read_manifest(own / "shards", made_by="shard")
    for name in NOT_HASHED:
        (own / "shards" / name).write_text("another day, another machine")
    assert results_digest(scan(own / "shards")) == manifest.digest
    assert TIMINGS in manifest.files


def test_lineage_and_timings_grow_with_every_stage(own: Path) -> None:
    behind = {"shards": ["shard"], "latents": ["cache", "shard"], "reward_model": ["cache", "pretrain", "shard"]}
    run(own, tiny_config(), "pretrain")
    for artifact, stages in behind.items():
        manifest = json.loads((own / artifact / MANIFEST).read_text())
        assert sorted(manifest["lineage"]) == stages
        timings = json.loads((own / artifact / TIMINGS).read_text())
        assert sorted(timings) == stages
        assert all(seconds >= 0 for seconds in timings.values())
        for stage in stages:
            (made,) = stage_named(stage).outputs
            theirs = read_manifest(own / made, made_by=stage)
            assert manifest["lineage"][stage] == theirs.lineage[stage]
            assert (theirs.lineage[stage]["key"], theirs.lineage[stage]["digest"]) == (theirs.key, theirs.digest)
    latents = read_manifest(own / "latents", made_by="cache")
    read = {name: read_manifest(own / name, made_by="any") for name in ("shards", "pretrained")}
    models = parts_read(stage_named("cache"), tiny_config())["pretrained"]
    assert latents.inputs == {"shards": read["shards"].digest, "pretrained": digest_of_parts(read["pretrained"], models, where=own)}
    assert latents.lineage["cache"]["inputs"] == {name: manifest.key for name, manifest in read.items()}


def test_the_manifest_lists_every_file_and_no_other(own: Path) -> None:
    files = read_manifest(own / "shards", made_by="shard").files
    assert set(files) == {path.name for path in (own / "shards").iterdir()} - {MANIFEST}


# --- the other ranks -----------------------------------------------------------------------------


def test_an_assisting_rank_publishes_nothing(own: Path) -> None:
    artifacts = {"source": own / "data", "shards": own / "elsewhere" / "shards"}
    assist_stage("shard", {"sharding": SHARDING}, artifacts)
    assert not artifacts["shards"].exists()
    (staging,) = (own / "elsewhere").glob(".work/*/")
    assert not (staging / MANIFEST).exists()
    assert run_stage("shard", {"sharding": SHARDING}, artifacts).manifest.digest == shard(own).manifest.digest


def test_another_result_of_an_input_changes_the_key(own: Path) -> None:
    """The digest of an input that is read as a whole is its manifest's: another one is another computation."""
    before = read_manifest(own / "latents", made_by="cache").key
    manifest = read_manifest(own / "shards", made_by="shard")
    write_manifest(own / "shards", replace(manifest, digest=digest_of("another")))
    assert run(own, tiny_config(), "cache").manifest.key != before
