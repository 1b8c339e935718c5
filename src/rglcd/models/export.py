"""The student as the field expects it, opened with no code of ours: a diffusers pipeline folder, or an adapter that
``load_lora_weights`` puts onto the teacher's own pipeline and ``fuse_lora`` merges."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusers import LCMScheduler
from safetensors.torch import save_file

from rglcd.models.loading import read_json
from rglcd.models.student import ADAPTER_FILE, Student
from rglcd.models.text import is_xl, text_parts

_SD_PIPELINE = "LatentConsistencyModelPipeline"
_XL_PIPELINE = "StableDiffusionXLPipeline"


@dataclass(frozen=True)
class CardFacts:
    """What the model card says; every figure is this run's."""

    title: str
    teacher: str
    arm: str
    reward: str
    num_steps: int
    images_seen: int
    omega: tuple[float, float]
    guidance_scale: float


@dataclass(frozen=True)
class SamplingGrid:
    """From which grid diffusers' LCM scheduler picks its few timesteps, and the slope of the boundary scalings."""

    num_ddim_steps: int
    timestep_scaling: float


def export_student(student: Student, *, teacher: Path, folder: Path, grid: SamplingGrid, card: CardFacts) -> None:
    """Write ``student``, distilled from the pipeline folder ``teacher``, with an LCM scheduler and a model card.

    A whole student brings the teacher's VAE, text encoders and tokenizers along; an adapter is one file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_scheduler(teacher, folder, grid)
    if student.adapter is None:
        _write_pipeline(student, teacher, folder)
        use = _PIPELINE_USE
    else:
        # One key of metadata: safetensors writes several in an order that changes from run to run.
        save_file(student.adapter_tensors(), str(folder / ADAPTER_FILE), metadata={"format": "pt"})
        use = _ADAPTER_USE
    (folder / "README.md").write_text(_card(card, use), encoding="utf-8")


def exported_weights(files: Mapping[str, str], arm: str) -> dict[str, str]:
    """Those of an artifact's ``files`` (digests by name) that make the student of ``arm`` draw as it does."""
    return {name: digest for name, digest in files.items() if name.startswith(f"{arm}/unet/") or name == f"{arm}/{ADAPTER_FILE}"}


def _write_scheduler(teacher: Path, folder: Path, grid: SamplingGrid) -> None:
    declared = read_json(teacher / "scheduler" / "scheduler_config.json")
    scheduler = LCMScheduler.from_config(
        {name: value for name, value in declared.items() if not name.startswith("_")},
        original_inference_steps=grid.num_ddim_steps,
        timestep_scaling=grid.timestep_scaling,
        clip_sample=False,
    )
    scheduler.save_pretrained(str(folder / "scheduler"))


def _write_pipeline(student: Student, teacher: Path, folder: Path) -> None:
    parts = ("vae", *(part for pair in text_parts(teacher) for part in pair))
    for part in parts:
        shutil.copytree(teacher / part, folder / part, dirs_exist_ok=True)
    student.unet.save_pretrained(str(folder / "unet"), safe_serialization=True)
    index = read_json(teacher / "model_index.json")
    entries = {part: index[part] for part in parts} | {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "LCMScheduler"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    if is_xl(teacher):
        entries |= {name: index[name] for name in ("force_zeros_for_empty_prompt", "add_watermarker") if name in index}
    else:
        entries |= {"safety_checker": [None, None], "requires_safety_checker": False}
    head = {"_class_name": _XL_PIPELINE if is_xl(teacher) else _SD_PIPELINE, "_diffusers_version": index["_diffusers_version"]}
    (folder / "model_index.json").write_text(json.dumps(head | entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_PIPELINE_USE = """```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this folder")
image = pipeline("a prompt", num_inference_steps=2, guidance_scale={scale:g}).images[0]
```

`guidance_scale` is omega + 1: keep it between {low_scale:g} and {high_scale:g}, the range seen in training."""

_ADAPTER_USE = """```python
from diffusers import DiffusionPipeline, LCMScheduler

pipeline = DiffusionPipeline.from_pretrained("{teacher}")
pipeline.scheduler = LCMScheduler.from_pretrained("this folder", subfolder="scheduler")
pipeline.load_lora_weights("this folder")  # and pipeline.fuse_lora() to merge it
image = pipeline("a prompt", num_inference_steps=4, guidance_scale=1).images[0]
```

The adapter was trained under guidance and is told none: `guidance_scale=1` draws what it learnt; more guides it once again."""


def _card(facts: CardFacts, use: str) -> str:
    low, high = facts.omega
    example = use.format(scale=facts.guidance_scale, low_scale=low + 1, high_scale=high + 1, teacher=facts.teacher)
    return f"""---
library_name: diffusers
pipeline_tag: text-to-image
tags: [lcm, rg-lcd, diffusers]
---

# {facts.title}

A latent consistency model that draws in 1 to 8 steps, distilled from `{facts.teacher}`
by reward guided latent consistency distillation (Li, Feng, Chen and Wang, TMLR 2024, arXiv 2403.11027).

| | |
|---|---|
| arm | `{facts.arm}` |
| reward | {facts.reward} |
| training steps | {facts.num_steps:,} |
| images seen | {facts.images_seen:,} |
| guidance weights seen (omega) | {low:g} to {high:g} |

{example} `rglcd.json` beside this
file holds the configuration and the digests of everything that the student was made from. Weights inherit the teacher's licence.
"""
