"""The student as the field expects it: a diffusers pipeline folder that ``from_pretrained`` opens with no code of ours."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from diffusers import LCMScheduler, UNet2DConditionModel

from rglcd.models.loading import read_json

_NEEDED = ("vae", "text_encoder", "tokenizer")


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


def export_pipeline(
    unet: UNet2DConditionModel, *, teacher: Path, folder: Path, num_ddim_steps: int, timestep_scaling: float, card: CardFacts
) -> None:
    """Write student ``unet`` with the teacher's VAE, text encoder and tokenizer, an LCM scheduler and a model card.

    ``num_ddim_steps`` becomes the scheduler's ``original_inference_steps``, from which it picks its few timesteps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in _NEEDED:
        shutil.copytree(teacher / part, folder / part, dirs_exist_ok=True)
    unet.save_pretrained(str(folder / "unet"), safe_serialization=True)
    declared = read_json(teacher / "scheduler" / "scheduler_config.json")
    scheduler = LCMScheduler.from_config(
        {name: value for name, value in declared.items() if not name.startswith("_")},
        original_inference_steps=num_ddim_steps,
        timestep_scaling=timestep_scaling,
        clip_sample=False,
    )
    scheduler.save_pretrained(str(folder / "scheduler"))
    index = read_json(teacher / "model_index.json")
    parts = {part: index[part] for part in _NEEDED} | {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "LCMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }
    head = {"_class_name": "LatentConsistencyModelPipeline", "_diffusers_version": index["_diffusers_version"]}
    (folder / "model_index.json").write_text(json.dumps(head | parts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(card), encoding="utf-8")


def _card(facts: CardFacts) -> str:
    low, high = facts.omega
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

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this folder")
image = pipeline("a prompt", num_inference_steps=2, guidance_scale={facts.guidance_scale:g}).images[0]
```

`guidance_scale` is omega + 1: keep it between {low + 1:g} and {high + 1:g}, the range seen in training. `rglcd.json` beside this
file holds the configuration and the digests of everything that the student was made from. Weights inherit the teacher's licence.
"""
