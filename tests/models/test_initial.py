"""A whole student may start from an existing few-step model: a folder of its kind, or an adapter merged into the teacher."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.models.families.stable_diffusion import OMEGA_LAYER
from rglcd.models.initial import start_from
from rglcd.models.kohya import kohya_tensors
from rglcd.models.student import ADAPTER_FILE, AdapterShape, Student
from rglcd.models.teacher import Teacher
from tests.models.students import learnt
from tests.tiny_flows import write_tiny_sd3
from tests.tiny_models import MAX_TOKENS, RESOLUTION, TEXT_WIDTH

CPU = torch.device("cpu")
SHAPE = AdapterShape(rank=3, alpha=6, targets=("to_q", "to_out.0", "conv1", "time_emb_proj"))


def load(folder: Path) -> Teacher:
    return Teacher.load(folder, dtype=torch.float32, device=CPU, resolution=RESOLUTION)


def draw(student: Student) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    z_t, t = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([19, 499, 999])
    cond = Condition(torch.randn(3, MAX_TOKENS, TEXT_WIDTH, generator=generator))
    with torch.no_grad():
        return student(z_t, t, torch.tensor([1.0, 5.0, 9.0]), cond).x0


def started(teacher_folder: Path, initial: Path, *, omega_embedding_dim: int = 16) -> Student:
    student = Student.of_teacher(load(teacher_folder), omega_embedding_dim=omega_embedding_dim)
    start_from(student, initial)
    return student


def test_a_student_that_starts_from_a_folder_is_that_students_equal_and_learns(teacher_folder: Path, tmp_path: Path) -> None:
    first = learnt(Student.of_teacher(load(teacher_folder), omega_embedding_dim=16), by=0.1)
    first.unet.save_pretrained(tmp_path / "unet")
    second = started(teacher_folder, tmp_path)
    torch.testing.assert_close(draw(second), draw(first), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in second.unet.parameters())


def test_a_few_step_unet_without_omega_leaves_the_new_layer_at_zero(teacher_folder: Path, tmp_path: Path) -> None:
    other = load(teacher_folder).unet
    with torch.no_grad():
        other.conv_in.weight.mul_(2)
    other.save_pretrained(tmp_path / "unet")
    student = started(teacher_folder, tmp_path)
    assert torch.equal(student.unet.conv_in.weight, other.conv_in.weight)
    assert student.unet.get_parameter(OMEGA_LAYER).count_nonzero() == 0


@pytest.mark.parametrize("names", ["diffusers", "kohya"])
def test_an_lcm_lora_is_merged_into_the_teacher(teacher_folder: Path, tmp_path: Path, names: str) -> None:
    adapter = learnt(Student.adapting(load(teacher_folder), SHAPE, seed=0), by=0.1)
    tensors = adapter.adapter_tensors()
    save_file(tensors if names == "diffusers" else kohya_tensors(tensors), tmp_path / ADAPTER_FILE)
    student = started(teacher_folder, tmp_path)
    torch.testing.assert_close(draw(student), draw(adapter), rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name in student.trainable_parameters)
    assert all(parameter.requires_grad for parameter in student.trainable_parameters.values())


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_a_transformers_adapter_is_merged_too_at_the_scale_that_its_file_says(tmp_path: Path, alpha: float | None) -> None:
    write_tiny_sd3(tmp_path / "teacher")
    teacher = load(tmp_path / "teacher")
    adapter = learnt(Student.adapting(teacher, AdapterShape(2, 2, teacher.family.lora_targets), seed=0), by=0.1)
    (tmp_path / "lora").mkdir()
    tensors = adapter.adapter_tensors()
    layers = {name.partition(".lora_")[0] for name in tensors}
    said = {} if alpha is None else {f"{layer}.alpha": torch.tensor(alpha) for layer in layers}
    save_file(tensors | said, tmp_path / "lora" / ADAPTER_FILE)
    student = Student.of_teacher(load(tmp_path / "teacher"), omega_embedding_dim=None)
    before = student.unet.transformer_blocks[0].attn.add_q_proj.weight.clone()
    start_from(student, tmp_path / "lora")
    change = student.unet.transformer_blocks[0].attn.add_q_proj.weight - before
    layer = "transformer.transformer_blocks.0.attn.add_q_proj"
    product = tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
    torch.testing.assert_close(change, product * (1 if alpha is None else alpha / 2), rtol=1e-4, atol=1e-6)


def test_what_is_no_student_of_this_teacher_is_refused(teacher_folder: Path, xl_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither unet/ nor pytorch_lora_weights"):
        started(teacher_folder, tmp_path)
    shutil.copytree(xl_folder / "unet", tmp_path / "unet")
    with pytest.raises(InputError, match="is no student of this teacher"):
        started(teacher_folder, tmp_path)
    shutil.rmtree(tmp_path / "unet")
    Student.of_teacher(load(teacher_folder), omega_embedding_dim=8).unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(InputError, match=r"first time_embedding\.cond_proj\.weight; distillation\.student\.omega_embedding_dim must"):
        started(teacher_folder, tmp_path)
    shutil.rmtree(tmp_path / "unet")
    save_file({"transformer.blocks.0.lora_A.weight": torch.zeros(2, 4)}, tmp_path / ADAPTER_FILE)
    with pytest.raises(InputError, match=r"cannot be merged|changes no layer"):
        started(teacher_folder, tmp_path)
    whole = Student.adapting(load(teacher_folder), SHAPE, seed=0).adapter_tensors()
    save_file({name: tensor for name, tensor in whole.items() if ".lora_A." in name}, tmp_path / ADAPTER_FILE)
    with pytest.raises(InputError, match="cannot be merged"):
        started(teacher_folder, tmp_path)
    (tmp_path / ADAPTER_FILE).write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="cannot be merged"):
        started(teacher_folder, tmp_path)
