"""The optimiser: fused AdamW, and a learning rate that is a pure function of the step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor, nn

from rglcd.recipe import Schedule


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up to ``peak`` over ``warmup_steps``, then constant, or half a cosine down to 0 at ``num_steps``."""

    peak: float
    warmup_steps: int
    num_steps: int
    schedule: Schedule

    def at(self, step: int) -> float:
        """The rate of step ``step``, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        match self.schedule:
            case "constant":
                return self.peak
            case "cosine":
                done = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
                return self.peak * 0.5 * (1 + math.cos(math.pi * done))
            case _:
                assert_never(self.schedule)


def adamw(parameters: Iterable[nn.Parameter], *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW in one fused pass, for parameters that have values; its rate is set before each step by :func:`optimise`."""
    moved = list(parameters)
    fused = not any(parameter.is_meta for parameter in moved)
    return torch.optim.AdamW(moved, lr=0.0, weight_decay=weight_decay, betas=(0.9, 0.999), eps=1e-8, fused=fused)


def clip(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients so that their norm is at most ``max_norm``; the norm (a scalar) before that."""
    return nn.utils.clip_grad_norm_(parameters, max_norm)


def optimise(optimizer: torch.optim.AdamW, *, rate: float) -> None:
    """Step, and forget the gradients."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
