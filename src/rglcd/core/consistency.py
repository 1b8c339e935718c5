"""The consistency function f(z_t, t) -> z0, and the interfaces of teacher and student.

Shapes: z_t, x0, z0 (B,C,H,W)    t, omega (B,)    cond B rows    c_skip, c_out (B,1,1,1)
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.prediction import Prediction
from rglcd.core.schedule import per_sample


class TeacherFn(Protocol):
    """The frozen diffusion model: (`z_t`, `t`, `cond`) -> Prediction, for any number of rows."""

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition, /) -> Prediction: ...


class StudentFn(Protocol):
    """The network being distilled (or its average), conditioned on the guidance scale `omega` (B,) too."""

    def __call__(self, z_t: Tensor, t: Tensor, omega: Tensor, cond: Condition, /) -> Prediction: ...


class GuidedFn(Protocol):
    """The teacher under guidance of `omega` (B,): the prediction of the probability-flow ODE that is solved.

    By two passes (`rglcd.core.guidance.guided_teacher`), or by one of a network that is given the scale.
    """

    def __call__(self, z_t: Tensor, t: Tensor, /, *, omega: Tensor, cond: Condition, uncond: Condition) -> Prediction: ...


class Boundary(Protocol):
    """c_skip and c_out (B,1,1,1) at `t` (B,), in the dtype and on the device of `like` (B,C,H,W)."""

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class BoundaryScalings:
    """c_skip and c_out, which make f(z, 0) = z hold whatever the network predicts.

    `sigma_data` is the data's standard deviation and `timestep_scaling` the slope in t; the defaults are LCM's.
    """

    sigma_data: float = 0.5
    timestep_scaling: float = 10.0

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out (B,1,1,1) at `t` (B,), in the dtype and on the device of `like` (B,C,H,W)."""
        # Squares of 10^4: half precision would overflow before the ratio is taken.
        scaled = self.timestep_scaling * t.to(torch.promote_types(like.dtype, torch.float32))
        norm_squared = scaled.square() + self.sigma_data**2
        # Consistency models, Appendix C, with 10 t for t - epsilon and without sigma_data in c_out: LCM's released form
        return per_sample(self.sigma_data**2 / norm_squared, like), per_sample(scaled / norm_squared.sqrt(), like)


@dataclass(frozen=True)
class FlowBoundary:
    """c_skip = 0 and c_out = 1: a flow's x0 = z - sigma v is z at sigma = 0 by itself, as diffusers' FlowMatchLCMScheduler has it."""

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """0 and 1 (B,1,1,1), in the dtype and on the device of `like` (B,C,H,W)."""
        return per_sample(torch.zeros_like(t), like), per_sample(torch.ones_like(t), like)


def consistency_output(prediction: Prediction, z_t: Tensor, t: Tensor, *, scalings: Boundary) -> Tensor:
    """z0 (B,C,H,W): the consistency function at (`z_t`, `t`), from the network's `prediction` there."""
    c_skip, c_out = scalings.at(t, z_t)
    # f = c_skip z + c_out x0: consistency models Eq. 5; LCM Sec. 4.1
    return c_skip * z_t + c_out * prediction.x0
