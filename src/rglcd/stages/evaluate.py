"""Stage ``evaluate``: teacher and students draw the same prompts from the same noise; scorers say what they think; a page tells it."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rglcd.config import Distillation, Evaluation, FullStudent, Model, validate_section
from rglcd.core.condition import Condition
from rglcd.core.consistency import BoundaryScalings
from rglcd.errors import InputError
from rglcd.evaluation.features import load_features
from rglcd.evaluation.generation import draw_student, draw_teacher, seeded_noises
from rglcd.evaluation.measurement import (
    MEASURED_AS,
    REAL,
    TEACHER,
    DrawFn,
    Measurement,
    ScoringPanel,
    Subject,
    load,
    load_moments,
    measured,
    observe,
    save,
    take_over,
)
from rglcd.evaluation.page import Pictures, Provenance, Records, page
from rglcd.evaluation.report import PLAIN_ARM, Comparison, compare, grid_png, headlines, markdown, metrics, quality_csv, speeds, verdict
from rglcd.models.codec import Codec
from rglcd.models.export import exported_weights
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.sharding.accounting import RowRejectedError
from rglcd.sharding.decoding import decode, square, to_array
from rglcd.sharding.source import parse_row, read_image, read_lines
from rglcd.stages.distill import adapter_shape
from rglcd.stages.pretrained import Pretrained
from rglcd.stages.run import TIMINGS, Output
from rglcd.stages.table import STAGES, stage_named
from rglcd.store.manifest import altered_files, digest_of, read_manifest, read_verified, write_json
from rglcd.training.distributed import join_world

RECORD = "rglcd.json"
METRICS, DRAWS = "metrics", "draws"
_SHEET_IMAGES = 64
"""Pictures kept of each subject, or the grid's if these are more; the scores cover all."""


def evaluate(
    model: Model, evaluation: Evaluation, *, source: Path, pretrained: Path, student: Path, reward_model: Path | None, report: Output
) -> Mapping[str, Any]:
    """Measure the real images, the teacher and every arm of ``student`` at every number of steps; write the report.

    Of ``reward_model`` the page shows how it learned.

    Each subject's measurement is a folder of its own in ``draws/``. What a killed run finished is kept, and what the
    report published before has measured is taken over where teacher or arm, prompts and settings are the same.
    Raises :class:`InputError` for prompts, reference images or students that are missing or cannot be used.
    """
    started = time.perf_counter()
    with join_world() as world:
        if world.size > 1:
            raise InputError(f"evaluate draws in one process, not {world.size}: launch it with one")
        exhibition = _open_exhibition(model, evaluation, source=source, pretrained=pretrained, student=student, device=world.device)
        _sweep(report.folder)
        measurements = [_measurement(subject, exhibition, report) for subject in exhibition.subjects]
    comparison = compare(measurements, seed=evaluation.seed, trained_on=_trained_on(student, exhibition.arms))
    _write_numbers(report.folder, comparison)
    pretraining = [] if reward_model is None else _curve(reward_model)
    _write_pages(report.folder, comparison, measurements, exhibition, pretraining, seconds=time.perf_counter() - started)
    return {"verdict": verdict(comparison), "images": comparison.num_images, "arms": exhibition.arms, "subjects": len(measurements)}


# --- what is drawn -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """The real images that the Fréchet distance compares with: bytes, captions, and a digest of both."""

    images: tuple[bytes, ...]
    captions: tuple[str, ...]

    @property
    def digest(self) -> str:
        return digest_of([[hashlib.sha256(data).hexdigest() for data in self.images], self.captions])


@dataclass(frozen=True)
class Exhibition:
    """Everything that takes part. Networks are opened when first needed: a report that is taken over whole needs none."""

    model: Model
    evaluation: Evaluation
    pretrained: Pretrained
    student: Path
    arms: list[str]
    prompts: list[str]
    reference: Reference
    device: torch.device

    @property
    def captions(self) -> list[str]:
        """Of the images drawn: the prompts in turn."""
        return [self.prompts[index % len(self.prompts)] for index in range(self.evaluation.num_images)]

    @property
    def rulers(self) -> tuple[Subject, Subject]:
        """The real images and the teacher's: every other subject is compared with them."""
        return Subject(REAL, 0), Subject(TEACHER, self.evaluation.teacher_steps)

    @property
    def subjects(self) -> list[Subject]:
        """In the order of measuring: the rulers first."""
        return [*self.rulers, *(Subject(arm, steps) for arm in self.arms for steps in sorted(self.evaluation.num_steps))]

    @property
    def num_sheet_images(self) -> int:
        return max(_SHEET_IMAGES, self.evaluation.grid_prompts)

    @cached_property
    def codec(self) -> Codec:
        return Codec.load(self.pretrained.teacher, dtype=torch.float32, device=self.device)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        return TextEncoder.load(self.pretrained.teacher, dtype=torch.float32, device=self.device)

    @cached_property
    def panel(self) -> ScoringPanel:
        scorers = {name: self.pretrained.scorer(name, dtype=torch.float32, device=self.device) for name in self.evaluation.scorers}
        features = load_features(self.pretrained.features_kind(), self.pretrained.folder / "features", device=self.device)
        return ScoringPanel.of(
            scorers,
            [*self.captions, *self.reference.captions],
            features=features,
            device=self.device,
            batch_size=self.evaluation.batch_size,
        )

    def key(self, subject: Subject) -> str:
        """The name of a subject's measurement: whoever draws, what, how, and who looks at it."""
        left_out = {"num_steps", "teacher_steps", "grid_prompts", "prompts", "reference"}
        weights = ""
        if subject.who in self.arms:
            files = read_manifest(self.student, made_by="distill").files
            weights = digest_of(exported_weights({name: entry.sha256 for name, entry in files.items()}, subject.who))
        return digest_of(
            {
                "version": MEASURED_AS,
                "subject": subject.name,
                "compared_with": [ruler.name for ruler in self.rulers if subject not in self.rulers],
                "weights": weights,
                "pretrained": read_manifest(self.pretrained.folder, made_by="prepare").digest,
                "model": self.model.model_dump(mode="json"),
                "evaluation": self.evaluation.model_dump(mode="json", exclude=left_out),
                "prompts": self.prompts,
                "reference": self.reference.digest,
                "sheet": self.num_sheet_images,
            }
        )

    def draw_fn(self, subject: Subject) -> DrawFn:
        """How ``subject`` draws, its network opened."""
        if subject.who == REAL:
            return self._real
        omega = self.evaluation.guidance_scale - 1
        if subject.who == TEACHER:
            teacher = Teacher.load(self.pretrained.teacher, dtype=torch.float32, device=self.device)
            uncond = self.text_encoder.null()
            return lambda indices: draw_teacher(
                teacher,
                self.codec,
                self._cond(indices),
                uncond,
                num_steps=subject.num_steps,
                omega=omega,
                noise=self._noises(indices, 1)[0],
            )
        student = self._student(subject.who)
        return lambda indices: draw_student(
            student,
            self.codec,
            self._cond(indices),
            omega=omega,
            noises=self._noises(indices, subject.num_steps),
            scalings=BoundaryScalings(self.model.sigma_data, self.model.timestep_scaling),
            original_steps=self.model.num_ddim_steps,
        )

    def _student(self, arm: str) -> Student:
        """The student of ``arm``, whole or an adapter, as the stage that made it was told."""
        made = validate_section("distillation", read_manifest(self.student, made_by="distill").sections["distillation"])
        assert isinstance(made, Distillation)
        if isinstance(made.student, FullStudent):
            return Student.load(self.student / arm, dtype=torch.float32, device=self.device)
        teacher = Teacher.load(self.pretrained.teacher, dtype=torch.float32, device=self.device)
        return Student.load_adapter(self.student / arm, teacher, adapter_shape(made.student))

    def _real(self, indices: Sequence[int]) -> Tensor:
        pictures = [square(decode(self.reference.images[index]), self.model.resolution) for index in indices]
        return torch.from_numpy(np.stack([to_array(picture) for picture in pictures])).to(self.device).float() / 255

    def _cond(self, indices: Sequence[int]) -> Condition:
        captions = [self.prompts[index % len(self.prompts)] for index in indices]
        said = self.text_encoder.encode(self.text_encoder.tokenise(captions))
        return said.with_time_ids(self.text_encoder.drawing_sizes(self.model.resolution))

    def _noises(self, indices: Sequence[int], count: int) -> list[Tensor]:
        shape = self.codec.latent_shape(self.model.resolution)
        return [noise.to(self.device) for noise in seeded_noises(indices, shape, seed=self.evaluation.seed, count=count)]


def _open_exhibition(
    model: Model, evaluation: Evaluation, *, source: Path, pretrained: Path, student: Path, device: torch.device
) -> Exhibition:
    if max(evaluation.num_steps) > model.num_ddim_steps:
        raise InputError(f"evaluation.num_steps asks for {max(evaluation.num_steps)} steps of a grid of {model.num_ddim_steps}")
    arms = sorted(path.parent.name for path in student.glob(f"[!.]*/{RECORD}"))
    if not arms:
        raise InputError(f"{student} holds no student; make one with: rglcd run distill")
    read_verified(student, made_by="distill")
    prompts = _read_prompts(source / evaluation.prompts)
    reference = _read_reference(source / evaluation.reference, limit=evaluation.num_images)
    return Exhibition(model, evaluation, Pretrained.open(pretrained), student, arms, prompts, reference, device)


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the prompts to draw, one a line") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"{path} holds no prompt: write one a line")
    return prompts


def _read_reference(path: Path, *, limit: int) -> Reference:
    images: list[bytes] = []
    captions: list[str] = []
    for number, line in enumerate(read_lines(path), start=1):
        if len(images) == limit:
            break
        try:
            row = parse_row(line)
            data = read_image(row.url, path.parent)
            decode(data)
        except RowRejectedError as error:
            raise InputError(f"{path} line {number}: {error.reason}; every reference image must be readable") from None
        images.append(data)
        captions.append(row.caption)
    if len(images) < 2:
        raise InputError(f"{path} lists {len(images)} images; a Fréchet distance needs at least two")
    return Reference(tuple(images), tuple(captions))


# --- measuring -----------------------------------------------------------------------------------


def _measurement(subject: Subject, exhibition: Exhibition, report: Output) -> Measurement:
    """The measurement of ``subject``: kept, taken over, or made."""
    key, folder = exhibition.key(subject), report.folder / DRAWS / subject.name
    if report.previous is not None and _is_whole(report.previous, subject):
        take_over(folder, report.previous / DRAWS / subject.name, key=key)
    found = load(folder, key=key)
    if found is not None:
        return found.in_order_of(exhibition.evaluation.scorers)
    is_real, panel = subject.who == REAL, exhibition.panel
    captions = exhibition.reference.captions if is_real else exhibition.captions
    observed = observe(
        exhibition.draw_fn(subject),
        panel,
        captions,
        batch_size=exhibition.evaluation.batch_size,
        sheet_images=exhibition.num_sheet_images,
        task=f"draw {subject.name}" if not is_real else "score the real images",
    )
    rulers = {ruler.who: report.folder / DRAWS / ruler.name for ruler in exhibition.rulers}
    moments = {who: load_moments(place) for who, place in rulers.items() if not is_real and who != subject.who}
    measurement = measured(subject, observed, panel.scorers, captions, real=moments.get(REAL), teacher=moments.get(TEACHER))
    save(folder, measurement, key=key, sheet=observed.sheet, moments=observed.moments if subject.who in rulers else None)
    return measurement


def _is_whole(previous: Path, subject: Subject) -> bool:
    """Whether what was published of ``subject`` is still what its manifest says."""
    manifest = read_manifest(previous, made_by="evaluate")
    names = [name for name in manifest.files if name.startswith(f"{DRAWS}/{subject.name}/")]
    return bool(names) and not altered_files(previous, manifest, names=names)


def _sweep(folder: Path) -> None:
    """Remove what a killed run was in the middle of writing."""
    for stale in [path for place in (folder, folder / DRAWS, folder / METRICS) for path in place.glob(".*.aside")]:
        if stale.is_dir():
            shutil.rmtree(stale)
        else:
            stale.unlink()


# --- telling -------------------------------------------------------------------------------------


def _trained_on(student: Path, arms: Sequence[str]) -> str | None:
    """The scorer that guided the arms; None if no reward did."""
    reward = read_manifest(student, made_by="distill").sections["reward"]
    return None if reward["kind"] == "none" or set(arms) == {PLAIN_ARM} else str(reward["expert"])


def _write_numbers(folder: Path, comparison: Comparison) -> None:
    write_json(folder / "metrics.json", metrics(comparison))
    (folder / METRICS).mkdir(exist_ok=True)
    for name, figures in headlines(comparison).items():
        write_json(folder / METRICS / f"{name}.json", figures)
    write_json(folder / "speed.json", speeds(comparison))
    (folder / "quality.csv").write_text(quality_csv(comparison), encoding="utf-8")
    (folder / "report.md").write_text(markdown(comparison), encoding="utf-8")


def _write_pages(
    folder: Path,
    comparison: Comparison,
    measurements: Sequence[Measurement],
    exhibition: Exhibition,
    pretraining: Records,
    *,
    seconds: float,
) -> None:
    drawn = [subject for subject in exhibition.subjects if subject.who != REAL]
    sheets = {subject: Image.open(folder / DRAWS / subject.name / "images.png") for subject in drawn}
    judge = comparison.judges[0]
    pictures = Pictures(
        sheets=sheets,
        side=exhibition.model.resolution,
        captions=exhibition.captions[: exhibition.evaluation.grid_prompts],
        judge=judge,
        scores={measurement.subject: measurement.scores[judge] for measurement in measurements},
    )
    grid_png(sheets, pictures.captions, side=pictures.side).save(folder / "grid.png")
    provenance = _provenance(exhibition, seconds=seconds)
    curves = {arm: _curve(exhibition.student / arm) for arm in exhibition.arms}
    text = page(comparison, pictures=pictures, provenance=provenance, curves=curves, pretraining=pretraining)
    (folder / "index.html").write_text(text, encoding="utf-8")


def _provenance(exhibition: Exhibition, *, seconds: float) -> Provenance:
    """The stages behind the student, this one last; it has no digest yet, for the page is part of it."""
    sections = {"model": exhibition.model, "evaluation": exhibition.evaluation}
    this = {"version": stage_named("evaluate").version, "sections": {name: s.model_dump(mode="json") for name, s in sections.items()}}
    lineage = read_manifest(exhibition.student, made_by="distill").lineage | {"evaluate": this}
    timings = exhibition.student / TIMINGS
    took = json.loads(timings.read_text(encoding="utf-8")) if timings.is_file() else {}
    device = exhibition.device
    return Provenance(
        stages={stage.name: lineage[stage.name] for stage in STAGES if stage.name in lineage},
        seconds=took | {"evaluate": seconds},
        teacher=exhibition.model.teacher.uri,
        guidance_scale=exhibition.evaluation.guidance_scale,
        prompts=exhibition.evaluation.prompts,
        num_prompts=len(set(exhibition.captions)),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} torch threads",
        versions={name: version(name) for name in ("torch", "diffusers", "transformers")},
    )


def _curve(folder: Path) -> list[dict[str, float]]:
    """The records of the training that made ``folder``."""
    path = folder / "curves.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]
