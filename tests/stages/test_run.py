"""The one door: what names a computation, what is done again and what is not, and how a killed stage ends."""

import json
import multiprocessing
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rglcd import progress
from rglcd.config import Sharding
from rglcd.errors import InputError
from rglcd.stages.run import TIMINGS, Outcome, assist_stage, run_stage, stage_key
from rglcd.stages.table import STAGES, stage_named
from rglcd.store.manifest import MANIFEST, UNDIGESTED, digest_of, read_manifest, results_digest, scan, write_manifest
from tests.tiny_line import run, tiny_config, up_to_latents, write_tiny_source

SHARDING = tiny_config().sharding

ANOTHER = {
    "sharding": "sharding.max_rows=7",
    "model": "model.sigma_data=0.25",
    "preparation": "preparation.features.kind=other",
    "caching": "caching.text_embeddings=true",
    "pretraining": "pretraining.seed=1",
    "reward": "reward.tuning={kind: frozen}",
    "distillation": "distillation.seed=1",
    "evaluation": "evaluation.seed=1",
}
"""One changed value for each section."""


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source, shards, pretrained and latents; read it, do not write it."""
    root = tmp_path_factory.mktemp("line")
    up_to_latents(root, tiny_config())
    return root


@pytest.fixture
def own(line: Path, tmp_path: Path) -> Path:
    """A copy of the line to write in."""
    return Path(shutil.copytree(line, tmp_path / "line"))


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every entry below ``folder``: inode, time of change, content."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


def results(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, hidden ones too, but for what says how long it took."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in (TIMINGS, MANIFEST))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def hidden(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob(".*"))


def shard(root: Path, sharding: Sharding = SHARDING) -> Outcome:
    return run_stage("shard", {"sharding": sharding}, {"source": root / "data", "shards": root / "shards"})


# --- the key -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_key_changes_with_any_section_input_or_version(stage) -> None:
    config = tiny_config()
    sections = {name: config.section(name) for name in stage.sections}
    inputs = {name: digest_of(name) for name in stage.inputs}
    key = stage_key(stage, sections, inputs)
    others = [stage_key(replace(stage, version=stage.version + 1), sections, inputs), stage_key(replace(stage, name="x"), sections, inputs)]
    others += [stage_key(stage, sections, inputs | {name: digest_of("other")}) for name in inputs]
    others += [stage_key(stage, sections, {other: inputs[other] for other in inputs if other != name}) for name in inputs]
    changed = tiny_config(*ANOTHER.values())
    others += [stage_key(stage, sections | {name: changed.section(name)}, inputs) for name in sections]
    assert len({key, *others}) == 1 + len(others)


@given(st.sampled_from(STAGES), st.randoms())
def test_a_key_knows_nothing_else(stage, random) -> None:
    """Neither order, nor folders, nor what a stage is launched with: those are no arguments of it."""
    config = tiny_config()
    sections = [(name, config.section(name)) for name in stage.sections]
    inputs = [(name, digest_of(name)) for name in stage.inputs]
    key = stage_key(stage, dict(sections), dict(inputs))
    random.shuffle(sections)
    random.shuffle(inputs)
    relabelled = replace(stage, summary="other words", profile=STAGES[0].profile, parts="other.parts")
    assert stage_key(relabelled, dict(sections), dict(inputs)) == key


def test_the_same_computation_elsewhere_has_the_same_key_and_digest(line: Path, tmp_path: Path) -> None:
    write_tiny_source(tmp_path / "data")
    here, there = shard(tmp_path), read_manifest(line / "shards", made_by="shard")
    assert (here.manifest.key, here.manifest.digest) == (there.key, there.digest)


def test_sections_name_the_same_computation_as_records_and_as_kubeflows_floats(own: Path) -> None:
    plain = {name: float(value) if isinstance(value, int) else value for name, value in SHARDING.model_dump(mode="json").items()}
    artifacts = {"source": own / "data", "shards": own / "shards"}
    assert run_stage("shard", {"sharding": plain}, artifacts).was_done


def test_sections_that_the_stage_does_not_read_do_not_matter(own: Path) -> None:
    sections = {"sharding": SHARDING, "evaluation": tiny_config().evaluation}
    assert run_stage("shard", sections, {"source": own / "data", "shards": own / "shards"}).was_done


# --- what is done already ------------------------------------------------------------------------


def test_a_second_call_finds_it_done_and_touches_nothing(own: Path) -> None:
    before = snapshot(own)
    outcome = shard(own)
    assert outcome.was_done
    assert outcome.seconds == 0
    assert snapshot(own) == before


@pytest.mark.parametrize("harm", ["cut", "missing", "manifest cut", "manifest missing", "folder missing"])
def test_what_was_published_and_is_not_whole_is_made_anew(line: Path, own: Path, harm: str) -> None:
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


def test_of_two_who_make_the_same_at_once_one_waits_and_finds_it_done(line: Path, tmp_path: Path, capsys) -> None:
    write_tiny_source(tmp_path / "data")
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda _: run(tmp_path, tiny_config(), "shard"), range(2)))
    assert sorted(outcome.was_done for outcome in outcomes) == [False, True]
    assert capsys.readouterr().err == f"rglcd: another process is making {tmp_path / 'shards'}; this one waits for it\n"
    assert results(tmp_path / "shards") == results(line / "shards")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "shards"}


def test_another_configuration_replaces_what_was_published_whole(own: Path) -> None:
    outcome = shard(own, SHARDING.model_copy(update={"samples_per_shard": 12}))
    assert not outcome.was_done
    assert {path.name for path in own.glob("shards/*.tar")} == {"00000.tar"}
    assert hidden(own) == []


def test_a_changed_source_is_another_computation(own: Path) -> None:
    before = read_manifest(own / "shards", made_by="shard")
    index = own / "data" / "index.tsv"
    index.write_text(index.read_text().replace("aaa", "zzz"))
    after = shard(own).manifest
    assert after.key != before.key
    assert after.digest != before.digest


# --- what is written down ------------------------------------------------------------------------


def test_files_that_hold_times_or_renderings_leave_every_digest_alone(own: Path) -> None:
    manifest = read_manifest(own / "shards", made_by="shard")
    for name in UNDIGESTED:
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
    assert latents.inputs == {name: read_manifest(own / name, made_by="any").digest for name in ("shards", "pretrained")}


def test_the_manifest_lists_every_file_and_no_other(own: Path) -> None:
    files = read_manifest(own / "shards", made_by="shard").files
    assert set(files) == {path.name for path in (own / "shards").iterdir()} - {MANIFEST}


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(("artifact", "maker"), [("shards", "shard"), ("pretrained", "prepare")])
@pytest.mark.parametrize("harm", ["missing", "no manifest", "altered manifest"])
def test_an_input_that_cannot_be_used_names_the_stage_that_makes_it(own: Path, artifact: str, maker: str, harm: str) -> None:
    if harm == "missing":
        shutil.rmtree(own / artifact)
    elif harm == "no manifest":
        (own / artifact / MANIFEST).unlink()
    else:
        (own / artifact / MANIFEST).write_text('{"files": {}, "stage": 3}')
    with pytest.raises(InputError, match=f"{artifact}.*rglcd run {maker}$") as refusal:
        run(own, tiny_config(), "cache")
    assert "\n" not in str(refusal.value)
    assert read_manifest(own / "latents", made_by="cache").stage == "cache", "what stood before stands"


@pytest.mark.parametrize("stage", ["cache", "pretrain", "distill"])
def test_weights_altered_after_they_were_prepared_are_refused_by_name(own: Path, stage: str) -> None:
    """Of the same length, so that only their digest tells."""
    config = tiny_config("caching.batch_size=3", "reward.weight=2.0")
    if stage == "distill":
        run(own, tiny_config(), "pretrain")
    weights = own / "pretrained" / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"teacher/unet/diffusion_pytorch_model\.safetensors has sha256 .* rglcd run prepare$"):
        run(own, config, stage)


@pytest.mark.parametrize("content", [b"{", b'{"shard": 0.5}', b"\xff"])
def test_altered_timings_are_refused_by_name(own: Path, content: bytes) -> None:
    (own / "latents" / TIMINGS).write_bytes(content)
    with pytest.raises(InputError, match=r"latents: timings\.json has .* rglcd run cache$"):
        run(own, tiny_config(), "pretrain")


def test_an_altered_reward_model_is_refused_by_name(own: Path) -> None:
    run(own, tiny_config(), "pretrain")
    weights = own / "reward_model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(InputError, match=r"model\.safetensors has sha256 .* rglcd run pretrain$"):
        run(own, tiny_config(), "distill")


def test_a_missing_source_says_how_the_toys_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the source folder \(for the toy: rglcd toy data .*data\)"):
        shard(tmp_path)


def test_an_input_that_every_configuration_makes_may_not_be_left_out(own: Path) -> None:
    with pytest.raises(InputError, match="shard reads source"):
        run_stage("shard", {"sharding": SHARDING}, {"shards": own / "shards"})


@pytest.mark.parametrize(
    ("sections", "said"), [({}, "section 'sharding' is missing"), ({"sharding": {"resolutoin": 8}}, "did you mean 'resolution'")]
)
def test_sections_are_checked_before_anything_is_touched(own: Path, sections, said: str) -> None:
    before = snapshot(own)
    with pytest.raises(InputError, match=said):
        run_stage("shard", sections, {"source": own / "data", "shards": own / "shards"})
    assert snapshot(own) == before


# --- kills ---------------------------------------------------------------------------------------


def run_until_killed(root: Path, stage: str, *, events: int) -> int:
    """Run ``stage`` in a process of its own, SIGKILL it at its so many-th report, and return its exit code."""
    reports, at_child = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        def say(event: progress.Event) -> None:
            at_child.send(event.done)
            # Held here until the kill comes: where it comes is then no matter of luck.
            if len(seen := [*said, event.done]) == events:
                signal.pause()
            said[:] = seen

        said: list[int] = []
        with progress.reporting_to(say):
            run(root, tiny_config(), stage)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    at_child.close()
    for _ in range(events):
        reports.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode or 0


@pytest.mark.parametrize(("stage", "output", "moments"), [("shard", "shards", (1, 3, 5)), ("cache", "latents", (2, 4, 5))])
def test_a_stage_killed_again_and_again_ends_byte_identical(
    line: Path, own: Path, stage: str, output: str, moments: tuple[int, ...]
) -> None:
    shutil.rmtree(own / output)
    for events in moments:
        assert run_until_killed(own, stage, events=events) == -signal.SIGKILL
        assert not (own / output).exists()
        assert len(list(own.glob(f".{output}.*.aside"))) == 1
    outcome = run(own, tiny_config(), stage)
    assert not outcome.was_done
    assert outcome.manifest.digest == read_manifest(line / output, made_by=stage).digest
    assert results(own / output) == results(line / output)
    assert hidden(own) == []


def aside_of(root: Path) -> Path:
    key = read_manifest(root / "shards", made_by="shard").key
    return root / f".shards.{key[:12]}.aside"


@pytest.mark.parametrize("before", ["an older one stood", "nothing stood"])
def test_killed_before_the_first_rename_it_is_only_published(line: Path, own: Path, before: str) -> None:
    """Whole and with its manifest, but still aside."""
    aside = aside_of(own)
    (own / "shards").rename(aside)
    if before == "an older one stood":
        shard(own, SHARDING.model_copy(update={"samples_per_shard": 12}))
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(line / "shards", aside)
    made = (aside / "00000.tar").stat().st_mtime_ns
    outcome = shard(own)
    assert outcome.was_done
    assert outcome.manifest.digest == read_manifest(line / "shards", made_by="shard").digest
    assert (own / "shards" / "00000.tar").stat().st_mtime_ns == made
    assert results(own / "shards") == results(line / "shards")
    assert hidden(own) == []


def test_killed_between_the_two_renames_it_is_only_published(line: Path, own: Path) -> None:
    (own / "shards").rename(aside_of(own))
    shutil.copytree(line / "shards", own / ".shards.retired")
    assert shard(own).was_done
    assert results(own / "shards") == results(line / "shards")
    assert hidden(own) == []


def test_killed_after_the_last_rename_what_was_replaced_goes_with_the_next_call(line: Path, own: Path) -> None:
    shutil.copytree(line / "shards", own / ".shards.retired")
    assert shard(own).was_done
    assert hidden(own) == []


def test_killed_while_the_manifest_is_written_its_half_is_no_part_of_the_artifact(line: Path, own: Path) -> None:
    aside = aside_of(own)
    (own / "shards").rename(aside)
    (aside / MANIFEST).rename(aside / ".manifest.json.4711.aside")
    assert not shard(own).was_done
    assert results(own / "shards") == results(line / "shards")


def test_an_arm_killed_after_its_publication_leaves_no_checkpoints_in_the_student(own: Path) -> None:
    """The arm stands, the checkpoints that it no longer needs stand too: the student must not differ for it."""
    run(own, tiny_config(), "pretrain")
    whole = run(own, tiny_config(), "distill")
    expected = results(own / "student")
    aside = own / f".student.{whole.manifest.key[:12]}.aside"
    (own / "student").rename(aside)
    (aside / MANIFEST).unlink()
    left = aside / f".lcm-{whole.manifest.facts['arms']['lcm']['key'][:12]}.checkpoints" / "step-00000004"
    left.mkdir(parents=True)
    (left / "COMMIT").write_text("{}")
    again = run(own, tiny_config(), "distill")
    assert not again.was_done
    assert results(own / "student") == expected
    assert again.manifest.digest == whole.manifest.digest


def test_an_arm_whose_published_weights_are_cut_is_trained_anew(own: Path) -> None:
    run(own, tiny_config(), "pretrain")
    run(own, tiny_config(), "distill")
    expected = results(own / "student")
    weights = own / "student" / "lcm" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert not run(own, tiny_config(), "distill").was_done
    assert results(own / "student") == expected


def test_unfinished_folders_of_other_computations_are_swept_and_those_of_other_artifacts_are_not(own: Path) -> None:
    stale, foreign = own / ".shards.0123456789ab.aside", own / ".latents.0123456789ab.aside"
    for folder in (stale, foreign):
        folder.mkdir()
        (folder / "00000.tar").write_bytes(b"half")
    shard(own, SHARDING.model_copy(update={"samples_per_shard": 4}))
    assert hidden(own) == [foreign.name]


# --- the other ranks -----------------------------------------------------------------------------


def test_a_rank_that_assists_publishes_nothing(own: Path) -> None:
    artifacts = {"source": own / "data", "shards": own / "elsewhere" / "shards"}
    assist_stage("shard", {"sharding": SHARDING}, artifacts)
    assert not artifacts["shards"].exists()
    (aside,) = (own / "elsewhere").iterdir()
    assert not (aside / MANIFEST).exists()
    assert run_stage("shard", {"sharding": SHARDING}, artifacts).manifest.digest == shard(own).manifest.digest


@pytest.mark.parametrize("state", ["published", "aside with its manifest"])
def test_a_rank_that_comes_late_finds_nothing_to_assist_with(own: Path, state: str) -> None:
    if state != "published":
        (own / "shards").rename(aside_of(own))
    before = snapshot(own)
    assist_stage("shard", {"sharding": SHARDING}, {"source": own / "data", "shards": own / "shards"})
    assert snapshot(own) == before


def test_an_altered_manifest_of_what_is_read_changes_the_key(own: Path) -> None:
    """The digest of an input is its manifest's: another one is another computation."""
    before = read_manifest(own / "latents", made_by="cache").key
    manifest = read_manifest(own / "pretrained", made_by="prepare")
    write_manifest(own / "pretrained", replace(manifest, digest=digest_of("another")))
    assert run(own, tiny_config(), "cache").manifest.key != before
