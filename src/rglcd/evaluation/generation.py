"""Sampling from the teacher (DDIM) and from its students (multistep consistency sampling), from the same noise.

Shapes: B batch, (C, h, w) latents.

    noise, noises  (B, C, h, w) standard normal, a function of (seed, image index) alone
    pixels         (B, 3, H, W) in [0, 1], as a VAE decodes z0; rounded by :func:`as_png` before they are scored
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.consistency import Boundary, GuidedFn, StudentFn, consistency_output
from rglcd.core.sampling import lcm_timesteps, multistep_sample
from rglcd.core.schedule import NoiseSchedule
from rglcd.core.solver import DDIMSolver
from rglcd.models.chunks import Chunks
from rglcd.models.codec import Codec
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher


def seeded_noises(indices: Sequence[int], shape: tuple[int, int, int], *, seed: int, count: int) -> list[Tensor]:
    """``count`` noises (B, C, h, w), float32 on the CPU, of the images ``indices``.

    Image i has a generator of its own, seeded by (seed, i): its noise does not depend on the batch, the rank or the
    device, and its k-th noise not on ``count``, so that every sampler starts from the same one.
    """
    generators = [torch.Generator().manual_seed(_image_seed(seed, index)) for index in indices]
    return [torch.stack([torch.randn(shape, generator=generator) for generator in generators]) for _ in range(count)]


def _image_seed(seed: int, index: int) -> int:
    # A hash, not a sum: neighbouring seeds must not share images.
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8], "big", signed=True)


def omega_of(network: Teacher | Student, guidance_scale: float) -> float:
    """Of diffusers' ``guidance_scale``: a network that guides itself is given that, others a share of the difference it makes."""
    return guidance_scale if network.family.guides_itself(network.unet.config) else guidance_scale - 1


@torch.no_grad()
def teacher_latents(
    guided: GuidedFn, cond: Condition, uncond: Condition, noise: Tensor, *, schedule: NoiseSchedule, num_steps: int, omega: float
) -> Tensor:
    """z0 (B, C, h, w) after ``num_steps`` deterministic DDIM steps (eta 0) of the ``guided`` teacher, from ``noise``.

    The grid is the one the student is distilled on: t = 999, 979, ..., 19 and then 0 for 50 steps of 1000. Diffusers'
    ``DDIMScheduler`` walks it with ``timestep_spacing="trailing"``, ``set_alpha_to_one=False``. ``omega`` is LCM's,
    diffusers' ``guidance_scale`` less one; of a network that guides itself it is that scale. Of a flow the steps are Euler's.
    """
    solver = DDIMSolver(schedule, num_steps=num_steps)
    scale = torch.full((len(noise),), omega, dtype=noise.dtype, device=noise.device)
    z_t = noise
    for index in reversed(range(num_steps)):
        pair = solver.pair(torch.full((len(noise),), index, device=noise.device))
        z_t = solver.step(guided(z_t, pair.t, omega=scale, cond=cond, uncond=uncond), pair.s)
    return z_t


@torch.no_grad()
def student_latents(
    student: StudentFn,
    cond: Condition,
    noises: Sequence[Tensor],
    *,
    schedule: NoiseSchedule,
    scalings: Boundary,
    omega: float,
    original_steps: int = 50,
) -> Tensor:
    """z0 (B, C, h, w) after one step per noise of multistep consistency sampling, conditioned on the guidance weight ``omega``.

    Equal to diffusers' ``LatentConsistencyModelPipeline`` with ``LCMScheduler`` for the same noises, where
    ``original_steps`` is the scheduler's ``original_inference_steps``.
    """
    first = noises[0]
    scale = torch.full((len(first),), omega, dtype=torch.float32, device=first.device)

    def consistency(z_t: Tensor, t: Tensor) -> Tensor:
        return consistency_output(student(z_t, t, scale, cond), z_t, t, scalings=scalings)

    timesteps = lcm_timesteps(len(noises), original_steps=original_steps, num_timesteps=schedule.num_timesteps)
    return multistep_sample(consistency, noises, timesteps, schedule=schedule)


@torch.no_grad()
def decoded(codec: Codec, latents: Tensor, at_once: Chunks) -> Tensor:
    """Pixels (B, 3, H, W) of ``latents``, so many ``at_once``."""
    return at_once.joined(codec.decode, latents)


def as_png(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, H, W): the values that a PNG file of ``pixels`` holds; diffusers rounds the same way."""
    return (pixels.float() * 255).round().to(torch.uint8)


def from_png(values: Tensor) -> Tensor:
    """float32 pixels in [0, 1] of uint8 ``values``, as one reads them from the file."""
    return values.float() / 255
