"""Shared by the toy's trainings: image batches drawn with replacement, a cosine learning rate, optimiser steps, loss curves."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rglcd.progress import report

LOG_EVERY = 100  # steps


@dataclass
class Curve:
    """Means over `LOG_EVERY` steps, with the CPU seconds spent so far, kept for `build.json`."""

    part: str
    points: list[dict[str, float | str]] = field(default_factory=list)
    started: float = field(default_factory=time.process_time)
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, act: str, step: int, *, total: int, **values: Tensor) -> None:
        """Count one step's values in; every `LOG_EVERY` steps a point is kept and reported."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros(())) + value.detach()
        if (step + 1) % LOG_EVERY == 0:
            means = {name: float(value) / LOG_EVERY for name, value in self._sums.items()}
            self.note(act, step + 1, total=total, **means)
            self._sums = {}

    def note(self, act: str, step: int, *, total: int, **values: float) -> None:
        """Keep and report one point as it is."""
        rounded = {name: round(value, 5) for name, value in values.items()}
        self.points.append({"act": act, "step": step, "cpu_seconds": self.cpu_seconds, **rounded})
        report(f"{self.part}: {act}", done=step, total=total, unit="steps", **rounded)

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of this process since the curve began."""
        return round(time.process_time() - self.started, 1)


def cosine(optimizer: torch.optim.Optimizer, peak: float, *, step: int, total: int, warmup: int = 100, floor: float = 0.02) -> None:
    """Set the learning rate: a linear warm-up, then half a cosine from the peak down to `floor` of it."""
    rise = min(1.0, (step + 1) / warmup)
    fall = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / total))
    for group in optimizer.param_groups:
        group["lr"] = peak * rise * fall


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimizer down the loss, its gradient clipped to norm 1."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()


def draw_indices(population: int, count: int, draws: torch.Generator) -> Tensor:
    """`count` indices below `population`, with replacement."""
    return torch.randint(population, (count,), generator=draws)
