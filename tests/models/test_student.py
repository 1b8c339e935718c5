"""The student starts as the teacher's conditional half, differs by one layer, and its copies are its own."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from tests.tiny_models import MAX_TOKENS, TEXT_WIDTH

OMEGA_DIM = 32
NEW_LAYER = "time_embedding.cond_proj.weight"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> Teacher:
    return Teacher.load(teacher_folder, dtype=torch.float32, device=CPU)


@pytest.fixture
def student(teacher: Teacher) -> Student:
    return Student.of_teacher(teacher, omega_embedding_dim=OMEGA_DIM)


def inputs() -> tuple[torch.Tensor, torch.Tensor, Condition]:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    return noise, torch.tensor([19, 499, 999]), Condition(torch.randn(3, MAX_TOKENS, TEXT_WIDTH, generator=generator))


def test_at_the_start_it_is_the_teacher_whatever_omega(teacher: Teacher, student: Student) -> None:
    z_t, t, cond = inputs()
    with torch.no_grad():
        for omega in (0.0, 7.0, 15.0):
            torch.testing.assert_close(student(z_t, t, torch.full((3,), omega), cond).x0, teacher(z_t, t, cond).x0)


def test_once_its_new_layer_has_learnt_omega_matters(student: Student) -> None:
    z_t, t, cond = inputs()
    torch.nn.init.normal_(student.unet.time_embedding.cond_proj.weight)
    with torch.no_grad():
        low, high = (student(z_t, t, torch.full((3,), omega), cond).x0 for omega in (1.0, 9.0))
    assert not torch.allclose(low, high)


def test_it_differs_from_the_teacher_by_one_layer_and_is_trainable(teacher: Teacher, student: Student) -> None:
    theirs, ours = teacher.unet.state_dict(), student.unet.state_dict()
    assert ours.keys() - theirs.keys() == {NEW_LAYER}
    assert theirs.keys() <= ours.keys()
    assert ours[NEW_LAYER].count_nonzero() == 0
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(parameter.requires_grad for parameter in student.unet.parameters())


def test_its_config_holds_no_folder(student: Student, teacher_folder: Path) -> None:
    assert str(teacher_folder) not in student.unet.to_json_string()


def test_of_a_teacher_in_half_precision_it_is_in_full(teacher_folder: Path) -> None:
    half = Teacher.load(teacher_folder, dtype=torch.bfloat16, device=CPU)
    assert {parameter.dtype for parameter in Student.of_teacher(half, omega_embedding_dim=8).unet.parameters()} == {torch.float32}


def test_a_copy_is_frozen_equal_and_of_its_own(student: Student) -> None:
    copy = student.copy()
    assert not any(parameter.requires_grad for parameter in copy.unet.parameters())
    before = {name: tensor.clone() for name, tensor in copy.unet.state_dict().items()}
    assert all(torch.equal(tensor, student.unet.state_dict()[name]) for name, tensor in before.items())
    with torch.no_grad():
        for parameter in student.unet.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in copy.unet.state_dict().items())


@pytest.fixture
def saved(student: Student, teacher_folder: Path, tmp_path: Path) -> Path:
    torch.nn.init.normal_(student.unet.time_embedding.cond_proj.weight)
    student.unet.save_pretrained(tmp_path / "unet")
    shutil.copytree(teacher_folder / "scheduler", tmp_path / "scheduler")
    return tmp_path


def test_what_was_saved_is_loaded_frozen(student: Student, saved: Path) -> None:
    loaded = Student.load(saved, dtype=torch.float32, device=CPU)
    z_t, t, cond = inputs()
    omega = torch.tensor([1.0, 5.0, 9.0])
    with torch.no_grad():
        assert torch.equal(loaded(z_t, t, omega, cond).x0, student(z_t, t, omega, cond).x0)
    assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())
    assert loaded.kind == student.kind


def test_a_saved_student_that_lacks_its_new_layer_is_refused(saved: Path) -> None:
    weights = saved / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors[NEW_LAYER]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"lacks 1 tensors of UNet2DConditionModel, {NEW_LAYER} the first"):
        Student.load(saved, dtype=torch.float32, device=CPU)


def test_a_teacher_is_no_student(teacher_folder: Path) -> None:
    with pytest.raises(InputError, match="takes no guidance embedding"):
        Student.load(teacher_folder, dtype=torch.float32, device=CPU)
