"""Classifier-free guidance: the guided teacher, and the embedding of the scale that conditions the student.

Shapes: z_t (B,C,H,W)    t, omega (B,)    cond B rows    uncond 1 row or B

omega follows LCM: cond + omega (cond - uncond), so that 0 means unguided. Diffusers' `guidance_scale` is 1 + omega.
"""

import math

import torch
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.consistency import TeacherFn
from rglcd.core.prediction import Prediction
from rglcd.core.schedule import per_sample


def guide(cond: Prediction, uncond: Prediction, omega: Tensor) -> Prediction:
    """`cond` extrapolated away from `uncond` by `omega` (B,); still a prediction of the same z_t."""
    scale = per_sample(omega, cond.x0)
    # (1 + omega) cond - omega uncond: the augmented PF-ODE, LCM Sec. 4.2
    return Prediction(x0=cond.x0 + scale * (cond.x0 - uncond.x0), eps=cond.eps + scale * (cond.eps - uncond.eps))


def guided_teacher(teacher: TeacherFn, z_t: Tensor, t: Tensor, *, omega: Tensor, cond: Condition, uncond: Condition) -> Prediction:
    """The guided prediction from ONE call of `teacher` on 2B rows, the conditional half first."""
    both = teacher(torch.cat([z_t, z_t]), torch.cat([t, t]), Condition.joined([cond, cond.with_caption_of(uncond)]))
    num_rows = len(z_t)
    return guide(
        Prediction(x0=both.x0[:num_rows], eps=both.eps[:num_rows]),
        Prediction(x0=both.x0[num_rows:], eps=both.eps[num_rows:]),
        omega,
    )


def guidance_embedding(omega: Tensor, *, dim: int = 256) -> Tensor:
    """(B, dim) sines and cosines of 1000 `omega`, in omega's dtype (float32 or wider: the phases reach 10^4).

    Raises ValueError unless dim is even and at least 4.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"the guidance embedding needs an even dim of at least 4, not {dim}")
    half = dim // 2
    # The exponent is rounded to float32 as diffusers' get_guidance_scale_embedding does, which embeds omega when the
    # student draws: at these phases another rounding would already show.
    decay = torch.full((), math.log(10000.0), dtype=torch.float32, device=omega.device) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=omega.dtype, device=omega.device) * -decay)
    # Fourier features of the guidance scale: guided distillation, arXiv 2210.03142; LCM Sec. 4.2
    phases = 1000.0 * omega[:, None] * frequencies
    return torch.cat([phases.sin(), phases.cos()], dim=1)
