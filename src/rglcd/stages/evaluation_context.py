"""What stage ``evaluate`` works on: the models and their samplers, prompts and reference images, and the key of each measurement."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from rglcd.config import Distillation, Evaluation, LoraStudent, Model, validate_section
from rglcd.errors import InputError
from rglcd.evaluation.drawing import Canvas, LatentsFn, PictureBatch
from rglcd.evaluation.generation import decoded
from rglcd.evaluation.kernel_distance import KERNEL_IMAGES
from rglcd.evaluation.measurement import MEASURED_AS, REAL, TEACHER, Sampler
from rglcd.evaluation.observation import Batches, DrawFn, ScoringPanel
from rglcd.evaluation.prompt_sets import PromptSet
from rglcd.models.chunks import Chunks
from rglcd.models.codec import Codec
from rglcd.models.export import exported_weights
from rglcd.models.features import described, load_features
from rglcd.models.loading import read_json
from rglcd.models.precision import drawing_dtype
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.sharding.accounting import RowRejectedError
from rglcd.sharding.decoding import decode, square, to_array
from rglcd.sharding.source import parse_row, read_image, read_lines
from rglcd.stages.assembly import adapter_shape, boundary_of
from rglcd.stages.pretrained import Pretrained
from rglcd.stages.prompts import prompts_to_draw
from rglcd.stages.student_export import RECORD
from rglcd.store.manifest import digest_of, read_manifest, read_verified

BATCHES = ".batches"
"""Ending of the names of folders of batches."""

_SHEET_IMAGES = 64
"""Images kept of each sampler, or the grid's if these are more; the scores cover all."""


@dataclass(frozen=True)
class Reference:
    """The real images that distances compare with: their urls below ``folder``, sha256 and captions. Files are read as they are needed."""

    folder: Path
    urls: tuple[str, ...]
    sha256: tuple[str, ...]
    captions: tuple[str, ...]

    @property
    def digest(self) -> str:
        return digest_of([self.sha256, self.captions])


NO_REFERENCE: Final = Reference(Path(), (), (), ())
"""Of what is drawn and compared with nothing."""


@dataclass(frozen=True)
class EvaluationContext:
    """Models and data to evaluate. Networks are loaded when first used: a report that is reused as a whole needs none."""

    model: Model
    evaluation: Evaluation
    pretrained: Pretrained
    student: Path
    arms: list[str]
    prompt_set: PromptSet
    reference: Reference
    device: torch.device

    @cached_property
    def prompts(self) -> list[str]:
        return self.prompt_set.texts

    @property
    def labels(self) -> list[Mapping[str, str]]:
        """The groups of each image's prompt; empty where no prompt has any."""
        prompts = self.prompt_set.prompts
        if not self.prompt_set.groupings:
            return []
        return [prompts[index % len(prompts)].groups for index in range(self.evaluation.num_images)]

    @property
    def captions(self) -> list[str]:
        """The caption of each image: the prompts in turn."""
        return [self.prompts[index % len(self.prompts)] for index in range(self.evaluation.num_images)]

    @property
    def baselines(self) -> tuple[Sampler, Sampler]:
        """The real images and the teacher: every other sampler is compared with them."""
        return Sampler(REAL, 0), Sampler(TEACHER, self.evaluation.all_teacher_steps[0])

    @property
    def samplers(self) -> list[Sampler]:
        """In the order of measuring: baselines first."""
        teachers = (Sampler(TEACHER, steps) for steps in self.evaluation.all_teacher_steps[1:])
        return [*self.baselines, *teachers, *(Sampler(arm, steps) for arm in self.arms for steps in sorted(self.evaluation.num_steps))]

    @property
    def num_sheet_images(self) -> int:
        return max(_SHEET_IMAGES, self.evaluation.grid_prompts)

    @property
    def distance(self) -> str:
        """What distances are to, and by which features."""
        features = "; ".join(described(folder) for _, folder in self.pretrained.feature_folders())
        return f"{len(self.reference.urls)} real images (digest {self.reference.digest[:12]}), by {features}"

    @cached_property
    def feature_kinds(self) -> list[str]:
        """The kinds of feature networks, in the order of the configuration."""
        return [kind for kind, _ in self.pretrained.feature_folders()]

    @cached_property
    def basis(self) -> dict[str, str]:
        """What distances are measured with: numbers that differ in any of it are not compared."""
        return {
            "images": str(self.evaluation.num_images),
            "real images": str(len(self.reference.urls)),
            "reference": self.reference.digest[:16],
            "pictures": f"the middle square, resized to {self.model.resolution} pixels (bicubic, antialiased)",
            "kernel distances": f"of at most the first {KERNEL_IMAGES} images of each",
        } | {f"features ({kind})": described(folder) for kind, folder in self.pretrained.feature_folders()}

    @property
    def drawing_dtype(self) -> torch.dtype:
        """Of the weights of the networks that draw; what rates images stays in float32."""
        return drawing_dtype(self.evaluation.precision)

    @cached_property
    def _canvas(self) -> Canvas:
        folder, dtype = self.pretrained.teacher, self.drawing_dtype
        codec = Codec.load(folder, dtype=dtype, device=self.device)
        return Canvas(codec, TextEncoder.load(folder, dtype=dtype, device=self.device), self.model.resolution, self.device)

    @cached_property
    def panel(self) -> ScoringPanel:
        scorers = {name: self.pretrained.scorer(name, dtype=torch.float32, device=self.device) for name in self.evaluation.scorers}
        features = {kind: load_features(kind, folder, device=self.device) for kind, folder in self.pretrained.feature_folders()}
        panel = ScoringPanel.of(
            scorers,
            [*self.captions, *self.reference.captions],
            features=features,
            device=self.device,
            at_once=self._batch_at_once(),
        )
        if not any(panel.num_scored(name, self.captions) for name in scorers):
            raise InputError(
                f"no scorer of evaluation.scorers ({', '.join(scorers)}) has a score for any of the prompts, which quote no text; "
                "add another scorer, or prompts that quote what is to be written in the picture"
            )
        return panel

    @cached_property
    def _drawn_at_once(self) -> Chunks:
        return self._batch_at_once()

    @cached_property
    def _decoded_at_once(self) -> Chunks:
        return Chunks("evaluation.decode_chunk", self.evaluation.decode_chunk or self.evaluation.batch_size)

    def _batch_at_once(self) -> Chunks:
        return Chunks("evaluation.batch_size", self.evaluation.batch_size)

    def batches(self, sampler: Sampler, drawings: Path) -> Batches:
        """Where the batches of ``sampler`` lie until all are there: in a hidden folder of ``drawings``, named after its key."""
        captions = self.reference.captions if sampler.who == REAL else self.captions
        folder = drawings / f".{sampler.name}-{self.key(sampler)[:12]}{BATCHES}"
        return Batches(folder, captions, self.evaluation.batch_size, self.num_sheet_images)

    def key(self, sampler: Sampler) -> str:
        """The key of a sampler's measurement: a digest of the weights, prompts, settings and scorers that it depends on."""
        left_out = {"num_steps", "teacher_steps", "grid_prompts", "prompts", "reference"}
        weights = ""
        if sampler.who in self.arms:
            files = read_manifest(self.student, made_by="distill").files
            weights = digest_of(exported_weights({name: entry.sha256 for name, entry in files.items()}, sampler.who))
        # These names are part of the digest: renaming one measures everything again.
        return digest_of(
            {
                "version": MEASURED_AS,
                "subject": sampler.name,
                "compared_with": [baseline.name for baseline in self.baselines if sampler not in self.baselines],
                "weights": weights,
                "pretrained": read_manifest(self.pretrained.folder, made_by="prepare").digest,
                "model": self.model.model_dump(mode="json"),
                "evaluation": self.evaluation.model_dump(mode="json", exclude=left_out),
                "prompts": self.prompts,
                "reference": self.reference.digest,
                "sheet": self.num_sheet_images,
            }
        )

    def draw_fn(self, sampler: Sampler) -> DrawFn:
        """The function that draws ``sampler``'s images; its network is loaded now."""
        if sampler.who == REAL:
            return self._real
        latents_of = self._latents_fn(sampler.who)

        def latents(indices: Sequence[int]) -> Tensor:
            prompts = [self.prompts[index % len(self.prompts)] for index in indices]
            return latents_of(PictureBatch(prompts, indices, self.evaluation.seed, sampler.num_steps, self.evaluation.guidance_scale))

        return lambda indices: decoded(self._canvas.codec, self._drawn_at_once.joined(latents, indices), self._decoded_at_once)

    def _latents_fn(self, who: str) -> LatentsFn:
        if who == TEACHER:
            return self._canvas.latents_by_teacher(self._teacher)
        student = self._student(who)
        scalings = boundary_of(self.model, student.schedule)
        return self._canvas.latents_by_student(student, scalings=scalings, original_steps=self.model.num_ddim_steps)

    @property
    def _teacher(self) -> Teacher:
        resolution = self.model.resolution
        return Teacher.load(self.pretrained.teacher, dtype=self.drawing_dtype, device=self.device, resolution=resolution)

    def _student(self, arm: str) -> Student:
        """The student of ``arm``, whole or an adapter, as it was configured when it was distilled."""
        made = validate_section("distillation", read_json(self.student / arm / RECORD)["config"]["distillation"])
        assert isinstance(made, Distillation)
        if not isinstance(made.student, LoraStudent):
            return Student.load(self.student / arm, dtype=self.drawing_dtype, device=self.device)
        return Student.load_adapter(self.student / arm, self._teacher, adapter_shape(made.student))

    def _real(self, indices: Sequence[int]) -> Tensor:
        data = [read_image(self.reference.urls[index], self.reference.folder) for index in indices]
        pictures = [square(decode(image), self.model.resolution) for image in data]
        return torch.from_numpy(np.stack([to_array(picture) for picture in pictures])).to(self.device).float() / 255


def open_context(
    model: Model, evaluation: Evaluation, *, source: Path, pretrained: Path, student: Path, device: torch.device
) -> EvaluationContext:
    """Check and read what is evaluated. Raises :class:`InputError` for students, prompts or reference images that cannot be used."""
    arms = _arms(model, evaluation, student)
    prompts = prompts_to_draw(evaluation, source)
    reference = _read_reference(source / evaluation.reference, limit=evaluation.num_images)
    return EvaluationContext(model, evaluation, Pretrained.open(pretrained), student, arms, prompts, reference, device)


def context_for_drawing(
    model: Model, evaluation: Evaluation, *, pretrained: Path, student: Path, prompts: PromptSet, device: torch.device
) -> EvaluationContext:
    """What draws ``prompts``, and compares with nothing. Raises :class:`InputError` for students that cannot be used."""
    arms = _arms(model, evaluation, student)
    return EvaluationContext(model, evaluation, Pretrained.open(pretrained), student, arms, prompts, NO_REFERENCE, device)


def _arms(model: Model, evaluation: Evaluation, student: Path) -> list[str]:
    """The students in ``student``. Raises :class:`InputError` where there is none, or they cannot draw in so many steps."""
    if max(evaluation.num_steps) > model.num_ddim_steps:
        raise InputError(f"evaluation.num_steps asks for {max(evaluation.num_steps)} steps of a grid of {model.num_ddim_steps}")
    arms = sorted(path.parent.name for path in student.glob(f"[!.]*/{RECORD}"))
    if not arms:
        raise InputError(f"{student} holds no student; make one with: rglcd run distill")
    read_verified(student, made_by="distill")
    return arms


def _read_reference(path: Path, *, limit: int) -> Reference:
    urls, digests, captions = list[str](), list[str](), list[str]()
    for number, line in enumerate(read_lines(path), start=1):
        if len(urls) == limit:
            break
        try:
            row = parse_row(line)
            data = read_image(row.url, path.parent)
            decode(data)
        except RowRejectedError as error:
            raise InputError(f"{path} line {number}: {error.reason}; every reference image must be readable") from None
        urls.append(row.url)
        digests.append(hashlib.sha256(data).hexdigest())
        captions.append(row.caption)
    if len(urls) < 2:
        raise InputError(f"{path} lists {len(urls)} images; a Fréchet distance needs at least two")
    return Reference(path.parent, tuple(urls), tuple(digests), tuple(captions))
