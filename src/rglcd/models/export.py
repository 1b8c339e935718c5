"""Exports a student for diffusers: a pipeline folder, or a LoRA adapter that ``load_lora_weights`` puts onto the teacher's own
pipeline and ``fuse_lora`` merges. Neither needs this package."""

import inspect
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from diffusers import DDPMScheduler, FlowMatchLCMScheduler, LCMScheduler, SCMScheduler
from safetensors.torch import save_file

from rglcd.core.sampling import lcm_timesteps
from rglcd.models.families import FAMILIES, STABLE_DIFFUSION
from rglcd.models.families.stable_diffusion import is_xl
from rglcd.models.kohya import KOHYA_FILE, kohya_tensors
from rglcd.models.loading import read_json
from rglcd.models.schedules import EXPORTED_SHIFT
from rglcd.models.student import ADAPTER_FILE, Student
from rglcd.models.text import text_parts
from rglcd.rendering import markdown_environment

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_FRONT_MATTER = r"^{}: *[\"']?([A-Za-z0-9][\w.+:/%-]*)[\"']? *$"
_SD_PIPELINE = "LatentConsistencyModelPipeline"
_XL_PIPELINE = "StableDiffusionXLPipeline"
_LCM_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""The values of ``beta_schedule`` that diffusers' LCMScheduler knows; its DDPMScheduler knows more."""


@dataclass(frozen=True)
class License:
    """A teacher's, as the front matter of its own card says it: an identifier, or ``other`` with a name and a link."""

    identifier: str
    name: str | None = None
    link: str | None = None


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
    license: License | None = None
    """The teacher's, where its own card says it."""

    @property
    def base_model(self) -> str | None:
        """The teacher's id on the model hub, if it has one."""
        return self.teacher if _HUB_ID.fullmatch(self.teacher) else None


@dataclass(frozen=True)
class SamplingGrid:
    """From which grid diffusers' LCM scheduler picks its few timesteps, and the slope of the boundary scalings at its sigma_data, 0.5."""

    num_ddim_steps: int
    timestep_scaling: float
    resolution: int | None = None
    """Pixels that the student draws; None where a card need not say it."""

    def sigmas(self, num_steps: int, *, num_timesteps: int) -> list[float]:
        """A flow's noise levels of a draw before they are shifted, which diffusers' pipelines take as ``sigmas``."""
        timesteps = lcm_timesteps(num_steps, original_steps=self.num_ddim_steps, num_timesteps=num_timesteps)
        return [(t + 1) / num_timesteps for t in timesteps]


@dataclass(frozen=True)
class StockDrawing:
    """How the family's own pipeline draws with a student, in arguments as Python writes them: ``steps`` by their number, and the others."""

    scheduler: str
    steps: Mapping[int, str]
    loading: str
    calling: str
    is_seeded: bool
    """Whether the pipeline hands its generator to the scheduler."""


def export_student(student: Student, *, teacher: Path, folder: Path, grid: SamplingGrid, card: CardFacts) -> None:
    """Write ``student``, distilled from the pipeline folder ``teacher``, with an LCM scheduler and a model card.

    A whole student brings the teacher's VAE, text encoders and tokenizers along; an adapter is one file, in two spellings.
    """
    card = replace(card, license=_license(teacher, card.base_model))
    folder.mkdir(parents=True, exist_ok=True)
    if student.family.is_flow:
        _write_flow_scheduler(student, folder)
    else:
        _write_scheduler(teacher, folder, grid)
    if student.adapter is None:
        _write_pipeline(student, teacher, folder)
    else:
        # One key of metadata: safetensors writes several in an order that changes from run to run.
        tensors = student.adapter_tensors()
        save_file(tensors, str(folder / ADAPTER_FILE), metadata={"format": "pt"})
        if student.family is STABLE_DIFFUSION:
            save_file(kohya_tensors(tensors), str(folder / KOHYA_FILE), metadata={"format": "pt"})
    stock = None if student.family is STABLE_DIFFUSION else _stock_drawing(student, teacher, grid, card)
    text = model_card(card, kind="pipeline" if student.adapter is None else "adapter", stock=stock)
    (folder / "README.md").write_text(text, encoding="utf-8")


def exported_weights(files: Mapping[str, str], arm: str) -> dict[str, str]:
    """The weights of the student of ``arm`` among an artifact's ``files`` (digests by name)."""
    networks = tuple(f"{arm}/{family.folder}/" for family in FAMILIES)
    return {name: digest for name, digest in files.items() if name.startswith(networks) or name == f"{arm}/{ADAPTER_FILE}"}


def _license(teacher: Path, base_model: str | None) -> License | None:
    """What the front matter of the teacher's model card names (https://huggingface.co/docs/hub/model-cards), if it has one."""
    try:
        text = (teacher / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    found = [re.search(_FRONT_MATTER.format(key), head, re.MULTILINE) for key in ("license", "license_name", "license_link")]
    identifier, name, link = (one and one[1] for one in found)
    if link and "://" not in link:  # of a file beside the teacher's card, which is not beside the student's
        link = base_model and f"https://huggingface.co/{base_model}/blob/main/{link}"
    return License(identifier, name, link) if identifier else None


def _write_scheduler(teacher: Path, folder: Path, grid: SamplingGrid) -> None:
    # The keys that LCMScheduler has: of others diffusers warns each user at each load.
    known = inspect.signature(LCMScheduler.__init__).parameters
    declared = read_json(teacher / "scheduler" / "scheduler_config.json")
    scheduler = LCMScheduler.from_config(
        {name: value for name, value in declared.items() if name in known} | _betas(declared),
        original_inference_steps=grid.num_ddim_steps,
        timestep_scaling=grid.timestep_scaling,
        clip_sample=False,
        thresholding=False,  # no student is trained with either
    )
    scheduler.save_pretrained(str(folder / "scheduler"))


def _betas(declared: Mapping[str, Any]) -> dict[str, list[float]]:
    """The betas of a schedule whose name LCMScheduler does not know, one by one."""
    if declared.get("trained_betas") is not None or declared["beta_schedule"] in _LCM_BETAS:
        return {}
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    return {"trained_betas": DDPMScheduler(**{key: declared[key] for key in keys if key in declared}).betas.tolist()}


def _write_flow_scheduler(student: Student, folder: Path) -> None:
    """The shift is a fixed one, that of the student's own schedule: a dynamic one would be another at another size."""
    schedule, where = student.schedule, folder / "scheduler"
    if _scheduler_name(student) == SCMScheduler.__name__:
        SCMScheduler(num_train_timesteps=schedule.num_timesteps).save_pretrained(str(where))
        declared = {**read_json(where / "scheduler_config.json"), EXPORTED_SHIFT: schedule.shift}
        (where / "scheduler_config.json").write_text(json.dumps(declared, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    else:
        FlowMatchLCMScheduler(num_train_timesteps=schedule.num_timesteps, shift=schedule.shift).save_pretrained(str(where))


def _write_pipeline(student: Student, teacher: Path, folder: Path) -> None:
    parts = ("vae", *(name for part in text_parts(teacher) for name in (part.encoder, part.tokenizer)))
    for part in parts:
        shutil.copytree(teacher / part, folder / part, dirs_exist_ok=True)
    student.unet.save_pretrained(str(folder / student.family.folder), safe_serialization=True)
    index = read_json(teacher / "model_index.json")
    written = _index(index, parts, teacher) if student.family is STABLE_DIFFUSION else _index_like(index, parts, student)
    (folder / "model_index.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _scheduler_name(student: Student) -> str:
    return student.family.exported(student.unet.config)[1]


def _index(index: Mapping[str, Any], parts: Sequence[str], teacher: Path) -> dict[str, Any]:
    """The index of a student of Stable Diffusion: diffusers has a pipeline of its own for these, but for XL's."""
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
    return head | entries


def _index_like(index: Mapping[str, Any], parts: Sequence[str], student: Student) -> dict[str, Any]:
    """The teacher's index for a student of another family. A part that the student has not is null, whatever the teacher's has there."""
    pipeline, scheduler = student.family.exported(student.unet.config)
    kept = {*parts, student.family.folder}
    entries = {name: value if name in kept or not isinstance(value, list) else [None, None] for name, value in index.items()}
    return entries | {"_class_name": pipeline, "scheduler": ["diffusers", scheduler]}


def _stock_drawing(student: Student, teacher: Path, grid: SamplingGrid, card: CardFacts) -> StockDrawing:
    # Not all pipelines take a part for optional that a folder may lack: SD3's third text encoder.
    there = {name for part in text_parts(teacher) for name in (part.encoder, part.tokenizer)}
    absent = [name for name in student.family.required_parts if name not in there]
    side = [f"height={grid.resolution}", f"width={grid.resolution}"] if grid.resolution is not None else []
    # In the scale of the pipeline's own argument.
    guidance = 1.0 if not student.takes_omega else sum(card.omega) / 2 + (0 if student.family.guides_itself(student.unet.config) else 1)
    return StockDrawing(
        _scheduler_name(student),
        {count: _steps(student, grid, count) for count in (1, 2, 4, 8) if count <= grid.num_ddim_steps},
        loading="".join(f", {name}=None" for name in absent),
        calling=", ".join([f"guidance_scale={guidance:g}", *side, *filter(None, [student.family.calling])]),
        is_seeded=student.family.seeds_scheduler,
    )


def _steps(student: Student, grid: SamplingGrid, count: int) -> str:
    """The arguments for ``count`` steps at the student's own noise levels, as near as the pipeline takes them."""
    schedule = student.schedule
    match _scheduler_name(student):
        case "FlowMatchLCMScheduler":
            return f"sigmas={grid.sigmas(count, num_timesteps=schedule.num_timesteps)}"
        case "SCMScheduler":
            # It takes an angle for the second of two steps alone; its ``timesteps`` fail in the pipeline, which keeps their number back.
            second = None
            if count == 2:
                t = lcm_timesteps(2, original_steps=grid.num_ddim_steps, num_timesteps=schedule.num_timesteps)[1]
                second = round(math.atan2(float(schedule.sigmas[t]), float(schedule.alphas[t])), 6)
            return f"num_inference_steps={count}, intermediate_timesteps={second}"
        case _:
            return f"num_inference_steps={count}"


def model_card(card: CardFacts, *, kind: Literal["pipeline", "adapter"], stock: StockDrawing | None = None) -> str:
    """The README of an export: what the student is, and how diffusers samples it."""
    template = "card.md" if stock is None else "stock_card.md"
    return markdown_environment("rglcd.models").get_template(template).render(card=card, kind=kind, stock=stock)
