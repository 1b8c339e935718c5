"""From the same noise, our sampling gives the images of diffusers' pipelines."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from rglcd.core.consistency import BoundaryScalings
from rglcd.evaluation.generation import as_png, decoded, from_png, seeded_noises, student_latents, teacher_latents
from rglcd.models.chunks import Chunks
from rglcd.models.codec import Codec
from rglcd.models.export import CardFacts, SamplingGrid, export_student
from rglcd.models.student import AdapterShape, Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from tests.tiny_models import RESOLUTION, write_tiny_teacher, write_tiny_xl

CPU = torch.device("cpu")
CAPTIONS = ["a red circle", "a blue square"]
SHAPE = (4, RESOLUTION // 2, RESOLUTION // 2)

# Float32, a few dozen UNet calls: rounding grows to some 1e-6 of latents of unit size, and is below one grey level.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    write_tiny_teacher(folder)
    return folder


@pytest.fixture(scope="module")
def student_folder(teacher_folder, tmp_path_factory) -> Path:
    """A student whose guidance embedding is not the zero it starts as."""
    student = Student.of_teacher(Teacher.load(teacher_folder, dtype=torch.float32, device=CPU), omega_embedding_dim=32)
    torch.manual_seed(5)
    torch.nn.init.normal_(student.unet.time_embedding.cond_proj.weight, std=0.1)
    card = CardFacts("t", "t", "rg", "none", 1, 1, (1.0, 5.0), 3.0)
    folder = tmp_path_factory.mktemp("student")
    export_student(student, teacher=teacher_folder, folder=folder, grid=SamplingGrid(50, 10.0), card=card)
    return folder


CARD = CardFacts("t", "t", "rg", "none", 1, 1, (1.0, 5.0), 3.0)
ADAPTER = AdapterShape(rank=2, alpha=6, targets=("to_q", "to_v", "ff.net.2", "conv1", "proj_in"))
KINDS = ["epsilon", "v_prediction", "sample"]


def export_students(folder: Path, *, xl: bool, kind: str) -> Path:
    """A teacher of prediction type ``kind``, a whole student and an adapter of it with random changes."""
    (write_tiny_xl if xl else write_tiny_teacher)(folder / "teacher")
    path = folder / "teacher" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": kind}))
    teacher = Teacher.load(folder / "teacher", dtype=torch.float32, device=CPU)
    whole, adapter = Student.of_teacher(teacher, omega_embedding_dim=32), Student.adapting(teacher, ADAPTER, seed=0)
    torch.manual_seed(5)
    torch.nn.init.normal_(whole.unet.time_embedding.cond_proj.weight, std=0.1)
    for name, parameter in adapter.trainable_parameters.items():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for student, name in ((whole, "whole"), (adapter, "adapter")):
        export_student(student, teacher=folder / "teacher", folder=folder / name, grid=SamplingGrid(50, 10.0), card=CARD)
    return folder


@pytest.fixture(scope="module", params=[(False, kind) for kind in KINDS] + [(True, "epsilon")], ids=lambda p: "xl" if p[0] else p[1])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    xl, kind = request.param
    return export_students(tmp_path_factory.mktemp("exported"), xl=xl, kind=kind)


@pytest.fixture(scope="module")
def text(teacher_folder) -> TextEncoder:
    return TextEncoder.load(teacher_folder, dtype=torch.float32, device=CPU)


# --- noise ---------------------------------------------------------------------------------------


def test_noise_of_an_image_does_not_depend_on_its_batch():
    together = seeded_noises(range(6), SHAPE, seed=3, count=2)
    alone = [seeded_noises([index], SHAPE, seed=3, count=2) for index in range(6)]
    for number in range(2):
        assert torch.equal(together[number], torch.cat([noises[number] for noises in alone]))
    backwards = seeded_noises(range(5, -1, -1), SHAPE, seed=3, count=2)
    assert torch.equal(backwards[1].flip(0), together[1])


def test_first_noise_does_not_depend_on_the_number_of_steps():
    few, many = seeded_noises([7], SHAPE, seed=0, count=1), seeded_noises([7], SHAPE, seed=0, count=8)
    assert torch.equal(few[0], many[0])
    assert len({noise.sum().item() for noise in many}) == 8


def test_neighbouring_seeds_share_no_noise():
    assert not torch.equal(*(seeded_noises([1 - seed], SHAPE, seed=seed, count=1)[0] for seed in (0, 1)))


def test_noise_is_standard_normal():
    (noise,) = seeded_noises(range(200), SHAPE, seed=0, count=1)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)


# --- the teacher ---------------------------------------------------------------------------------


def test_sdxl_teacher_equals_diffusers_with_zeros_for_the_empty_prompt(tmp_path: Path) -> None:
    write_tiny_xl(tmp_path)
    (noise,) = seeded_noises(range(2), SHAPE, seed=0, count=1)
    teacher, text = (kind.load(tmp_path, dtype=torch.float32, device=CPU) for kind in (Teacher, TextEncoder))
    cond = text.encode(text.tokenise(CAPTIONS)).with_time_ids(text.drawing_sizes(RESOLUTION))
    ours = teacher_latents(teacher.guided, cond, text.null(), noise, schedule=teacher.schedule, num_steps=5, omega=2.0)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    grid = {"timestep_spacing": "trailing", "set_alpha_to_one": False, "clip_sample": False}
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **grid)
    theirs = pipeline(CAPTIONS, latents=noise.clone(), num_inference_steps=5, guidance_scale=3.0, output_type="latent").images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=TOLERANCE)


@pytest.mark.parametrize("num_steps", [4, 10])
def test_teacher_equals_diffusers_ddim_with_trailing_timesteps(teacher_folder, text, num_steps):
    (noise,) = seeded_noises(range(2), SHAPE, seed=0, count=1)
    teacher = Teacher.load(teacher_folder, dtype=torch.float32, device=CPU)
    cond, uncond = text.encode(text.tokenise(CAPTIONS)), text.null()
    ours = teacher_latents(teacher.guided, cond, uncond, noise, schedule=teacher.schedule, num_steps=num_steps, omega=2.0)

    pipeline = StableDiffusionPipeline.from_pretrained(teacher_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=False)
    theirs = pipeline(CAPTIONS, latents=noise.clone(), num_inference_steps=num_steps, guidance_scale=3.0, output_type="latent").images
    assert torch.allclose(ours, theirs, atol=TOLERANCE)
    assert not torch.allclose(ours, noise, atol=0.1)


# --- students ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", range(1, 9))
def test_student_equals_the_diffusers_lcm_pipeline(student_folder, text, num_steps):
    noises = seeded_noises(range(2), SHAPE, seed=0, count=num_steps)
    pipeline = LatentConsistencyModelPipeline.from_pretrained(student_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    theirs, drawn = _drawn_by_diffusers(pipeline, noises, num_steps)

    student = Student.load(student_folder, dtype=torch.float32, device=CPU)
    cond = text.encode(text.tokenise(CAPTIONS))
    ours = student_latents(student, cond, [noises[0], *drawn], schedule=student.schedule, scalings=BoundaryScalings(), omega=2.0)
    assert len(drawn) == num_steps - 1
    assert torch.allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_exported_student_draws_the_same_images_in_diffusers(exported: Path, num_steps: int) -> None:
    student = Student.load(exported / "whole", dtype=torch.float32, device=CPU)
    pipeline = DiffusionPipeline.from_pretrained(exported / "whole", safety_checker=None)
    assert isinstance(pipeline, StableDiffusionXLPipeline if student.unet.config.addition_embed_type else LatentConsistencyModelPipeline)
    _compare(exported, student, pipeline, num_steps=num_steps, guidance_scale=3.0)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_exported_adapter_draws_the_same_images_in_diffusers_fused_or_not(exported: Path, num_steps: int) -> None:
    teacher = Teacher.load(exported / "teacher", dtype=torch.float32, device=CPU)
    student = Student.load_adapter(exported / "adapter", teacher, ADAPTER)
    pipeline = DiffusionPipeline.from_pretrained(exported / "teacher", safety_checker=None)
    pipeline.scheduler = LCMScheduler.from_pretrained(exported / "adapter", subfolder="scheduler")
    without = _drawn_by_diffusers(pipeline, seeded_noises(range(2), SHAPE, seed=0, count=num_steps), num_steps, guidance_scale=1.0)[0]
    pipeline.load_lora_weights(exported / "adapter")
    theirs = _compare(exported, student, pipeline, num_steps=num_steps, guidance_scale=1.0)
    assert not torch.allclose(theirs, without, atol=1e-2), "the adapter does something"
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    _compare(exported, student, pipeline, num_steps=num_steps, guidance_scale=1.0)


def _compare(exported: Path, student: Student, pipeline, *, num_steps: int, guidance_scale: float) -> torch.Tensor:
    """Our latents and pictures are the pipeline's, from the same noise; the latents."""
    pipeline.set_progress_bar_config(disable=True)
    noises = seeded_noises(range(2), SHAPE, seed=0, count=num_steps)
    theirs, drawn = _drawn_by_diffusers(pipeline, noises, num_steps, guidance_scale=guidance_scale)
    text, codec = (kind.load(exported / "teacher", dtype=torch.float32, device=CPU) for kind in (TextEncoder, Codec))
    cond = text.encode(text.tokenise(CAPTIONS)).with_time_ids(text.drawing_sizes(RESOLUTION))
    noises = [noises[0], *drawn]
    ours = student_latents(student, cond, noises, schedule=student.schedule, scalings=BoundaryScalings(), omega=guidance_scale - 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=TOLERANCE)
    pixels = decoded(codec, ours, Chunks("n", 1))
    pictures = _drawn_by_diffusers(pipeline, noises, num_steps, guidance_scale=guidance_scale, output_type="pt")[0]
    torch.testing.assert_close(pixels, pictures, rtol=1e-4, atol=1e-4)
    return theirs


def _drawn_by_diffusers(pipeline, noises, num_steps, *, guidance_scale: float = 3.0, output_type: str = "latent"):
    """The pipeline's latents or pictures, and the noises that its scheduler drew on the way (one generator, a call a step)."""
    theirs = pipeline(
        CAPTIONS,
        latents=noises[0].clone(),
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        output_type=output_type,
        generator=torch.Generator().manual_seed(9),
    ).images
    generator = torch.Generator().manual_seed(9)
    return theirs, [torch.randn(noises[0].shape, generator=generator) for _ in range(num_steps - 1)]


def test_student_output_depends_on_the_guidance_weight(student_folder, text):
    student = Student.load(student_folder, dtype=torch.float32, device=CPU)
    cond, noises = text.encode(text.tokenise(CAPTIONS)), seeded_noises(range(2), SHAPE, seed=0, count=1)
    weak, strong = (
        student_latents(student, cond, noises, schedule=student.schedule, scalings=BoundaryScalings(), omega=omega) for omega in (1.0, 5.0)
    )
    assert not torch.allclose(weak, strong, atol=1e-4)


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
def test_pixels_are_the_same_however_many_are_decoded_at_once_and_have_no_gradient(teacher_folder, at_once):
    codec = Codec.load(teacher_folder, dtype=torch.float32, device=CPU)
    latents = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pixels = decoded(codec, latents, Chunks("n", at_once))
    torch.testing.assert_close(pixels, codec.decode(latents).detach(), rtol=0, atol=1e-6)
    assert torch.equal(as_png(pixels), as_png(codec.decode(latents)))
    assert pixels.shape == (5, 3, RESOLUTION, RESOLUTION)
    assert not pixels.requires_grad


# --- what a file would hold ----------------------------------------------------------------------


def test_rounding_equals_that_of_diffusers_images(teacher_folder):
    pipeline = StableDiffusionPipeline.from_pretrained(teacher_folder, safety_checker=None)
    latents = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = Codec.load(teacher_folder, dtype=torch.float32, device=CPU).decode(latents)
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    theirs = [np.asarray(image) for image in pipeline.image_processor.postprocess(decoded, output_type="pil")]
    assert np.array_equal(as_png(pixels).permute(0, 2, 3, 1).numpy(), np.stack(theirs))


def test_every_grey_level_survives_rounding():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_png(from_png(levels)), levels)
