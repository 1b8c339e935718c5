"""A preset's networks on ``meta``: their published shapes, without weights.

Shapes come from the folder of a local source, from the artifact of ``prepare``, or from ``shapes/``, which holds what of the published
``config.json`` files shapes the networks of the presets, each with where it is from.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from rglcd.config import Config, ModelSource
from rglcd.core.condition import Condition
from rglcd.core.prediction import PredictionType
from rglcd.core.schedule import NoiseSchedule
from rglcd.errors import InputError
from rglcd.models.codec import Codec, vae_class
from rglcd.models.dropout import drop_in
from rglcd.models.families import family_named, family_of
from rglcd.models.families.protocol import Family
from rglcd.models.latent_reward import LatentRewardModel, LatentRewardShape
from rglcd.models.loading import read_json
from rglcd.models.recomputation import recompute_activations
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import text_parts
from rglcd.rewards.clip import drop_text_tower
from rglcd.stages.assembly import make_student
from rglcd.stages.pretrain import tower_shape
from rglcd.training.choices import dtype_of

META = torch.device("meta")
Captions = Literal["encoded", "cached"]
"""Whether a stage encodes captions for a reward model, or reads their features from the cache and drops its text tower."""

_TEXT_WIDTH = 768
"""Of a scorer's text features where its shapes are not known: CLIP ViT-L/14's."""

_NETWORK_OF_KIND = {"hpsv2": "CLIP-ViT-H-14", "clipscore": "CLIP-ViT-H-14", "pickscore": "CLIP-ViT-H-14"}


def num_bytes(*modules: nn.Module) -> int:
    """Of parameters and buffers."""
    return sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))


class UnknownShapesError(InputError):
    """A model is neither one of the published ones whose shapes are shipped, nor in a folder of this machine."""


@dataclass(frozen=True)
class Networks:
    """Builds what a configuration names; ``pretrained`` is the artifact of ``prepare``, where there is one."""

    config: Config
    pretrained: Path | None = None

    def teacher(self, dtype: torch.dtype) -> Teacher:
        """The frozen network that denoises."""
        family, is_flow = self.family, self.family.is_flow
        with META:
            network = family.network.from_config(self._teacher_shapes()[family.folder])
            schedule = NoiseSchedule(torch.empty(1000), torch.empty(1000), shift=1.0 if is_flow else None)
        kind = PredictionType.FLOW if is_flow else PredictionType.EPSILON
        return Teacher(nn.Module.to(network, dtype), schedule, kind, family=family)

    def student(self, teacher: Teacher) -> Student:
        """As stage distill makes it, on ``teacher`` in the run's precision."""
        distillation = self.config.distillation
        student = make_student(distillation, teacher=teacher, start=self.teacher(torch.float32))
        # Refused where there is nowhere to put it. What it takes is not counted: it drops nothing without seeds.
        drop_in([student.unet], rate=distillation.dropout)
        if distillation.activations == "recomputed":
            recompute_activations(student.unet, None)
        return student

    def codec(self, dtype: torch.dtype, *, recomputes: bool = False) -> Codec:
        """The VAE."""
        with META:
            vae = self._vae_class().from_config(self._teacher_shapes()["vae"])
        codec = Codec(nn.Module.to(vae, dtype))
        if recomputes:
            codec.recompute_activations()
        return codec

    def text_encoders(self, dtype: torch.dtype) -> list[nn.Module]:
        """One, or SDXL's two, or as many as the family has."""
        kinds, shapes = self.family.text_kinds, self._teacher_shapes()["text_encoders"]
        with META:
            models = [kind(kind.config_class(**sizes)) for kind, sizes in zip(kinds, shapes, strict=False)]
        return [nn.Module.to(model, dtype) for model in models]

    def scorer(self, name: str, dtype: torch.dtype, *, captions: Captions = "encoded") -> CLIPModel | None:
        """A reward model's network; None for a kind whose shapes are not known here. Of ``cached`` captions nothing is encoded."""
        declared = self._scorer_shapes(name)
        if declared is None:
            return None
        with META:
            model = CLIPModel(CLIPConfig(**{key: declared[key] for key in ("projection_dim", "text_config", "vision_config")}))
        if captions == "cached":
            drop_text_tower(model)
        return nn.Module.to(model, dtype).eval().requires_grad_(False)

    def proxy(self) -> LatentRewardModel:
        """The latent reward model that stage pretrain makes."""
        expert = self.scorer(self.config.pretraining.scorer, torch.float32)
        width = _TEXT_WIDTH if expert is None else int(expert.config.projection_dim)
        tower = tower_shape(self.config.pretraining.tower)
        with META:
            return LatentRewardModel(LatentRewardShape(latent=self.latent_shape, text_dim=width, tower=tower))

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self.codec(torch.float32).latent_shape(self.config.model.resolution)

    def condition(self, teacher: Teacher | Student, rows: int, dtype: torch.dtype) -> Condition:
        """Captions of ``rows`` samples, and SDXL's sizes."""
        return teacher.family.blank(teacher.unet.config, rows, dtype=dtype, device=META)

    def latents(self, rows: int) -> Tensor:
        """z (B, C, h, w) in float32, as the cache gives them."""
        return torch.empty(rows, *self.latent_shape, device=META)

    @cached_property
    def family(self) -> Family:
        """Of the teacher: by its folder, or by the shapes that are shipped of it."""
        source = self.config.model.teacher
        folder = self._folder(source, "teacher")
        return family_named(_published(source).get("pipeline", "")) if folder is None else family_of(folder)

    @property
    def precision(self) -> torch.dtype:
        """Of the frozen networks of training, and of the student's autocast."""
        return dtype_of(self.config.distillation.precision)

    # --- shapes ----------------------------------------------------------------------------------

    def _teacher_shapes(self) -> dict[str, Any]:
        source = self.config.model.teacher
        folder = self._folder(source, "teacher")
        if folder is None:
            return _published(source)
        encoders = [folder / part.encoder for part in text_parts(folder)]
        parts = {part: _sizes(folder / part) for part in (self.family.folder, "vae")}
        return {**parts, "text_encoders": [_sizes(encoder) for encoder in encoders]}

    def _vae_class(self) -> Any:
        source = self.config.model.teacher
        folder = self._folder(source, "teacher")
        if folder is not None:
            return vae_class(folder)
        return AutoencoderDC if _published(source).get("vae_class") == AutoencoderDC.__name__ else AutoencoderKL

    def _scorer_shapes(self, name: str) -> dict[str, Any] | None:
        scorer = self.config.preparation.scorers[name]
        if scorer.kind == "clip" and (folder := self._folder(scorer.source, f"scorers/{name}")) is not None:
            return _sizes(folder)
        network = _NETWORK_OF_KIND.get(scorer.kind)
        return None if network is None else _shipped(network)

    def _folder(self, source: ModelSource, place: str) -> Path | None:
        if self.pretrained is not None and (self.pretrained / place).is_dir():
            return self.pretrained / place
        if not source.is_local or source.uri.endswith(".safetensors"):  # one file is known when `prepare` has converted it
            return None
        if not Path(source.uri).is_dir():  # it may lie on a claim, which pods see
            raise UnknownShapesError(
                f"the shapes of {source.uri} are not known here: it is no folder of this machine (looked in {Path.cwd()}); where "
                "`rglcd run prepare` has made it into pretrained, name that with --pretrained DIR"
            )
        return Path(source.uri)


def _published(source: ModelSource) -> dict[str, Any]:
    shapes = _shipped(source.uri.rpartition("/")[2])
    if shapes is None:
        raise UnknownShapesError(
            f"the shapes of {source.uri} are not known here: run `rglcd run prepare` once and name what it made with --pretrained DIR"
        )
    return shapes


def _shipped(name: str) -> dict[str, Any] | None:
    entry = resources.files("rglcd.planning").joinpath("shapes", f"{name}.json")
    if not entry.is_file():
        return None
    shapes: dict[str, Any] = json.loads(entry.read_text(encoding="utf-8"))
    return shapes


def _sizes(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in read_json(folder / "config.json").items() if not name.startswith("_")}
