"""The student starts as the teacher's conditional prediction, has one layer more, and its copies are independent."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.models.student import ADAPTER_FILE, AdapterShape, Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from tests.models.students import learnt
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


def test_new_student_predicts_like_the_teacher_for_any_omega(teacher: Teacher, student: Student) -> None:
    z_t, t, cond = inputs()
    with torch.no_grad():
        for omega in (0.0, 7.0, 15.0):
            torch.testing.assert_close(student(z_t, t, torch.full((3,), omega), cond).x0, teacher(z_t, t, cond).x0)


def test_prediction_depends_on_omega_once_the_guidance_layer_is_nonzero(student: Student) -> None:
    z_t, t, cond = inputs()
    torch.nn.init.normal_(student.unet.time_embedding.cond_proj.weight)
    with torch.no_grad():
        low, high = (student(z_t, t, torch.full((3,), omega), cond).x0 for omega in (1.0, 9.0))
    assert not torch.allclose(low, high)


def test_student_has_one_layer_more_than_the_teacher_and_is_trainable(teacher: Teacher, student: Student) -> None:
    theirs, ours = teacher.unet.state_dict(), student.unet.state_dict()
    assert ours.keys() - theirs.keys() == {NEW_LAYER}
    assert theirs.keys() <= ours.keys()
    assert ours[NEW_LAYER].count_nonzero() == 0
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(parameter.requires_grad for parameter in student.unet.parameters())


def test_student_config_contains_no_path(student: Student, teacher_folder: Path) -> None:
    assert str(teacher_folder) not in student.unet.to_json_string()


def test_student_of_a_half_precision_teacher_is_float32(teacher_folder: Path) -> None:
    half = Teacher.load(teacher_folder, dtype=torch.bfloat16, device=CPU)
    assert {parameter.dtype for parameter in Student.of_teacher(half, omega_embedding_dim=8).unet.parameters()} == {torch.float32}


def test_copy_of_a_student_is_frozen_equal_and_independent(student: Student) -> None:
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


def test_saved_student_loads_frozen_with_equal_weights(student: Student, saved: Path) -> None:
    loaded = Student.load(saved, dtype=torch.float32, device=CPU)
    z_t, t, cond = inputs()
    omega = torch.tensor([1.0, 5.0, 9.0])
    with torch.no_grad():
        assert torch.equal(loaded(z_t, t, omega, cond).x0, student(z_t, t, omega, cond).x0)
    assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())
    assert loaded.kind == student.kind


def test_saved_student_without_the_guidance_layer_is_refused(saved: Path) -> None:
    weights = saved / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors[NEW_LAYER]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"lacks 1 tensors of UNet2DConditionModel, {NEW_LAYER} the first"):
        Student.load(saved, dtype=torch.float32, device=CPU)


def test_loading_a_teacher_as_student_is_refused(teacher_folder: Path) -> None:
    with pytest.raises(InputError, match="takes no guidance embedding"):
        Student.load(teacher_folder, dtype=torch.float32, device=CPU)


# --- adapters ------------------------------------------------------------------------------------

SHAPE = AdapterShape(rank=3, alpha=6, targets=("to_q", "to_out.0", "conv1", "time_emb_proj"))


@pytest.fixture
def adapter(teacher: Teacher) -> Student:
    return Student.adapting(teacher, SHAPE, seed=0)


def draw(student: Student, omega: float = 3.0) -> torch.Tensor:
    z_t, t, cond = inputs()
    with torch.no_grad():
        return student(z_t, t, torch.full((3,), omega), cond).x0


def test_new_adapter_predicts_like_the_teacher_and_ignores_omega(teacher: Teacher, adapter: Student) -> None:
    z_t, t, cond = inputs()
    torch.testing.assert_close(draw(adapter), teacher(z_t, t, cond).x0)
    learnt(adapter, by=0.1)
    assert not torch.allclose(draw(adapter), teacher(z_t, t, cond).x0)
    assert torch.equal(draw(adapter, omega=1.0), draw(adapter, omega=9.0))


def test_adapter_shares_the_teachers_weights_and_trains_only_its_own(teacher: Teacher, adapter: Student) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.unet.state_dict().items()}
    mine, theirs = ({parameter.data_ptr() for parameter in unet.parameters()} for unet in (adapter.unet, teacher.unet))
    assert theirs <= mine, "nothing is copied"
    assert {name for name, parameter in adapter.unet.named_parameters() if parameter.requires_grad} == adapter.trainable_parameters.keys()
    assert {parameter.data_ptr() for parameter in adapter.trainable_parameters.values()} == mine - theirs
    learnt(adapter, by=0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.unet.state_dict().items())
    assert not any(hasattr(module, "lora_A") for module in teacher.unet.modules())


def test_adapter_has_a_layer_for_each_layer_that_targets_match(adapter: Student) -> None:
    layers = {name.split(".lora_")[0] for name in adapter.trainable_parameters}
    assert layers
    assert all(layer.endswith(SHAPE.targets) for layer in layers)
    assert {parameter.shape[0] for name, parameter in adapter.trainable_parameters.items() if ".lora_A." in name} == {SHAPE.rank}


def test_adapter_weights_depend_on_the_seed_only(teacher: Teacher) -> None:
    states = []
    for seed in (7, 7, 8):
        torch.rand(3)
        before = torch.random.get_rng_state()
        states.append(Student.adapting(teacher, SHAPE, seed=seed).trainable_parameters)
        assert torch.equal(torch.random.get_rng_state(), before), "and nobody else's draws move"
    first, second, third = states
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize("targets", [("to_nowhere",), ("to_q", "to_nowhere"), ("to_q", "o_q", "to_nowhere")])
def test_adapter_targets_that_match_no_layer_are_refused_by_name(teacher: Teacher, targets: tuple[str, ...]) -> None:
    unknown = ", ".join(target for target in targets if target != "to_q")
    with pytest.raises(InputError, match=rf"student\.targets names {unknown}, and the teacher's UNet2DConditionModel has no such layer"):
        Student.adapting(teacher, AdapterShape(2, 2, targets), seed=0)


def test_adapter_on_a_half_precision_teacher_trains_in_float32(teacher_folder: Path) -> None:
    half = Teacher.load(teacher_folder, dtype=torch.bfloat16, device=CPU)
    adapter = Student.adapting(half, SHAPE, seed=0)
    assert {parameter.dtype for parameter in adapter.trainable_parameters.values()} == {torch.float32}
    z_t, t, cond = inputs()
    adapter(z_t, t, torch.ones(3), cond).x0.square().mean().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in adapter.trainable_parameters.values())


def test_copy_of_an_adapter_has_its_own_factors_on_the_same_frozen_weights(adapter: Student) -> None:
    learnt(adapter, by=0.1)
    copy = adapter.copy()
    before = draw(copy)
    assert torch.equal(before, draw(adapter))
    assert not any(parameter.requires_grad for parameter in copy.unet.parameters())
    assert all(parameter.requires_grad for parameter in adapter.trainable_parameters.values())
    learnt(adapter, by=0.1)
    assert torch.equal(draw(copy), before)
    base = [{p.data_ptr() for name, p in s.unet.named_parameters() if name not in s.trainable_parameters} for s in (copy, adapter)]
    assert base[0] == base[1]
    copy.restore(adapter.trainable_parameters)
    assert torch.equal(draw(copy), draw(adapter))


@pytest.fixture
def adapter_folder(adapter: Student, tmp_path: Path) -> Path:
    learnt(adapter, by=0.1)
    save_file(adapter.adapter_tensors(), tmp_path / ADAPTER_FILE)
    return tmp_path


def test_saved_adapter_loads_frozen_with_equal_weights(adapter: Student, adapter_folder: Path, teacher: Teacher) -> None:
    loaded = Student.load_adapter(adapter_folder, teacher, SHAPE)
    torch.testing.assert_close(draw(loaded), draw(adapter))
    assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())


@pytest.mark.parametrize(
    "shape", [AdapterShape(4, 4, SHAPE.targets), AdapterShape(3, 6, ("to_q",)), AdapterShape(3, 6, (*SHAPE.targets, "to_k"))]
)
def test_an_adapter_of_another_shape_is_refused(adapter_folder: Path, teacher: Teacher, shape: AdapterShape) -> None:
    with pytest.raises(InputError, match=f"no adapter of rank {shape.rank} for this teacher"):
        Student.load_adapter(adapter_folder, teacher, shape)


def test_an_adapter_that_cannot_be_opened_is_refused(adapter_folder: Path, teacher: Teacher) -> None:
    (adapter_folder / ADAPTER_FILE).write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match="cannot be opened"):
        Student.load_adapter(adapter_folder, teacher, SHAPE)


# --- SDXL ----------------------------------------------------------------------------------------


def test_new_sdxl_student_predicts_like_the_sdxl_teacher(xl_folder: Path) -> None:
    teacher = Teacher.load(xl_folder, dtype=torch.float32, device=CPU)
    text = TextEncoder.load(xl_folder, dtype=torch.float32, device=CPU)
    cond = text.encode(text.tokenise(["a", "b", "c"])).with_time_ids(torch.tensor([[640, 480, 3, 0, 16, 16]]))
    z_t, t, _ = inputs()
    for student in (Student.of_teacher(teacher, omega_embedding_dim=8), Student.adapting(teacher, SHAPE, seed=0)):
        torch.testing.assert_close(student(z_t, t, torch.ones(3), cond).x0, teacher(z_t, t, cond).x0)
    other = cond.with_time_ids(torch.tensor([[64, 48, 3, 0, 16, 16]]))
    assert not torch.allclose(teacher(z_t, t, other).x0, teacher(z_t, t, cond).x0)
