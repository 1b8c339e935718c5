"""PixArt-Sigma, SANA, Lumina-Image 2.0 and FLUX.1 through the core equal diffusers' own pipelines. Random weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SCMScheduler

from rglcd.core.condition import Condition
from rglcd.core.consistency import Boundary, BoundaryScalings, FlowBoundary
from rglcd.errors import InputError
from rglcd.evaluation.generation import student_latents, teacher_latents
from rglcd.models.codec import Codec
from rglcd.models.export import CardFacts, SamplingGrid, export_student
from rglcd.models.families import family_of
from rglcd.models.initial import start_from
from rglcd.models.student import AdapterShape, Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from tests.models.students import learnt, run_card
from tests.tiny_flows import write_tiny_flux, write_tiny_lumina2, write_tiny_pixart, write_tiny_sana
from tests.tiny_models import RESOLUTION

CPU = torch.device("cpu")
PROMPTS = ["a Red circle", "blue"]
TEN = [1 - step / 10 for step in range(10)]
CARD = CardFacts("t", "org/teacher", "rg", "none", 1, 1, (3.0, 4.0), 4.5)


@dataclass(frozen=True)
class Tiny:
    """One family: how its folder is written, what its pipeline is called with, and by how much the sizes of latents multiply errors."""

    write: Callable[[Path], None]
    steps: dict[str, Any]
    calling: dict[str, Any]
    tolerance: float = 1e-4


TINY = {
    "pixart": Tiny(
        write_tiny_pixart,
        {"num_inference_steps": 10},
        {"guidance_scale": 4.5, "use_resolution_binning": False, "clean_caption": False},
    ),
    "sana": Tiny(write_tiny_sana, {"sigmas": TEN}, {"guidance_scale": 4.5, "use_resolution_binning": False}),
    "lumina2": Tiny(write_tiny_lumina2, {"sigmas": TEN}, {"guidance_scale": 4.5, "cfg_normalization": False}),
    "flux-dev": Tiny(write_tiny_flux, {"sigmas": TEN}, {"guidance_scale": 3.5}),
    # It has no guidance at all: diffusers' ``true_cfg_scale`` is the usual two passes.
    "flux-schnell": Tiny(
        partial(write_tiny_flux, guided=False), {"sigmas": TEN, "negative_prompt": ["", ""], "true_cfg_scale": 3.0}, {"guidance_scale": 3.0}
    ),
}


@pytest.fixture(scope="module", params=list(TINY))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Path]:
    folder, tiny = tmp_path_factory.mktemp(request.param), TINY[request.param]
    tiny.write(folder)
    return tiny, folder


def load(folder: Path) -> tuple[Teacher, TextEncoder]:
    return (
        Teacher.load(folder, dtype=torch.float32, device=CPU, resolution=RESOLUTION),
        TextEncoder.load(folder, dtype=torch.float32, device=CPU),
    )


def stock(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(seed: int, rows: int, count: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 4, RESOLUTION // 2, RESOLUTION // 2, generator=generator) for _ in range(count)]


def as_latents(images: torch.Tensor) -> torch.Tensor:
    """Of FLUX's packed tokens."""
    if images.ndim == 4:
        return images
    side = RESOLUTION // 4
    return images.reshape(-1, side, side, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, 4, 2 * side, 2 * side)


def as_given(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    return (
        pipeline._pack_latents(latents, len(latents), 4, RESOLUTION // 2, RESOLUTION // 2)
        if hasattr(pipeline, "_pack_latents")
        else latents
    )


def test_guided_steps_of_the_teacher_equal_the_pipelines(family: tuple[Tiny, Path]) -> None:
    tiny, folder = family
    (teacher, text), pipeline = load(folder), stock(folder)
    # One step of their own DPM-Solver is of second order: Euler's, and DDIM's, is ours.
    if teacher.family.title == "SANA":
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    elif teacher.family.title == "PixArt-Sigma":
        options = {"clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "trailing"}
        pipeline.scheduler = DDIMScheduler(beta_start=0.0001, beta_end=0.02, **options)
    cond, (start,) = text.encode(text.tokenise(PROMPTS)), noise(3, 2)
    given = tiny.calling["guidance_scale"]
    omega = given if teacher.guides_itself else given - 1
    ours = teacher_latents(teacher.guided, cond, text.null(), start, schedule=teacher.schedule, num_steps=10, omega=omega)
    # SANA's pipeline refuses a size that its own autoencoder cannot have, and does not look at the size of latents.
    size = dict.fromkeys(("height", "width"), 32 if teacher.family.title == "SANA" else RESOLUTION)
    theirs = pipeline(PROMPTS, latents=as_given(pipeline, start), output_type="latent", **size, **tiny.steps, **tiny.calling).images
    scale = max(1.0, float(ours.abs().max()))
    torch.testing.assert_close(ours, as_latents(theirs), rtol=0, atol=tiny.tolerance * scale)


def test_what_the_plan_gives_the_network_has_the_shapes_of_a_condition(family: tuple[Tiny, Path]) -> None:
    teacher, text = load(family[1])
    cond = text.encode(text.tokenise(PROMPTS))
    blank = teacher.family.blank(teacher.unet.config, 2, dtype=torch.float32, device=CPU)
    for name, tensor in vars(cond).items():
        other = getattr(blank, name)
        assert (tensor is None) == (other is None), name
        assert tensor is None or (tensor.shape, tensor.dtype) == (other.shape, other.dtype), name


def test_a_mask_is_known_from_the_ids_alone(family: tuple[Tiny, Path]) -> None:
    _, text = load(family[1])
    ids = text.tokenise(PROMPTS)
    cond = text.encode(ids)
    again = text.masked(Condition(cond.embeddings, cond.pooled), ids)
    assert (again.mask is None) == (cond.mask is None)
    assert cond.mask is None or torch.equal(again.mask, cond.mask)


def test_what_a_mask_leaves_out_is_not_looked_at_and_need_not_be_stored(family: tuple[Tiny, Path]) -> None:
    teacher, text = load(family[1])
    cond, (z_t,), t = text.encode(text.tokenise(PROMPTS)), noise(5, 2), torch.tensor([999, 399])
    if cond.mask is None:
        assert teacher.family.title == "FLUX.1"
        return
    assert not cond.mask.all()
    bare = replace(cond, embeddings=cond.embeddings * cond.mask[..., None])
    torch.testing.assert_close(teacher(z_t, t, bare).x0, teacher(z_t, t, cond).x0, rtol=1e-6, atol=1e-6)


def test_pictures_go_through_the_familys_autoencoder_as_in_its_pipeline(family: tuple[Tiny, Path]) -> None:
    folder = family[1]
    codec, pipeline = Codec.load(folder, dtype=torch.float32, device=CPU), stock(folder)
    assert codec.latent_shape(RESOLUTION) == (4, RESOLUTION // 2, RESOLUTION // 2)
    pixels = torch.rand(2, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(0))
    moments = codec.moments(pixels)
    latents = codec.latents(moments, torch.zeros_like(moments.mean))
    config = pipeline.vae.config
    raw = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
    torch.testing.assert_close(raw, moments.mean)
    with torch.no_grad():
        theirs = pipeline.image_processor.postprocess(pipeline.vae.decode(raw).sample, output_type="pt")
    torch.testing.assert_close(codec.decode(latents), theirs, rtol=1e-5, atol=1e-5)


def test_a_lumina_folder_of_its_first_weeks_is_read(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "Lumina2Text2ImgPipeline"}')
    assert family_of(tmp_path).title == "Lumina-Image 2.0"


# --- students ------------------------------------------------------------------------------------


def drawn(student: Student, text: TextEncoder) -> torch.Tensor:
    """Two steps, in the scale of guidance of the card."""
    boundary: Boundary = FlowBoundary() if student.schedule.is_flow else BoundaryScalings()
    cond = text.encode(text.tokenise(["a prompt"]))
    first, second = noise(7, 1, 2)
    if student.family.title == "FLUX.1":  # its scheduler draws the second in packed tokens
        second = as_latents(second.reshape(1, -1, 16))
    return student_latents(student, cond, [first, second], schedule=student.schedule, scalings=boundary, omega=3.5)


def test_the_cards_own_example_draws_what_a_whole_student_draws_here(
    family: tuple[Tiny, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, folder = family
    teacher, text = load(folder)
    allow_tiny_latents(monkeypatch)
    student = learnt(Student.of_teacher(teacher, omega_embedding_dim=None))
    export_student(student, teacher=folder, folder=tmp_path, grid=SamplingGrid(50, 10.0, RESOLUTION), card=CARD)
    ours = drawn(student, text)
    theirs = as_latents(run_card(tmp_path, teacher=folder, monkeypatch=monkeypatch)[None])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tiny.tolerance * max(1.0, float(ours.abs().max())))
    loaded = drawn(Student.load(tmp_path, dtype=torch.float32, device=CPU), text)
    torch.testing.assert_close(loaded, ours, rtol=1e-4, atol=1e-4)


def allow_tiny_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """These pipelines take their autoencoder for one of factor 8 or 32, whatever it is."""
    monkeypatch.setattr("diffusers.SanaPipeline.check_inputs", lambda *_, **__: None)
    monkeypatch.setattr("diffusers.SanaSprintPipeline.check_inputs", lambda *_, **__: None)
    for pipeline in ("SanaPipeline", "SanaSprintPipeline", "Lumina2Pipeline"):
        monkeypatch.setattr(f"diffusers.{pipeline}.prepare_latents", lambda *_: noise_from_the_global_generator())


def noise_from_the_global_generator() -> torch.Tensor:
    return torch.randn(1, 4, RESOLUTION // 2, RESOLUTION // 2)


def test_an_adapter_draws_in_the_pipeline_by_its_card_or_is_refused(
    family: tuple[Tiny, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, folder = family
    teacher, text = load(folder)
    shape = AdapterShape(rank=3, alpha=6, targets=teacher.family.lora_targets)
    if not teacher.family.loads_adapters:
        with pytest.raises(InputError, match="PixArtSigmaPipeline loads no LoRA"):
            Student.adapting(teacher, shape, seed=0)
        return
    allow_tiny_latents(monkeypatch)
    student = learnt(Student.adapting(teacher, shape, seed=0))
    export_student(student, teacher=folder, folder=tmp_path, grid=SamplingGrid(50, 10.0, RESOLUTION), card=CARD)
    ours = drawn(student, text)
    theirs = as_latents(run_card(tmp_path, teacher=folder, monkeypatch=monkeypatch)[None])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tiny.tolerance * max(1.0, float(ours.abs().max())))


def test_a_student_of_a_guided_teacher_is_given_the_scale_and_others_are_not(family: tuple[Tiny, Path]) -> None:
    teacher, _ = load(family[1])
    student = Student.of_teacher(teacher, omega_embedding_dim=None)
    assert student.takes_omega == teacher.guides_itself
    if teacher.family.title == "SANA":  # see below
        return
    with pytest.raises(InputError, match=r"distillation\.student: .* set kind to same_inputs"):
        Student.of_teacher(teacher, omega_embedding_dim=256)


# --- SANA-Sprint ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sana-sprint")
    write_tiny_sana(folder)
    return folder


def test_sana_sprint_starts_as_its_teacher_and_is_told_guidance_from_there(sana: Path) -> None:
    teacher, text = load(sana)
    student = Student.of_teacher(teacher, omega_embedding_dim=256)
    assert student.takes_omega
    cond, (z_t,), t = text.encode(text.tokenise(PROMPTS)), noise(5, 2), torch.tensor([999, 399])

    def at(omega: float) -> torch.Tensor:
        return student(z_t, t, torch.full((2,), omega), cond).x0

    torch.testing.assert_close(at(3.5), teacher(z_t, t, cond).x0)
    torch.testing.assert_close(at(3.5), at(9.0))
    learnt(student)
    assert not torch.allclose(at(3.5), at(9.0), rtol=0, atol=1e-4)


def test_sana_sprints_own_card_draws_in_its_pipeline_what_it_draws_here(
    sana: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, text = load(sana)
    allow_tiny_latents(monkeypatch)
    student = learnt(Student.of_teacher(teacher, omega_embedding_dim=256))
    export_student(student, teacher=sana, folder=tmp_path, grid=SamplingGrid(50, 10.0, RESOLUTION), card=CARD)
    opened = stock(tmp_path)
    assert (type(opened).__name__, type(opened.scheduler).__name__) == ("SanaSprintPipeline", "SCMScheduler")
    text_of_card = (tmp_path / "README.md").read_text()
    # The shift of 3 makes a sigma of 0.75 of the half: an angle whose tangent is 3. Guidance is omega's middle and one.
    assert "num_inference_steps=2, intermediate_timesteps=1.249046, guidance_scale=4.5" in text_of_card
    ours = drawn(student, text)
    theirs = run_card(tmp_path, teacher=sana, monkeypatch=monkeypatch)[None]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * max(1.0, float(ours.abs().max())))
    torch.testing.assert_close(drawn(Student.load(tmp_path, dtype=torch.float32, device=CPU), text), ours, rtol=1e-4, atol=1e-4)


def test_a_student_starts_from_sana_sprint_or_from_one_that_is_not_told_guidance(sana: Path, tmp_path: Path) -> None:
    teacher, text = load(sana)
    cond, (z_t,), t, omega = text.encode(text.tokenise(PROMPTS)), noise(5, 2), torch.tensor([999, 399]), torch.tensor([3.0, 5.0])
    for dim in (256, None):
        first = learnt(Student.of_teacher(teacher, omega_embedding_dim=dim))
        export_student(first, teacher=sana, folder=tmp_path / str(dim), grid=SamplingGrid(50, 10.0, RESOLUTION), card=CARD)
        second = Student.of_teacher(teacher, omega_embedding_dim=256)
        start_from(second, tmp_path / str(dim))
        torch.testing.assert_close(second(z_t, t, omega, cond).x0, first(z_t, t, omega, cond).x0)


def test_a_sana_that_its_sprint_could_not_draw_with_is_named(sana: Path, tmp_path: Path) -> None:
    teacher, _ = load(sana)
    with pytest.raises(InputError, match="a student of SANA has 256"):
        Student.of_teacher(teacher, omega_embedding_dim=128)
    teacher.unet.register_to_config(timestep_scale=1.0)
    with pytest.raises(InputError, match=r"timestep_scale of 1\.0, .* set kind to same_inputs"):
        Student.of_teacher(teacher, omega_embedding_dim=256)


def test_sana_sprint_is_no_teacher_and_draws_only_as_exported(sana: Path, tmp_path: Path) -> None:
    export_student(
        Student.of_teacher(load(sana)[0], omega_embedding_dim=256), teacher=sana, folder=tmp_path, grid=SamplingGrid(50, 10.0), card=CARD
    )
    with pytest.raises(InputError, match="it is SANA-Sprint, a student already; name the SANA"):
        load(tmp_path)
    SCMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(InputError, match="does not say _shift: this SANA-Sprint was not exported by rglcd"):
        Student.load(tmp_path, dtype=torch.float32, device=CPU)


def test_an_autoencoder_that_cannot_recompute_is_refused_by_the_setting_that_asked(sana: Path) -> None:
    with pytest.raises(InputError, match=r"reward\.activations recomputed: diffusers' AutoencoderDC cannot; set it to kept"):
        Codec.load(sana, dtype=torch.float32, device=CPU).recompute_activations()
