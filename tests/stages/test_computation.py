"""What names a computation, and what is refused before it begins."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rglcd.errors import InputError
from rglcd.stages.computation import TIMINGS, source_digest, stage_key
from rglcd.stages.run import run_stage
from rglcd.stages.table import STAGES, WHOLE
from rglcd.store.manifest import MANIFEST, digest_of, read_manifest
from tests.stages.artifact_folders import SHARDING, shard, snapshot
from tests.tiny_line import run, tiny_config, write_tiny_source

ANOTHER = {
    "sharding": "sharding.max_rows=7",
    "model": "model.sigma_data=0.25",
    "preparation": "preparation.features.kind=other",
    "caching": "caching.text_embeddings=true",
    "pretraining": "pretraining.seed=1",
    "reward": "reward.tuning={kind: frozen}",
    "distillation": "distillation.seed=1",
    "monitoring": "monitoring={kind: panel, prompts: [a, b]}",
    "evaluation": "evaluation.seed=1",
}
"""One changed value for each section."""


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
    others += [stage_key(stage, sections | {name: changed.section(name)}, inputs) for name in stage.keyed]
    assert len({key, *others}) == 1 + len(others)
    assert all(stage_key(stage, sections | {name: changed.section(name)}, inputs) == key for name in stage.unkeyed)


@given(st.sampled_from(STAGES), st.randoms())
def test_a_key_depends_on_nothing_else(stage, random) -> None:
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


def test_sections_with_kubeflows_floats_have_the_same_key(own: Path) -> None:
    plain = {name: float(value) if isinstance(value, int) else value for name, value in SHARDING.model_dump(mode="json").items()}
    artifacts = {"source": own / "data", "shards": own / "shards"}
    assert run_stage("shard", {"sharding": plain}, artifacts).was_done


def test_sections_that_the_stage_does_not_read_leave_the_key(own: Path) -> None:
    sections = {"sharding": SHARDING, "evaluation": tiny_config().evaluation}
    assert run_stage("shard", sections, {"source": own / "data", "shards": own / "shards"}).was_done


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


def test_a_link_in_a_source_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "link").symlink_to("/etc/hostname")
    for parts in (WHOLE, ("images",)):
        with pytest.raises(InputError, match=r"link is a link; .*dvc config cache\.type hardlink,copy, then dvc checkout --relink"):
            source_digest(tmp_path / "data", parts, memory=tmp_path / ".seen")
