"""The how-to for another family of teachers: its example, run as it stands."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from transformers import UMT5Config, UMT5EncoderModel

from rglcd.core.consistency import FlowBoundary
from rglcd.errors import InputError
from rglcd.evaluation.generation import student_latents, teacher_latents
from rglcd.models import families
from rglcd.models.export import CardFacts, SamplingGrid, export_student
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from tests.models.students import learnt, run_card
from tests.tiny_flows import LETTERS, stir, tiny_t5_tokenizer
from tests.tiny_models import RESOLUTION, tiny_vae

HOW_TO = Path("docs/how-to/new-family.md")
CPU = torch.device("cpu")


def write_tiny_aura_flow(folder: Path) -> None:
    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=RESOLUTION // 2,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=256,
    )
    stir(transformer)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    AuraFlowPipeline(
        tokenizer=tiny_t5_tokenizer(),
        text_encoder=UMT5EncoderModel(UMT5Config(vocab_size=len(LETTERS) + 4, **sizes)),
        vae=tiny_vae(latent_channels=4),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    ).save_pretrained(folder, safe_serialization=True)


def noise(generator: torch.Generator, rows: int) -> torch.Tensor:
    return torch.randn(rows, 4, RESOLUTION // 2, RESOLUTION // 2, generator=generator)


def test_the_how_tos_family_is_read_taught_and_exported_as_diffusers_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, exported = tmp_path / "teacher", tmp_path / "student"
    write_tiny_aura_flow(folder)
    with pytest.raises(InputError, match="is a AuraFlowPipeline, AuraFlow"):
        families.family_of(folder)
    (code,) = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, type[families.Family]] = {}
    exec(code, names)
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, names["AuraFlow"]()))

    teacher = Teacher.load(folder, dtype=torch.float32, device=CPU, resolution=RESOLUTION)
    text = TextEncoder.load(folder, dtype=torch.float32, device=CPU)
    cond, start = text.encode(text.tokenise(["a Red circle", "blue"])), noise(torch.Generator().manual_seed(3), 2)
    ours = teacher_latents(teacher.guided, cond, text.null(), start, schedule=teacher.schedule, num_steps=10, omega=2.5)
    pipeline = AuraFlowPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": RESOLUTION, "width": RESOLUTION}
    sigmas = [1 - step / 10 for step in range(10)]
    drawn = pipeline(["a Red circle", "blue"], latents=start, sigmas=sigmas, guidance_scale=3.5, output_type="latent", **size).images
    torch.testing.assert_close(ours, drawn, rtol=0, atol=1e-4 * max(1.0, float(ours.abs().max())))

    student = learnt(Student.of_teacher(teacher, omega_embedding_dim=None))
    card = CardFacts("t", "org/teacher", "rg", "none", 1, 1, (2.5, 2.5), 3.5)
    export_student(student, teacher=folder, folder=exported, grid=SamplingGrid(50, 10.0, RESOLUTION), card=card)
    stream = torch.Generator().manual_seed(7)
    noises = [noise(stream, 1) for _ in range(2)]
    mine = student_latents(
        student, text.encode(text.tokenise(["a prompt"])), noises, schedule=student.schedule, scalings=FlowBoundary(), omega=2.5
    )
    theirs = run_card(exported, teacher=folder, monkeypatch=monkeypatch)[None]
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4 * max(1.0, float(mine.abs().max())))
