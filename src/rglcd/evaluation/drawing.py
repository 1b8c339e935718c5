"""Drawing pictures of prompts, single ones and batches: whoever draws, a report, a training's looks or a person, draws the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.consistency import Boundary
from rglcd.errors import InputError
from rglcd.evaluation.generation import as_png, decoded, omega_of, seeded_noises, student_latents, teacher_latents
from rglcd.models.chunks import Chunks
from rglcd.models.codec import Codec
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder


@dataclass(frozen=True)
class Asked:
    """One picture: the prompt, and the noise by ``seed`` and ``number``, which is that of a report's picture of this number.

    ``guidance_scale`` is diffusers': omega + 1.
    """

    prompt: str
    seed: int
    number: int
    num_steps: int
    guidance_scale: float


DrawPicture = Callable[[Asked], Tensor]
"""A picture, uint8 (1, 3, H, W) on the CPU, as its PNG file holds it."""


@dataclass(frozen=True)
class PictureBatch:
    """Pictures to draw together: their prompts, the numbers that with ``seed`` give their noise, and what they are drawn with."""

    prompts: Sequence[str]
    numbers: Sequence[int]
    seed: int
    num_steps: int
    guidance_scale: float


LatentsFn = Callable[[PictureBatch], Tensor]
"""z0 (B, C, h, w) of pictures."""


@dataclass(frozen=True)
class Canvas:
    """What pictures are drawn with beside the network: VAE, text encoders, and the pictures' side in pixels."""

    codec: Codec
    text_encoder: TextEncoder
    resolution: int
    device: torch.device

    def latents_by_student(self, student: Student, *, scalings: Boundary, original_steps: int) -> LatentsFn:
        """Multistep consistency sampling on a grid of ``original_steps``."""
        return lambda batch: student_latents(
            student,
            self._cond(batch),
            self._noises(batch, batch.num_steps),
            schedule=student.schedule,
            scalings=scalings,
            omega=omega_of(student, batch.guidance_scale),
            original_steps=original_steps,
        )

    def latents_by_teacher(self, teacher: Teacher) -> LatentsFn:
        """Guided DDIM."""
        return lambda batch: teacher_latents(
            teacher.guided,
            self._cond(batch),
            self._null,
            self._noises(batch, 1)[0],
            schedule=teacher.schedule,
            num_steps=batch.num_steps,
            omega=omega_of(teacher, batch.guidance_scale),
        )

    def by_student(self, student: Student, *, scalings: Boundary, original_steps: int) -> DrawPicture:
        """:meth:`latents_by_student`, one picture at a time. Raises :class:`InputError` for more steps than the grid has."""
        latents = self.latents_by_student(student, scalings=scalings, original_steps=original_steps)

        def draw(asked: Asked) -> Tensor:
            if asked.num_steps > original_steps:
                raise InputError(
                    f"{asked.num_steps} steps are more than the {original_steps} of the grid that the student was distilled on"
                )
            return self._picture(latents, asked)

        return draw

    def by_teacher(self, teacher: Teacher) -> DrawPicture:
        """:meth:`latents_by_teacher`, one picture at a time. Raises :class:`InputError` for more steps than its schedule has."""
        latents = self.latents_by_teacher(teacher)

        def draw(asked: Asked) -> Tensor:
            if asked.num_steps > teacher.schedule.num_timesteps:
                raise InputError(f"{asked.num_steps} steps are more than the {teacher.schedule.num_timesteps} timesteps of the teacher")
            return self._picture(latents, asked)

        return draw

    @cached_property
    def _null(self) -> Condition:
        return self.text_encoder.null()

    def _cond(self, batch: PictureBatch) -> Condition:
        condition = self.text_encoder.encode(self.text_encoder.tokenise(batch.prompts))
        return condition.with_time_ids(self.text_encoder.drawing_sizes(self.resolution))

    def _noises(self, batch: PictureBatch, count: int) -> list[Tensor]:
        shape = self.codec.latent_shape(self.resolution)
        return [noise.to(self.device) for noise in seeded_noises(batch.numbers, shape, seed=batch.seed, count=count)]

    def _picture(self, latents: LatentsFn, asked: Asked) -> Tensor:
        alone = PictureBatch([asked.prompt], [asked.number], asked.seed, asked.num_steps, asked.guidance_scale)
        pixels = decoded(self.codec, latents(alone), Chunks("pictures", 1))
        if not bool(pixels.isfinite().all()):
            raise InputError(f"picture {asked.number} of seed {asked.seed} is not finite (NaN): this model is broken")
        return as_png(pixels).cpu()
