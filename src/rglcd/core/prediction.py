"""Network outputs (eps, v, x0 or a flow's velocity) converted to the one internal convention: (x0, eps) with z_t = alpha x0 + sigma eps.

Shapes: output, z_t, x0, eps (B,C,H,W)    t (B,) integers in [0,T)
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

import torch
from torch import Tensor

from rglcd.core.schedule import NoiseSchedule


class PredictionType(StrEnum):
    """What a network was trained to output, by the names of diffusers' scheduler configurations."""

    EPSILON = "epsilon"
    V = "v_prediction"
    SAMPLE = "sample"
    FLOW = "flow_prediction"


@dataclass(frozen=True)
class Prediction:
    """The clean latents `x0` and the noise `eps` (B,C,H,W) that explain one z_t."""

    x0: Tensor
    eps: Tensor


def convert(output: Tensor, z_t: Tensor, t: Tensor, *, schedule: NoiseSchedule, kind: PredictionType) -> Prediction:
    """The network's `output` at (`z_t`, `t`) as (x0, eps); computed in the wider dtype of output and z_t."""
    output = output.to(torch.promote_types(output.dtype, z_t.dtype))
    alpha, sigma = schedule.at(t, output)
    match kind:
        case PredictionType.EPSILON:
            # DDIM Eq. 12, "predicted x0"
            return Prediction(x0=(z_t - sigma * output) / alpha, eps=output)
        case PredictionType.SAMPLE:
            return Prediction(x0=output, eps=(z_t - alpha * output) / sigma)
        case PredictionType.V:
            # v = alpha eps - sigma x0: progressive distillation, arXiv 2202.00512, Appendix D
            return Prediction(x0=alpha * z_t - sigma * output, eps=alpha * output + sigma * z_t)
        case PredictionType.FLOW:
            # v = eps - x0 and alpha = 1 - sigma: flow matching, arXiv 2210.02747; SD3, arXiv 2403.03206, Sec. 2
            return Prediction(x0=z_t - sigma * output, eps=z_t + alpha * output)
        case _:
            assert_never(kind)
