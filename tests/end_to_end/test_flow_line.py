"""The whole line on a tiny flow-matching teacher with random weights: from pictures to a folder that the stock pipeline opens."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchLCMScheduler
from safetensors.torch import load_file

from rglcd.config import Config
from tests.tiny_flows import write_tiny_flux, write_tiny_lumina2, write_tiny_pixart, write_tiny_sana, write_tiny_sd3
from tests.tiny_line import (
    TINY_EVALUATION,
    published_model_settings,
    run,
    tiny_config,
    write_published_models,
    write_tiny_evaluation_data,
    write_tiny_source,
)
from tests.tiny_models import RESOLUTION

pytestmark = pytest.mark.slow
WITHOUT_OMEGA = "distillation.student={kind: same_inputs}"
LORA = "distillation.student={kind: lora, rank: 2, alpha: 2, targets: [attn.to_q, attn.add_q_proj]}"
STAGES = ("prepare", "shard", "cache", "pretrain", "distill", "evaluate")


def line(root: Path, *overrides: str, stages: Sequence[str] = STAGES) -> Config:
    """Every stage, on a teacher in ``root/models/teacher``."""
    config = tiny_config(*published_model_settings(root / "models"), *TINY_EVALUATION, "evaluation.scorers=[expert]", *overrides)
    write_tiny_source(root / "data")
    write_tiny_evaluation_data(root / "data")
    for stage in stages:
        run(root, config, stage)
    return config


def open_stock(folder: Path) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_sd3_from_pictures_to_whole_students_that_the_stock_pipeline_opens(tmp_path: Path) -> None:
    write_published_models(tmp_path / "models", teacher=write_tiny_sd3)
    line(tmp_path, WITHOUT_OMEGA, "distillation.omega=[4, 4]", "distillation.weighting=inverse_gap", "caching.text_embeddings=true")
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())
    for arm in ("lcm", "rg"):
        assert_draws(open_stock(tmp_path / "student" / arm))


def test_sd3_from_pictures_to_an_adapter_that_the_stock_pipeline_loads(tmp_path: Path) -> None:
    write_published_models(tmp_path / "models", teacher=write_tiny_sd3)
    pixel = "reward={kind: pixel, expert: expert, weight: 1.0, prediction: {kind: own}}"
    line(tmp_path, LORA, "distillation.omega=[4, 4]", "distillation.activations=recomputed", pixel)
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())
    pipeline = open_stock(tmp_path / "models" / "teacher")
    pipeline.scheduler = FlowMatchLCMScheduler.from_pretrained(tmp_path / "student" / "rg", subfolder="scheduler")
    pipeline.load_lora_weights(tmp_path / "student" / "rg")
    assert_draws(pipeline)


OTHERS = {
    "pixart": (write_tiny_pixart, WITHOUT_OMEGA),
    "sana": (write_tiny_sana, WITHOUT_OMEGA),
    "sana-sprint": (write_tiny_sana, "distillation.student={kind: full}"),
    "lumina2": (write_tiny_lumina2, WITHOUT_OMEGA),
    "flux-dev": (write_tiny_flux, WITHOUT_OMEGA),
}


MASKED = {"pixart", "lumina2"}


@pytest.mark.parametrize("family", list(OTHERS))
def test_other_families_from_pictures_to_a_student_that_is_evaluated(tmp_path: Path, family: str) -> None:
    write, student = OTHERS[family]
    write_published_models(tmp_path / "models", teacher=write)
    once = ("prepare", "shard", "cache", "distill", "evaluate")
    stored = f"caching.text_embeddings={str(family in MASKED).lower()}"
    line(tmp_path, student, stored, "distillation.omega=[4, 4]", "distillation.arms=[lcm]", "reward={kind: none}", stages=once)
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert (tmp_path / "student" / "lcm" / "transformer").is_dir()
    columns = load_file(next((tmp_path / "latents").glob("*.safetensors")))
    assert ("text_rows" in columns) == (family in MASKED)
    assert family not in MASKED or 0 < len(columns["text_rows"]) == columns["text_mask"].sum() < columns["text_mask"].numel()


def test_a_second_run_starts_from_the_student_of_the_first(tmp_path: Path) -> None:
    write_published_models(tmp_path / "models")
    once, lcm = ("prepare", "shard", "cache", "distill"), ("distillation.arms=[lcm]", "reward={kind: none}")
    line(tmp_path, *lcm, stages=once)
    first = tmp_path / "models" / "few-step"
    shutil.copytree(tmp_path / "student" / "lcm", first)
    still = ("distillation.num_steps=1", "distillation.learning_rate=1e-12")
    config = tiny_config(*published_model_settings(tmp_path / "models"), *lcm, *still, f"preparation.initial.uri={first}")
    for stage in once:
        run(tmp_path, config, stage)
    mine, theirs = (load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (tmp_path / "student" / "lcm", first))
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-9) for name in theirs)


def assert_draws(pipeline: DiffusionPipeline) -> None:
    image = pipeline("a", sigmas=[1.0, 0.5], guidance_scale=1, height=RESOLUTION, width=RESOLUTION, output_type="pt").images
    assert image.shape == (1, 3, RESOLUTION, RESOLUTION)
    assert torch.isfinite(image).all()
