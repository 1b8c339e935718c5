"""The table is a DAG whose edges can be followed, and whose names are fit for every interface."""

import importlib
import re
from dataclasses import fields

from rglcd.config import SECTIONS, load_preset
from rglcd.stages.table import SOURCE, STAGES, inputs_of, maker_of, stages_of


def test_every_input_is_made_by_an_earlier_stage_or_is_the_source() -> None:
    made = {SOURCE}
    for stage in STAGES:
        assert set(stage.inputs) <= made
        made |= set(stage.outputs)


def test_every_artifact_has_one_maker() -> None:
    outputs = [output for stage in STAGES for output in stage.outputs]
    assert len(outputs) == len(set(outputs))
    assert all(maker_of(output).outputs == (output,) for output in outputs)


def test_sections_exist_and_share_no_name_with_an_artifact() -> None:
    artifacts = {SOURCE, *(name for stage in STAGES for name in (*stage.inputs, *stage.outputs))}
    assert {section for stage in STAGES for section in stage.sections} == set(SECTIONS)
    assert not artifacts & set(SECTIONS)


def test_names_fit_kubernetes_and_entries_resolve_to_functions_of_that_grammar() -> None:
    for stage in STAGES:
        assert re.fullmatch(r"[a-z]{1,20}", stage.name)
        module, _, function = stage.entry.partition(":")
        entry = getattr(importlib.import_module(module), function)
        arguments = entry.__annotations__
        assert list(arguments)[:-1] == [*stage.sections, *stage.inputs, *stage.outputs]


def test_parts_point_at_configuration_keys() -> None:
    config = load_preset("toy")
    for stage in STAGES:
        if stage.parts is not None:
            section, key = stage.parts.split(".")
            assert isinstance(getattr(config.section(section), key), int)


def test_a_stage_that_does_not_run_leaves_its_readers_without_that_input() -> None:
    latent = load_preset("toy", overrides=["reward={kind: latent}"])
    plain = load_preset("toy", overrides=["reward={kind: none}"])
    assert "pretrain" in {stage.name for stage in stages_of(latent)}
    assert "pretrain" not in {stage.name for stage in stages_of(plain)}
    distill = maker_of("student")
    assert "reward_model" in inputs_of(distill, latent)
    assert "reward_model" not in inputs_of(distill, plain)


def test_stages_have_the_fields_that_others_derive_from() -> None:
    assert {field.name for field in fields(STAGES[0])} >= {"name", "entry", "sections", "inputs", "outputs", "profile", "version"}
