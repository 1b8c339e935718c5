"""Each component's signature is its row of the stage table, and its body does nothing but hand over."""

import ast
import inspect
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
from kfp import dsl

from components import STEP_IMAGE, TRAIN_IMAGE
from rglcd.stages.table import SOURCE, STAGES, Profile, Stage

CARDS = {"evaluate": {"metrics": "system.Metrics", "page": "system.HTML", "summary": "system.Markdown"}}


def component(stage: Stage) -> dsl.base_component.BaseComponent:
    return getattr(import_module(f"components.{stage.name}"), stage.name)


def body(stage: Stage) -> list[ast.stmt]:
    """The statements of the body, its docstring left out."""
    function = ast.parse(textwrap.dedent(inspect.getsource(component(stage).python_func))).body[0]
    assert isinstance(function, ast.FunctionDef)
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return function.body[1:] if is_docstring else function.body


def test_there_is_one_file_per_stage() -> None:
    files = {path.stem for path in (Path(__file__).parents[2] / "components").glob("*.py")}
    assert files == {stage.name for stage in STAGES} | {"__init__", "end_jobs", "shard_part"}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
class TestComponent:
    def test_signature_is_that_of_the_stage_table(self, stage: Stage) -> None:
        spec = component(stage).component_spec
        given = {name: entry.type for name, entry in spec.inputs.items()}
        dicts = {name for name, kind in given.items() if kind == "Dict"}
        strings = {name for name, kind in given.items() if kind == "String"}
        artifacts = given.keys() - dicts - strings
        assert dicts == set(stage.sections)
        assert strings == {"store"} | ({SOURCE} if SOURCE in stage.inputs else set())
        assert artifacts == set(stage.inputs) - {SOURCE}
        made = {name: entry.type.split("@")[0] for name, entry in spec.outputs.items()}
        cards = CARDS.get(stage.name, {})
        assert {name: made.pop(name) for name in cards} == cards
        assert set(made) == set(stage.outputs)

    def test_only_artifacts_that_may_be_absent_are_optional(self, stage: Stage) -> None:
        makers = {output: maker for maker in STAGES for output in maker.outputs}
        optional = {name for name, entry in component(stage).component_spec.inputs.items() if entry.optional}
        sometimes_unmade = {name for name in stage.inputs if name != SOURCE and makers[name].when is not STAGES[0].when}
        assert optional == sometimes_unmade

    def test_artifact_has_one_type_in_all_components(self, stage: Stage) -> None:
        makers = {output: maker for maker in STAGES for output in maker.outputs}
        for name, entry in component(stage).component_spec.inputs.items():
            if name in makers:
                assert entry.type == component(makers[name]).component_spec.outputs[name].type

    def test_body_is_an_import_and_a_call(self, stage: Stage) -> None:
        first, second = body(stage)
        assert isinstance(first, ast.ImportFrom)
        assert (first.module, [alias.name for alias in first.names]) == ("rglcd.launch.kubeflow", ["execute_component"])
        assert isinstance(second, ast.Expr)
        assert isinstance(second.value, ast.Call)

    def test_every_argument_is_passed_on_under_its_own_name(self, stage: Stage) -> None:
        (call,) = (statement.value for statement in body(stage) if isinstance(statement, ast.Expr))
        assert isinstance(call, ast.Call)
        assert ast.literal_eval(call.args[0]) == stage.name
        handed = {keyword.arg: keyword.value for keyword in call.keywords}
        for group, names in {"sections": stage.sections, "inputs": set(stage.inputs) - {SOURCE}, "outputs": stage.outputs}.items():
            mapping = handed[group]
            assert isinstance(mapping, ast.Dict)
            pairs = {ast.literal_eval(key): value.id for key, value in zip(mapping.keys, mapping.values, strict=True) if key is not None}
            assert pairs == {name: name for name in names}
        assert (SOURCE in handed) == (SOURCE in stage.inputs)

    def test_summary_is_that_of_the_stage_table(self, stage: Stage) -> None:
        assert inspect.getdoc(component(stage).python_func).rstrip(".").lower() == stage.summary.lower()

    def test_component_runs_from_the_locked_image_and_installs_nothing(self, stage: Stage) -> None:
        container = component(stage).component_spec.implementation.container
        assert container.image == (TRAIN_IMAGE if stage.profile is Profile.CPU else STEP_IMAGE)
        assert "pip install" not in " ".join([*container.command, *container.args])
