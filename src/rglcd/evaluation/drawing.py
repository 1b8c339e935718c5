"""Drawing single pictures of a prompt: from the noise, by the samplers and through the VAE that a report's pictures come from."""

from collections.abc import Callable
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
class Canvas:
    """What pictures are drawn with beside the network: VAE, text encoders, and the pictures' side in pixels."""

    codec: Codec
    text_encoder: TextEncoder
    resolution: int
    device: torch.device

    def by_student(self, student: Student, *, scalings: Boundary, original_steps: int) -> DrawPicture:
        """Multistep consistency sampling on a grid of ``original_steps``. Raises :class:`InputError` for more steps than it has."""

        def draw(asked: Asked) -> Tensor:
            if asked.num_steps > original_steps:
                raise InputError(
                    f"{asked.num_steps} steps are more than the {original_steps} of the grid that the student was distilled on"
                )
            latents = student_latents(
                student,
                self._cond(asked),
                self._noises(asked, asked.num_steps),
                schedule=student.schedule,
                scalings=scalings,
                omega=omega_of(student, asked.guidance_scale),
                original_steps=original_steps,
            )
            return self._picture(latents, asked)

        return draw

    def by_teacher(self, teacher: Teacher) -> DrawPicture:
        """Guided DDIM. Raises :class:`InputError` for more steps than the teacher's schedule has."""

        def draw(asked: Asked) -> Tensor:
            if asked.num_steps > teacher.schedule.num_timesteps:
                raise InputError(f"{asked.num_steps} steps are more than the {teacher.schedule.num_timesteps} timesteps of the teacher")
            (noise,) = self._noises(asked, 1)
            omega = omega_of(teacher, asked.guidance_scale)
            latents = teacher_latents(
                teacher.guided, self._cond(asked), self._null, noise, schedule=teacher.schedule, num_steps=asked.num_steps, omega=omega
            )
            return self._picture(latents, asked)

        return draw

    @cached_property
    def _null(self) -> Condition:
        return self.text_encoder.null()

    def _cond(self, asked: Asked) -> Condition:
        condition = self.text_encoder.encode(self.text_encoder.tokenise([asked.prompt]))
        return condition.with_time_ids(self.text_encoder.drawing_sizes(self.resolution))

    def _noises(self, asked: Asked, count: int) -> list[Tensor]:
        shape = self.codec.latent_shape(self.resolution)
        return [noise.to(self.device) for noise in seeded_noises([asked.number], shape, seed=asked.seed, count=count)]

    def _picture(self, latents: Tensor, asked: Asked) -> Tensor:
        pixels = decoded(self.codec, latents, Chunks("pictures", 1))
        if not bool(pixels.isfinite().all()):
            raise InputError(f"picture {asked.number} of seed {asked.seed} is not finite (NaN): this model is broken")
        return as_png(pixels).cpu()
