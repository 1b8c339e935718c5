"""Stable Diffusion 3 through the core equals diffusers' own pipeline: captions, teacher, student, export. Random weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchLCMScheduler, StableDiffusion3Pipeline

from rglcd.core.condition import Condition
from rglcd.core.consistency import FlowBoundary
from rglcd.core.sampling import lcm_timesteps
from rglcd.errors import InputError
from rglcd.evaluation.generation import student_latents, teacher_latents
from rglcd.models.codec import Codec
from rglcd.models.dropout import drop_in
from rglcd.models.export import CardFacts, SamplingGrid, export_student
from rglcd.models.student import AdapterShape, Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from tests.models.students import card_example, learnt, run_card
from tests.tiny_flows import write_tiny_sd3
from tests.tiny_models import RESOLUTION

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "blue"]
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}
CARD = CardFacts("t", "org/teacher", "rg", "none", 1, 1, (4.0, 4.0), 5.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3")
    write_tiny_sd3(folder)
    return folder


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3-without-t5")
    write_tiny_sd3(folder, t5=False)
    return folder


def load(folder: Path) -> tuple[Teacher, TextEncoder]:
    return (
        Teacher.load(folder, dtype=torch.float32, device=CPU, resolution=RESOLUTION),
        TextEncoder.load(folder, dtype=torch.float32, device=CPU),
    )


def stock(folder: Path, **parts: None) -> StableDiffusion3Pipeline:
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noises(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(len(PROMPTS), 16, RESOLUTION // 2, RESOLUTION // 2, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("t5", [True, False])
def test_captions_become_the_pipelines_embeddings(folder: Path, without_t5: Path, t5: bool) -> None:
    teacher, text = load(folder if t5 else without_t5)
    pipeline = stock(folder) if t5 else stock(without_t5, **NO_T5)
    with torch.no_grad():
        embeddings, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    cond = text.encode(text.tokenise(PROMPTS))
    torch.testing.assert_close(cond.pooled, pooled, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cond.embeddings, embeddings[..., : cond.embeddings.shape[-1]], rtol=1e-6, atol=1e-6)
    assert embeddings[..., cond.embeddings.shape[-1] :].count_nonzero() == 0
    blank = teacher.family.blank(teacher.unet.config, 2, dtype=torch.float32, device=CPU)
    assert blank.pooled.shape == cond.pooled.shape


@pytest.mark.parametrize("t5", [True, False])
def test_ten_guided_steps_of_the_teacher_equal_the_pipelines(folder: Path, without_t5: Path, t5: bool) -> None:
    teacher, text = load(folder if t5 else without_t5)
    pipeline = stock(folder) if t5 else stock(without_t5, **NO_T5)
    cond, (noise,) = text.encode(text.tokenise(PROMPTS)), noises(1)
    ours = teacher_latents(teacher.guided, cond, text.null(), noise, schedule=teacher.schedule, num_steps=10, omega=4.0)
    theirs = pipeline(PROMPTS, sigmas=[1 - step / 10 for step in range(10)], guidance_scale=5.0, latents=noise, output_type="latent").images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_latents_of_pictures_are_the_pipelines(folder: Path) -> None:
    codec, pipeline = Codec.load(folder, dtype=torch.float32, device=CPU), stock(folder)
    pixels = torch.rand(2, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(0))
    moments = codec.moments(pixels)
    with torch.no_grad():
        mean = pipeline.vae.encode(2 * pixels - 1).latent_dist.mode()
    latents = codec.latents(moments, torch.zeros_like(moments.mean))
    torch.testing.assert_close(latents, (mean - 0.0609) * 1.5305)
    theirs = pipeline.image_processor.postprocess(pipeline.vae.decode(mean).sample.detach(), output_type="pt")
    torch.testing.assert_close(codec.decode(latents), theirs, rtol=1e-5, atol=1e-5)


# --- students ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, Path]:
    student = learnt(Student.of_teacher(load(folder)[0], omega_embedding_dim=None))
    place = tmp_path_factory.mktemp("exported")
    export_student(student, teacher=folder, folder=place, grid=SamplingGrid(50, 10.0, RESOLUTION), card=CARD)
    return student, place


def drawn(student: Student, cond: Condition, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (len(cond), 16, RESOLUTION // 2, RESOLUTION // 2)
    stream = [torch.randn(shape, generator=generator) for _ in range(count)]
    return student_latents(student, cond, stream, schedule=student.schedule, scalings=FlowBoundary(), omega=4.0)


def test_a_new_student_predicts_as_its_teacher_and_has_no_layer_more(folder: Path) -> None:
    teacher, text = load(folder)
    student = Student.of_teacher(teacher, omega_embedding_dim=None)
    cond, (noise,), t = text.encode(text.tokenise(PROMPTS)), noises(1), torch.tensor([19, 999])
    with torch.no_grad():
        assert torch.equal(student(noise, t, torch.tensor([1.0, 9.0]), cond).x0, teacher(noise, t, cond).x0)
    assert student.unet.state_dict().keys() == teacher.unet.state_dict().keys()
    assert not student.takes_omega


@pytest.mark.parametrize("count", [1, 2, 4])
def test_an_exported_student_draws_in_the_stock_pipeline_as_here(exported: tuple[Student, Path], folder: Path, count: int) -> None:
    student, place = exported
    text = load(folder)[1]
    ours = drawn(student, text.encode(text.tokenise(PROMPTS)), count)
    pipeline = stock(place)
    assert isinstance(pipeline.scheduler, FlowMatchLCMScheduler)
    sigmas = [(t + 1) / 1000 for t in lcm_timesteps(count)]
    torch.manual_seed(7)
    theirs = pipeline(PROMPTS, sigmas=sigmas, guidance_scale=1, height=RESOLUTION, width=RESOLUTION, output_type="latent").images
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_loaded_student_is_the_exported_one(exported: tuple[Student, Path], folder: Path) -> None:
    student, place = exported
    text = load(folder)[1]
    cond = text.encode(text.tokenise(PROMPTS))
    assert torch.equal(drawn(Student.load(place, dtype=torch.float32, device=CPU), cond, 2), drawn(student, cond, 2))


def test_the_cards_own_example_draws_what_is_drawn_here(
    exported: tuple[Student, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, place = exported
    text = load(folder)[1]
    theirs = run_card(place, teacher=folder, monkeypatch=monkeypatch)
    ours = drawn(student, text.encode(text.tokenise(["a prompt"])), 2)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_stock_draw_without_sigmas_is_not_ours(exported: tuple[Student, Path], folder: Path) -> None:
    # diffusers issue 13243: the scheduler shifts its own sigmas twice. Once it does not, the card need not name sigmas.
    student, place = exported
    text = load(folder)[1]
    torch.manual_seed(7)
    theirs = stock(place)(
        PROMPTS, num_inference_steps=2, guidance_scale=1, height=RESOLUTION, width=RESOLUTION, output_type="latent"
    ).images
    assert (drawn(student, text.encode(text.tokenise(PROMPTS)), 2) - theirs).abs().max() > 1e-2


def test_a_card_of_a_grid_of_one_step_draws_in_one(folder: Path, tmp_path: Path) -> None:
    student = Student.of_teacher(load(folder)[0], omega_embedding_dim=None)
    export_student(student, teacher=folder, folder=tmp_path, grid=SamplingGrid(1, 10.0, RESOLUTION), card=CARD)
    assert "sigmas=[1.0]" in card_example(tmp_path)


def test_a_student_without_t5_is_opened_as_its_card_says(without_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student.of_teacher(load(without_t5)[0], omega_embedding_dim=None)
    export_student(student, teacher=without_t5, folder=tmp_path, grid=SamplingGrid(50, 10.0, RESOLUTION), card=CARD)
    assert "text_encoder_3=None, tokenizer_3=None" in card_example(tmp_path)
    assert run_card(tmp_path, teacher=without_t5, monkeypatch=monkeypatch).isfinite().all()


def test_a_student_of_a_pipeline_with_another_part_is_opened_without_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a pipeline is saved that an IP-Adapter was loaded into.
    teacher = Path(shutil.copytree(folder, tmp_path / "teacher"))
    index = json.loads((teacher / "model_index.json").read_text())
    part = {"image_encoder": ["transformers", "SiglipVisionModel"]}
    (teacher / "model_index.json").write_text(json.dumps(index | part))
    student = Student.of_teacher(load(teacher)[0], omega_embedding_dim=None)
    export_student(student, teacher=teacher, folder=tmp_path / "student", grid=SamplingGrid(50, 10.0, RESOLUTION), card=CARD)
    assert run_card(tmp_path / "student", teacher=teacher, monkeypatch=monkeypatch).isfinite().all()


def test_an_adapter_loads_and_draws_in_the_teachers_stock_pipeline(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, text = load(folder)
    shape = AdapterShape(rank=3, alpha=6, targets=teacher.family.lora_targets)
    student = learnt(Student.adapting(teacher, shape, seed=0))
    export_student(student, teacher=folder, folder=tmp_path, grid=SamplingGrid(50, 10.0, RESOLUTION), card=CARD)
    assert not (tmp_path / "kohya_lora.safetensors").exists()
    theirs = run_card(tmp_path, teacher=folder, monkeypatch=monkeypatch)
    cond = text.encode(text.tokenise(["a prompt"]))
    ours = drawn(student, cond, 2)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    loaded = Student.load_adapter(tmp_path, load(folder)[0], shape)
    torch.testing.assert_close(drawn(loaded, cond, 2)[0], ours, rtol=1e-5, atol=1e-5)


def test_every_target_that_the_family_names_is_a_layer_of_its_network(folder: Path) -> None:
    teacher, _ = load(folder)
    names = [name for name, _ in teacher.unet.named_modules()]
    assert all(any(name.endswith(target) for name in names) for target in teacher.family.lora_targets)


def test_what_the_network_cannot_do_is_refused_with_the_way_out(folder: Path) -> None:
    teacher, _ = load(folder)
    with pytest.raises(InputError, match="has no input for omega that a UNet's student gets; set kind to same_inputs"):
        Student.of_teacher(teacher, omega_embedding_dim=256)
    with pytest.raises(InputError, match="a SD3Transformer2DModel has no residual blocks"):
        drop_in([teacher.unet], rate=0.1)
    with pytest.raises(InputError, match=r"SD3Transformer2DModel has no such layer; usual ones are attn\.to_q"):
        Student.adapting(teacher, AdapterShape(2, 2, ("conv1",)), seed=0)


def test_a_pipeline_that_is_no_flow_by_its_scheduler_is_refused(folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "sd3"))
    shutil.rmtree(place / "scheduler")
    shutil.copytree(teacher_folder / "scheduler", place / "scheduler")
    with pytest.raises(InputError, match="is a DDIMScheduler, and the teacher is a flow: expected a FlowMatch scheduler"):
        load(place)
