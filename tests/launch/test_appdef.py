"""A stage as a TorchX app: nothing that launchers expand survives in it, and what comes out is what went in."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchx import specs

from rglcd.config import load_preset
from rglcd.errors import InputError
from rglcd.launch.appdef import inline_json, stage_app
from rglcd.stages.table import STAGES, stage_named

HOSTILE = st.text(st.sampled_from("${}()\\\"'%u0024 \n\té€😀aimg_rootappid"), max_size=24) | st.text(max_size=24)
VALUES = st.recursive(HOSTILE | st.integers() | st.booleans() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(HOSTILE, inner))
MACROS = specs.macros.Values(img_root="IMG", app_id="APP", replica_id="7", rank0_env="RANK0")


@settings(max_examples=500, deadline=None)
@given(HOSTILE)
def test_inline_json_holds_nothing_that_a_launcher_expands(text: str) -> None:
    inline = inline_json({text: f"${{img_root}}$(HOME){{{{workflow.name}}}}{text}"})
    assert MACROS.substitute(inline) == inline
    assert "$" not in inline  # Kubernetes expands $(NAME)
    assert "{{" not in inline  # Argo expands {{name}}
    assert json.loads(inline) == {text: f"${{img_root}}$(HOME){{{{workflow.name}}}}{text}"}


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_inline_json_decodes_to_the_same_value(value: object) -> None:
    assert json.loads(MACROS.substitute(inline_json(value))) == value


def artifacts_of(name: str) -> dict[str, Path]:
    stage = stage_named(name)
    return {artifact: Path("artifacts") / artifact for artifact in (*stage.inputs, *stage.outputs)}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_app_of_distill_is_the_golden_one(check_golden, num_processes: int) -> None:
    config = load_preset("micro")
    stage = stage_named("distill")
    sections = {name: config.section(name) for name in stage.sections}
    app = stage_app(stage, sections=sections, artifacts=artifacts_of("distill"), image="rg-lcd/train", num_processes=num_processes)
    check_golden(f"appdef-distill-{num_processes}.json", json.dumps(asdict(app), indent=1, default=str) + "\n")


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_app_carries_name_resources_and_sections_of_its_stage(stage) -> None:
    config = load_preset("toy")
    sections = {name: config.section(name) for name in stage.sections}
    app = stage_app(stage, sections=sections, artifacts=artifacts_of(stage.name), image="any", num_processes=1)
    (role,) = app.roles
    assert role.args[:4] == ["-m", "rglcd", "run", stage.name]
    carried = json.loads(role.args[role.args.index("--sections") + 1])
    assert carried == {name: section.model_dump(mode="json") for name, section in sections.items()}
    named = [role.args[position + 1] for position, word in enumerate(role.args) if word == "--artifact"]
    assert named == [f"{name}=artifacts/{name}" for name in (*stage.inputs, *stage.outputs)]


def test_artifact_that_a_launcher_would_expand_is_refused() -> None:
    stage = stage_named("shard")
    with pytest.raises(InputError, match="launchers expand"):
        stage_app(
            stage,
            sections={"sharding": load_preset("toy").sharding},
            artifacts={"shards": Path("/data/$HOME/shards")},
            image="any",
            num_processes=1,
        )
