"""A key takes what a stage reads of its inputs: other parts may change, or be missing, and nothing is made again."""

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rglcd.config import Config
from rglcd.errors import InputError
from rglcd.stages import table
from rglcd.stages.computation import plan
from rglcd.stages.run import Output, run_stage
from rglcd.stages.table import SOURCE, STAGES, Stage, inputs_of, is_read, parts_read, stage_named
from rglcd.store.manifest import FileEntry, digest_of, read_manifest, results_digest, write_manifest
from tests.tiny_line import (
    TINY_EVALUATION,
    published_model_settings,
    run,
    tiny_config,
    write_published_models,
    write_tiny_evaluation_data,
    write_tiny_source,
)

STAGES_WITH_INPUTS = [stage for stage in STAGES if stage.inputs]


def config_of(line: Path, *overrides: str) -> Config:
    """The expert that trains, a judge that evaluates only, and one that nobody asks."""
    clip = f"{{kind: clip, source: {{uri: {line}/models/expert}}}}"
    scorers = f"preparation.scorers={{expert: {clip}, judge: {clip}, nobody: {clip}}}"
    judged = "evaluation.scorers=[expert,judge]"
    return tiny_config(*published_model_settings(line / "models"), scorers, judged, *TINY_EVALUATION, *overrides)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage of the pipeline run; read it, do not write it."""
    root = tmp_path_factory.mktemp("line")
    write_tiny_source(root / "data")
    write_tiny_evaluation_data(root / "data")
    (root / "data" / "notes.txt").write_text("of no stage")
    write_published_models(root / "models")
    for stage in STAGES:
        run(root, config_of(root), stage.name)
    return root


@pytest.fixture
def own(line: Path, tmp_path: Path) -> Path:
    """A copy of the line to write in."""
    return Path(shutil.copytree(line, tmp_path / "line"))


def place_of(root: Path, artifact: str) -> Path:
    return root / ("data" if artifact == SOURCE else artifact)


def names_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]


def key_of(root: Path, stage: Stage, config: Config) -> str:
    artifacts = {name: place_of(root, name) for name in (*inputs_of(stage, config), *stage.outputs)}
    return plan(stage.name, {name: config.section(name) for name in stage.sections}, artifacts).key


def change_a_byte(folder: Path, name: str) -> None:
    """Of one file; its manifest, if the folder has one, follows, as when the stage that makes it made another result."""
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    if (folder / "manifest.json").is_file():
        manifest = read_manifest(folder, made_by="?")
        files = manifest.files | {name: FileEntry(digest_of(name), len(content))}
        write_manifest(folder, replace(manifest, files=files, digest=results_digest(files)))


# --- by hiding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES_WITH_INPUTS, ids=lambda stage: stage.name)
def test_a_stage_that_has_nothing_but_its_parts_makes_the_same_result(line: Path, own: Path, stage: Stage) -> None:
    config, hidden = config_of(line), 0
    for artifact, parts in parts_read(stage, config).items():
        for name in names_in(place_of(own, artifact)):
            if not is_read(name, parts) and name != "timings.json":
                (place_of(own, artifact) / name).unlink()
                hidden += 1
    assert hidden or stage.name not in {"shard", "cache", "pretrain", "evaluate"}, "there was nothing to hide"
    (output,) = stage.outputs
    shutil.rmtree(own / output)
    made = run(own, config, stage.name)
    there = read_manifest(line / output, made_by=stage.name)
    assert (made.was_done, made.manifest.key, made.manifest.digest) == (False, there.key, there.digest)


@pytest.mark.parametrize("stage", STAGES_WITH_INPUTS, ids=lambda stage: stage.name)
def test_inputs_on_another_disk_make_the_same_result(line: Path, own: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    """Nor may another user's files be linked to (fs.protected_hardlinks): links are symbolic then."""

    def refuse(source: Path, link: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(link))

    (output,) = stage.outputs
    shutil.rmtree(own / output)
    monkeypatch.setattr("rglcd.store.places.os.link", refuse)
    made = run(own, config_of(line), stage.name)
    there = read_manifest(line / output, made_by=stage.name)
    assert (made.was_done, made.manifest.key, made.manifest.digest) == (False, there.key, there.digest)


def test_a_stage_that_opens_what_the_table_does_not_name_fails_by_name(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    careless = replace(stage_named("cache"), entry="tests.stages.test_parts:careless_stage")
    monkeypatch.setattr(table, "STAGES", tuple(careless if stage.name == "cache" else stage for stage in STAGES))
    shutil.rmtree(own / "latents")
    with pytest.raises(AssertionError, match=r"cache reads scorers/judge/config\.json of pretrained, which the stage table does not say"):
        run(own, config_of(own), "cache")


def careless_stage(*_sections: Any, shards: Path, pretrained: Path, latents: Output) -> Mapping[str, Any]:
    assert (pretrained / "scorers" / "expert" / "config.json").read_bytes()
    assert (pretrained / "scorers" / "judge" / "config.json").read_bytes()
    return {}


def test_a_row_that_names_a_file_beside_the_images_is_lost_and_counted(own: Path) -> None:
    """Wherever the source lies: of one in a store, only the parts are fetched."""
    shutil.copy(own / "data" / "images" / "00000.png", own / "data" / "beside.png")
    with (own / "data" / "index.tsv").open("a") as rows:
        rows.write("beside.png\ta caption\nnowhere.png\ta caption\n./images/00000.png\tanother caption\n")
    facts = run(own, config_of(own), "shard").manifest.facts
    assert (facts["samples"], facts["reasons"]) == (13, {"forbidden_path": 2})


# --- by changing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES_WITH_INPUTS, ids=lambda stage: stage.name)
def test_a_byte_of_a_part_changes_the_key_and_any_other_leaves_it(own: Path, stage: Stage) -> None:
    config = config_of(own)
    before = key_of(own, stage, config)
    for artifact, parts in parts_read(stage, config).items():
        folder, names = place_of(own, artifact), names_in(place_of(own, artifact))
        not_hashed = {"timings.json", "speed.json", "index.html", "report.md"}
        for name in (name for name in names if not is_read(name, parts) and name not in not_hashed):
            change_a_byte(folder, name)
            assert key_of(own, stage, config) == before, f"{name} of {artifact} is not read"
        # A file of each part: the first that a digest covers.
        for part in parts:
            hashed = [name for name in names if is_read(name, (part,)) and Path(name).name not in not_hashed]
            if not hashed:
                continue  # ready-made shards, where there is an index
            change_a_byte(folder, hashed[0])
            after = key_of(own, stage, config)
            assert after != before, f"{hashed[0]} of {artifact} is read"
            before = after


def test_a_mixture_is_read_with_its_parts_and_a_scorer_without_weights_by_its_settings() -> None:
    both = "preparation.scorers.both={kind: mixture, weights: {expert: 0.5, checker: 0.5}, logit_scale: 1.0}"
    config = tiny_config("preparation.scorers.checker={kind: toy-checker}", both, "caching.scorers=[both,expert]")
    parts = parts_read(stage_named("cache"), config)["pretrained"]
    assert set(parts) == {"teacher", "scorers/expert", "catalogue/expert.json", "catalogue/checker.json", "catalogue/both.json"}


def test_a_scorer_that_was_not_prepared_is_named_with_the_remedy(line: Path, own: Path) -> None:
    more = config_of(line, "preparation.scorers.more={kind: toy-checker}", "evaluation.scorers=[more]")
    with pytest.raises(InputError, match=r"scorer 'more' was not prepared, only expert, judge, nobody; make it: rglcd run prepare"):
        run(own, more, "evaluate")


def test_prompts_beyond_the_source_folder_are_refused(line: Path, own: Path) -> None:
    with pytest.raises(InputError, match=r"\.\./prompts\.txt does not lie in the source folder"):
        run(own, config_of(line, "evaluation.prompts=../prompts.txt"), "evaluate")


def test_what_was_made_without_saying_with_what_is_refused_with_the_remedy(line: Path, own: Path) -> None:
    manifest = read_manifest(own / "pretrained", made_by="prepare")
    write_manifest(own / "pretrained", replace(manifest, sections={}, lineage={}))
    shards = read_manifest(own / "shards", made_by="shard")
    write_manifest(own / "shards", replace(shards, lineage={}))
    stage, config = stage_named("cache"), config_of(line)
    with pytest.raises(InputError, match=r"made without section 'preparation'; make it again: rglcd run"):
        run_stage(
            "cache",
            {name: config.section(name) for name in stage.sections},
            {name: own / name for name in (*stage.inputs, *stage.outputs)},
        )
