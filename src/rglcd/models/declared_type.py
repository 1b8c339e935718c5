"""Whether a teacher predicts what its scheduler's configuration says: a wrong ``prediction_type`` trains and draws noise without an error.

Published folders have it wrong often enough, v-prediction's above all, whose configurations are written by hand.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.prediction import PredictionType, convert
from rglcd.models.teacher import Teacher

_AT_ONCE: Final = 8
_FACTOR: Final = 2.0


def errors_of_x0(teacher: Teacher, latents: Tensor, condition: Callable[[slice], Condition]) -> dict[PredictionType, float]:
    """Mean squared error of x0 when the teacher's output is taken for each type of its schedule, at the middle timestep.

    ``latents`` (B, C, h, w) are real ones; ``condition`` gives the condition of some of their captions. The noise is always the same.
    """
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents.device)
    middle = teacher.schedule.num_timesteps // 2
    totals = dict.fromkeys(_types(teacher), 0.0)
    for start in range(0, len(latents), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        x0 = latents[rows]
        t = torch.full((len(x0),), middle, device=x0.device)
        alpha, sigma = teacher.schedule.at(t, x0)
        z_t = alpha * x0 + sigma * noise[rows]
        output = teacher.output(z_t, t, condition(rows))
        for kind in totals:
            predicted = convert(output, z_t, t, schedule=teacher.schedule, kind=kind).x0
            totals[kind] += float((predicted - x0).square().mean(dim=(1, 2, 3)).sum())
    return {kind: total / len(latents) for kind, total in totals.items()}


def doubt_about(declared: PredictionType, errors: dict[PredictionType, float]) -> str | None:
    """One line when another type explains the teacher's output more than twice as well; None otherwise."""
    best = min(errors, key=lambda kind: errors[kind])
    if best is declared or errors[declared] <= _FACTOR * errors[best]:
        return None
    return (
        f"the teacher's scheduler says prediction_type {declared.value}, but what it gives for these pictures is {best.value} by its error "
        f"(mean square of x0 at the middle timestep: {errors[best]:.3g}, as {declared.value} {errors[declared]:.3g}); "
        "see the model's card, and correct scheduler/scheduler_config.json before you train on it"
    )


def _types(teacher: Teacher) -> list[PredictionType]:
    """A flow's output may be noise less data, noise, or data; that of a variance preserving diffusion eps, v or x0."""
    return [kind for kind in PredictionType if kind is not (PredictionType.V if teacher.schedule.is_flow else PredictionType.FLOW)]
