"""Exports a student for diffusers: a pipeline folder, or a LoRA adapter that ``load_lora_weights`` puts onto the teacher's own
pipeline and ``fuse_lora`` merges. Neither needs this package."""

import inspect
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from diffusers import LCMScheduler
from safetensors.torch import save_file

from rglcd.models.kohya import KOHYA_FILE, kohya_tensors
from rglcd.models.loading import read_json
from rglcd.models.student import ADAPTER_FILE, Student
from rglcd.models.text import is_xl, text_parts
from rglcd.rendering import markdown_environment

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_LICENSE = re.compile(r"^license: *[\"']?([A-Za-z0-9][\w.+-]*)[\"']? *$", re.MULTILINE)
_SD_PIPELINE = "LatentConsistencyModelPipeline"
_XL_PIPELINE = "StableDiffusionXLPipeline"


@dataclass(frozen=True)
class CardFacts:
    """What the model card says; every figure is this run's. ``reward`` is a line of Markdown, all else plain text."""

    title: str
    teacher: str
    arm: str
    reward: str
    num_steps: int
    images_seen: int
    omega: tuple[float, float]
    guidance_scale: float
    license: str | None = None
    """The teacher's, by the name that its own card gives it."""

    @property
    def base_model(self) -> str | None:
        """The teacher's id on the model hub, if it has one."""
        return self.teacher if _HUB_ID.fullmatch(self.teacher) else None


@dataclass(frozen=True)
class SamplingGrid:
    """From which grid diffusers' LCM scheduler picks its few timesteps, and the slope of the boundary scalings."""

    num_ddim_steps: int
    timestep_scaling: float


def export_student(student: Student, *, teacher: Path, folder: Path, grid: SamplingGrid, card: CardFacts) -> None:
    """Write ``student``, distilled from the pipeline folder ``teacher``, with an LCM scheduler and a model card.

    A whole student brings the teacher's VAE, text encoders and tokenizers along; an adapter is one file, in two spellings.
    """
    card = replace(card, license=_license(teacher))
    folder.mkdir(parents=True, exist_ok=True)
    _write_scheduler(teacher, folder, grid)
    if student.adapter is None:
        _write_pipeline(student, teacher, folder)
        text = model_card(card, kind="pipeline")
    else:
        # One key of metadata: safetensors writes several in an order that changes from run to run.
        tensors = student.adapter_tensors()
        save_file(tensors, str(folder / ADAPTER_FILE), metadata={"format": "pt"})
        save_file(kohya_tensors(tensors), str(folder / KOHYA_FILE), metadata={"format": "pt"})
        text = model_card(card, kind="adapter")
    (folder / "README.md").write_text(text, encoding="utf-8")


def exported_weights(files: Mapping[str, str], arm: str) -> dict[str, str]:
    """The weights of the student of ``arm`` among an artifact's ``files`` (digests by name)."""
    return {name: digest for name, digest in files.items() if name.startswith(f"{arm}/unet/") or name == f"{arm}/{ADAPTER_FILE}"}


def _license(teacher: Path) -> str | None:
    """What the front matter of the teacher's model card names (https://huggingface.co/docs/hub/model-cards), if it has one."""
    try:
        text = (teacher / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    found = _LICENSE.search(head)
    return found[1] if found else None


def _write_scheduler(teacher: Path, folder: Path, grid: SamplingGrid) -> None:
    # The keys that LCMScheduler has: of others diffusers warns each user at each load.
    known = inspect.signature(LCMScheduler.__init__).parameters
    declared = read_json(teacher / "scheduler" / "scheduler_config.json")
    scheduler = LCMScheduler.from_config(
        {name: value for name, value in declared.items() if name in known},
        original_inference_steps=grid.num_ddim_steps,
        timestep_scaling=grid.timestep_scaling,
        clip_sample=False,
        thresholding=False,  # no student is trained with either
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
    version = {key: index[key] for key in ("_diffusers_version",) if key in index}  # indexes made by hand have none
    head = {"_class_name": _XL_PIPELINE if is_xl(teacher) else _SD_PIPELINE, **version}
    (folder / "model_index.json").write_text(json.dumps(head | entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def model_card(card: CardFacts, *, kind: Literal["pipeline", "adapter"]) -> str:
    """The README of an export: what the student is, and how diffusers samples it."""
    return markdown_environment("rglcd.models").get_template("card.md").render(card=card, kind=kind)
