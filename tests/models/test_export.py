"""Export for diffusers: the folder loads without this package, and holds nothing of the machine that made it."""

import ast
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler

from rglcd.models.export import CardFacts, SamplingGrid, export_student, exported_weights, model_card
from rglcd.models.student import AdapterShape, Student
from rglcd.models.teacher import Teacher

CARD = CardFacts(
    title="tiny · rg",
    teacher="./toy/teacher",
    arm="rg",
    reward="`expert`, weight 1",
    num_steps=12_000,
    images_seen=1_920_000,
    omega=(1.0, 5.5),
    guidance_scale=4.25,
)


def export(teacher_folder: Path, folder: Path, *, num_ddim_steps: int = 40, timestep_scaling: float = 7.0) -> Student:
    student = Student.of_teacher(Teacher.load(teacher_folder, dtype=torch.float32, device=torch.device("cpu")), omega_embedding_dim=16)
    export_student(student, teacher=teacher_folder, folder=folder, grid=SamplingGrid(num_ddim_steps, timestep_scaling), card=CARD)
    return student


@pytest.fixture(scope="module")
def exported(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(teacher_folder, folder)
    return folder


def read(path: Path) -> dict[str, object]:
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


def test_model_index_names_every_part_and_each_exists(exported: Path) -> None:
    index = read(exported / "model_index.json")
    assert index["_class_name"] == "LatentConsistencyModelPipeline"
    parts = {name: value for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    assert parts["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert parts["scheduler"] == ["diffusers", "LCMScheduler"]
    assert set(parts) == {"vae", "text_encoder", "tokenizer", "unet", "scheduler"}
    assert all((exported / name).is_dir() for name in parts)


def test_scheduler_has_the_teachers_noise_and_the_students_grid(exported: Path, teacher_folder: Path) -> None:
    ours, theirs = read(exported / "scheduler" / "scheduler_config.json"), read(teacher_folder / "scheduler" / "scheduler_config.json")
    assert ours["_class_name"] == "LCMScheduler"
    assert (ours["original_inference_steps"], ours["timestep_scaling"], ours["clip_sample"]) == (40, 7.0, False)
    for name in ("prediction_type", "beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "steps_offset", "set_alpha_to_one"):
        assert ours[name] == theirs[name], name
    assert LCMScheduler.from_pretrained(exported / "scheduler").config.prediction_type == "v_prediction"


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_prediction_type_is_the_teachers(teacher_folder: Path, tmp_path: Path, kind: str) -> None:
    teacher = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    path = teacher / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(read(path) | {"prediction_type": kind}))
    export(teacher, tmp_path / "student")
    assert read(tmp_path / "student" / "scheduler" / "scheduler_config.json")["prediction_type"] == kind


def test_no_json_file_holds_a_local_path(exported: Path, teacher_folder: Path) -> None:
    files = list(exported.rglob("*.json"))
    assert len(files) > 5
    for path in files:
        for value in _strings(read(path)):
            assert not value.startswith(("/", "~", "file:")), f"{path.name}: {value}"
            assert str(teacher_folder) not in value


def _strings(node: object) -> list[str]:
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [text for child in children for text in _strings(child)]


def test_export_holds_only_text_and_safetensors(exported: Path) -> None:
    assert {path.suffix for path in exported.rglob("*") if path.is_file()} == {".json", ".md", ".safetensors"}


def test_two_exports_are_the_same_bytes(exported: Path, teacher_folder: Path, tmp_path: Path) -> None:
    export(teacher_folder, tmp_path)
    for path in exported.rglob("*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(exported)).read_bytes() == path.read_bytes(), path.name


def test_diffusers_loads_the_students_weights(exported: Path, teacher_folder: Path, tmp_path: Path) -> None:
    student = export(teacher_folder, tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(exported)
    assert pipeline.unet.config.time_cond_proj_dim == 16
    opened = pipeline.unet.state_dict()
    assert all(torch.equal(opened[name], tensor) for name, tensor in student.unet.state_dict().items())


def test_card_holds_the_figures_of_the_run(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    for words in ("library_name: diffusers", "# tiny · rg", "`./toy/teacher`", "`expert`, weight 1", "| 12,000 |", "| 1,920,000 |"):
        assert words in card, words
    assert "| 1 to 5.5 |" in card
    assert "guidance_scale=4.25" in card
    assert "between 2 and 6.5" in card


@pytest.mark.parametrize("kind", ["pipeline", "adapter"])
def test_card_shows_hostile_names_as_text(kind: Literal["pipeline", "adapter"]) -> None:
    def lines(**changes: str) -> list[str]:
        return model_card(replace(CARD, **changes), kind=kind).splitlines()

    hostile = 'a|b`c`\n| d | <b onclick="x">"); import os\n```'
    text = lines(title=hostile, teacher=hostile, arm=hostile, reward=f"`{hostile}`, weight 1")
    assert [line[:2] for line in text] == [line[:2] for line in lines()]
    (title,) = (re.sub(r"\\.", "", line) for line in text if line.startswith("# "))
    assert not {"<", "`"} & set(title)
    table = [re.sub(r"\\.", "", line) for line in text if line.startswith("|")]
    assert {line.count("|") for line in table} == {3}
    if kind == "adapter":
        code = "\n".join(text).split("```python\n")[1].split("\n```")[0]
        (teacher,) = (node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant) and "import os" in str(node.value))
        assert teacher == hostile


# --- adapters and SDXL ---------------------------------------------------------------------------

SHAPE = AdapterShape(rank=2, alpha=6, targets=("to_q", "conv1"))


def adapter_of(teacher_folder: Path) -> Student:
    student = Student.adapting(Teacher.load(teacher_folder, dtype=torch.float32, device=torch.device("cpu")), SHAPE, seed=1)
    for name, parameter in student.trainable_parameters.items():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    return student


@pytest.mark.parametrize("name", ["teacher_folder", "xl_folder"])
def test_adapter_export_is_weights_scheduler_and_card(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    teacher = request.getfixturevalue(name)
    for folder in ("first", "second"):
        export_student(adapter_of(teacher), teacher=teacher, folder=tmp_path / folder, grid=SamplingGrid(40, 7.0), card=CARD)
    files = {path.relative_to(tmp_path / "first").as_posix(): path for path in (tmp_path / "first").rglob("*") if path.is_file()}
    assert set(files) == {"pytorch_lora_weights.safetensors", "scheduler/scheduler_config.json", "README.md"}
    assert all((tmp_path / "second" / name).read_bytes() == path.read_bytes() for name, path in files.items())
    scheduler = LCMScheduler.from_pretrained(tmp_path / "first" / "scheduler")
    assert (scheduler.config.original_inference_steps, scheduler.config.timestep_scaling) == (40, 7.0)
    card = files["README.md"].read_text()
    assert 'load_lora_weights("this folder")' in card
    assert 'from_pretrained("./toy/teacher")' in card
    assert "guidance_scale=1)" in card


def test_adapter_weights_include_alpha_over_rank_in_lora_b(teacher_folder: Path) -> None:
    student = adapter_of(teacher_folder)
    tensors = student.adapter_tensors()
    assert all(name.startswith("unet.") and name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors)
    assert len(tensors) == len(student.trainable_parameters)
    for name, parameter in student.trainable_parameters.items():
        stored = tensors[f"unet.{name.replace('.default.', '.')}"]
        torch.testing.assert_close(stored, parameter.detach() * (SHAPE.alpha / SHAPE.rank if ".lora_B." in name else 1))


def test_sdxl_export_includes_both_text_encoders(xl_folder: Path, tmp_path: Path) -> None:
    export(xl_folder, tmp_path)
    index = read(tmp_path / "model_index.json")
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["force_zeros_for_empty_prompt"] is True
    parts = {name for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    assert parts == {"vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler"}
    assert read(tmp_path / "scheduler" / "scheduler_config.json")["_class_name"] == "LCMScheduler"
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    assert pipeline.unet.config.time_cond_proj_dim == 16


def test_exported_weights_are_those_of_one_arm_only() -> None:
    files = {"rg/unet/a": "1", "rg/pytorch_lora_weights.safetensors": "2", "rg/README.md": "3", "lcm/unet/a": "4"}
    assert exported_weights(files, "rg") == {"rg/unet/a": "1", "rg/pytorch_lora_weights.safetensors": "2"}
