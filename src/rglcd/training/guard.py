"""What a run does when a step goes wrong: stop, or go back to a checkpoint and on without the batches that it stumbled over.

PaLM was trained so (arXiv 2204.02311, section 5.1): a spike comes of some batches meeting some state of the weights, and the same
batches do no harm to another. Here the batch is a function of the step's number, so to leave a batch out is to leave out its step.
Which steps are left out follows from the run's own figures, looked at in their order, so a run that is stopped and goes on does the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, assert_never

import torch
from torch import Tensor

from rglcd.recipe import Guard, RollBackGuard, StopGuard
from rglcd.training.distributed import World

GRAD_NORM = "grad_norm"
"""The figure whose spikes count."""


@dataclass(frozen=True)
class Fault:
    """The first step (from 0) that went wrong, and what its figures say."""

    step: int
    reason: str


@dataclass
class Watch:
    """The figures of a run, step by step, and what was decided of them.

    ``passed_over`` are steps that are left out; ``norms`` the last gradient norms that were found good, ``num_roll_backs`` how often
    the run went back.
    """

    guard: Guard
    passed_over: set[int] = field(default_factory=set)
    norms: list[float] = field(default_factory=list)
    num_roll_backs: int = 0
    _seen: list[tuple[int, Mapping[str, Tensor]]] = field(default_factory=list)

    def see(self, step: int, figures: Mapping[str, Tensor]) -> None:
        """Note the figures of ``step``, left on their device; of a guard that stops, the newest are enough."""
        match self.guard:
            case StopGuard():
                self._seen = [(step, figures)]
            case RollBackGuard():
                self._seen.append((step, figures))
            case _:
                assert_never(self.guard)

    def look(self, world: World) -> tuple[dict[str, float] | None, Fault | None]:
        """The newest figures, averaged over the ranks, and the first fault in all that were noted. It waits for the device."""
        seen, self._seen = self._seen, []
        if not seen:
            return None, None
        # A step may lack a figure, on all ranks at once: there was nothing to take it of.
        names = sorted({name for _, figures in seen for name in figures})
        absent = torch.zeros_like(next(iter(seen[-1][1].values())), dtype=torch.float64)
        table = [torch.stack([figures[name].detach().double() if name in figures else absent for name in names]) for _, figures in seen]
        values = world.mean(torch.stack(table)).tolist()
        rows = [
            dict(pair for pair in zip(names, row, strict=True) if pair[0] in figures)
            for (_, figures), row in zip(seen, values, strict=True)
        ]
        newest = {name: rows[-1][name] for name in seen[-1][1]}
        for (step, _), row in zip(seen, rows, strict=True):
            if (reason := self._fault_in(row)) is not None:
                return newest, Fault(step, reason)
        return newest, None

    def _fault_in(self, row: Mapping[str, float]) -> str | None:
        for name, value in row.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        if not isinstance(self.guard, RollBackGuard) or GRAD_NORM not in row:
            return None
        norm = row[GRAD_NORM]
        if len(self.norms) == self.guard.window and norm > self.guard.spike * (usual := median(self.norms)):
            return f"{GRAD_NORM} is {norm:.4g}, {norm / usual:.3g} times the median of the {self.guard.window} before"
        self.norms = [*self.norms, norm][-self.guard.window :]
        return None

    # --- what a checkpoint keeps -----------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """As plain values; empty for a guard that stops, which decides nothing."""
        if isinstance(self.guard, StopGuard):
            return {}
        return {"guard": {"passed_over": sorted(self.passed_over), "norms": self.norms, "num_roll_backs": self.num_roll_backs}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`state` described; what was decided since stays decided."""
        kept = state.get("guard", {})
        self._seen, self.norms = [], list(kept.get("norms", []))
        self.passed_over |= set(kept.get("passed_over", []))
        self.num_roll_backs = max(self.num_roll_backs, kept.get("num_roll_backs", 0))
