"""A few fixed prompts, drawn from fixed noise by teacher and student, and their figures.

Noise is a function of seed and picture (:func:`rglcd.evaluation.generation.seeded_noises`): nothing is drawn from any global generator.

Shapes: N pictures, P prompts with N / P each, side by side; (3, H, W) pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from rglcd.core.consistency import Boundary
from rglcd.errors import InputError
from rglcd.evaluation.drawing import Canvas, PictureBatch
from rglcd.evaluation.generation import as_png, from_png
from rglcd.evaluation.looks import Figures
from rglcd.evaluation.observation import ScoringPanel
from rglcd.evaluation.statistics import diversity
from rglcd.models.chunks import Chunks
from rglcd.models.codec import Codec
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder

_THUMBNAIL = 128
"""Pixels a side at most."""


@dataclass(frozen=True)
class TrainingPanel:
    """What is drawn at each look, and with what: the networks that draw are the training's own, called in eager mode without gradient."""

    prompts: tuple[str, ...]
    images_per_prompt: int
    num_steps: int
    teacher_steps: int
    guidance_scale: float
    seed: int
    resolution: int
    num_ddim_steps: int
    scalings: Boundary
    teacher: Teacher
    codec: Codec
    text_encoder: TextEncoder
    device: torch.device
    at_once: Chunks

    @property
    def captions(self) -> list[str]:
        """Of each picture."""
        return [prompt for prompt in self.prompts for _ in range(self.images_per_prompt)]

    def teachers(self) -> Tensor:
        """The teacher's pictures, uint8 (N, 3, H, W) on the CPU."""
        return self._all(self.teacher_latents)

    def students(self, student: Student) -> Tensor:
        """The pictures of ``student``, which may be training, uint8 (N, 3, H, W) on the CPU."""
        drawing = student.at_rest()
        return self._all(lambda indices: self.student_latents(drawing, indices))

    @torch.no_grad()
    def teacher_latents(self, indices: range) -> Tensor:
        """z0 (B, C, h, w) of the teacher's pictures of these numbers."""
        return self._canvas.latents_by_teacher(self.teacher)(self._batch(indices, self.teacher_steps))

    @torch.no_grad()
    def student_latents(self, student: Student, indices: range) -> Tensor:
        """z0 (B, C, h, w) of the pictures of these numbers by ``student``, which is at rest."""
        latents = self._canvas.latents_by_student(student, scalings=self.scalings, original_steps=self.num_ddim_steps)
        return latents(self._batch(indices, self.num_steps))

    @torch.no_grad()
    def _all(self, latents_of: Callable[[range], Tensor]) -> Tensor:
        """Every picture as a PNG file has it. Raises :class:`InputError` for one that is not finite."""

        def draw(indices: range) -> Tensor:
            pixels = self.codec.decode(latents_of(indices))
            if not bool(pixels.isfinite().all()):
                raise InputError("a picture is not finite (NaN)")
            return as_png(pixels).cpu()

        # Compiled networks would be compiled anew for these sizes.
        with torch.compiler.set_stance("force_eager"):
            return self.at_once.joined(draw, range(len(self.captions)))

    @property
    def _canvas(self) -> Canvas:
        return Canvas(self.codec, self.text_encoder, self.resolution, self.device)

    def _batch(self, indices: range, num_steps: int) -> PictureBatch:
        return PictureBatch(self.captions[indices.start : indices.stop], indices, self.seed, num_steps, self.guidance_scale)

    def figures(self, pictures: Tensor, teachers: Tensor, scoring: ScoringPanel) -> Figures:
        """The figures of ``pictures`` beside those of the teacher, both uint8 (N, 3, H, W), by the scorers of ``scoring``."""
        rated = scoring.ratings(pictures.to(self.device), self.captions)
        distance = (from_png(pictures) - from_png(teachers)).square().mean(dim=(1, 2, 3)).sqrt()
        groups = scoring.compared_features(rated).split(self.images_per_prompt)
        apart = [diversity(group, [""] * self.images_per_prompt) for group in groups]
        return Figures(
            scores={name: self._by_prompt(values) for name, values in scoring.scores(rated).items()},
            teacher_distance=self._by_prompt(distance),
            high_frequency=self._by_prompt(rated["high_frequency"]),
            saturation=self._by_prompt(rated["saturation"]),
            diversity=[value for value in apart if value is not None] or None,
        )

    def _by_prompt(self, values: Tensor) -> list[float]:
        """Means (P,) of ``values`` (N,); of scores the means of those prompts that the scorer has a score for."""
        means: list[float] = values.double().view(len(self.prompts), self.images_per_prompt).mean(dim=1).tolist()
        return [mean for mean in means if not math.isnan(mean)]

    def strip(self, pictures: Tensor) -> Image.Image:
        """The first picture of each prompt, side by side, shrunk to thumbnails where they are larger."""
        first, side = pictures[:: self.images_per_prompt], min(_THUMBNAIL, self.resolution)
        strip = Image.new("RGB", (len(first) * side, side))
        for column, pixels in enumerate(first):
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            strip.paste(picture if side == self.resolution else picture.resize((side, side), Image.Resampling.LANCZOS), (column * side, 0))
        return strip
