"""Training loops that go on where they stopped: the same bits as without the stop."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from rglcd.toy.training import LOG_EVERY, Curve

SAVE_EVERY: Final = 5 * LOG_EVERY  # steps; a multiple, so that no half-counted mean is lost


@dataclass(frozen=True)
class Loop:
    """All that a training changes: its modules' weights, its optimiser, its random draws, its weight averages, its curve."""

    trained: nn.Module
    optimizer: torch.optim.Optimizer
    draws: torch.Generator
    curve: Curve
    averages: tuple[Tensor, ...] = ()

    def steps(self, total: int, state: Path | None) -> Iterator[int]:
        """Yield the steps that are left; the state is written to a file every `SAVE_EVERY` steps and after the last."""
        first = self._read(state) if state is not None and state.is_file() else 0
        for step in range(first, total):
            yield step
            if state is not None and ((step + 1) % SAVE_EVERY == 0 or step + 1 == total):
                self._write(state, step + 1)

    def _write(self, state: Path, step: int) -> None:
        staging = state.with_name(f".{state.name}.partial")
        torch.save(
            {
                "step": step,
                "weights": self.trained.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "draws": self.draws.get_state(),
                "averages": list(self.averages),
                "curve": json.dumps({"points": self.curve.points, "cpu_seconds": self.curve.cpu_seconds}),
            },
            staging,
        )
        staging.rename(state)

    def _read(self, state: Path) -> int:
        kept: dict[str, Any] = torch.load(state, weights_only=True)
        self.trained.load_state_dict(kept["weights"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.draws.set_state(kept["draws"])
        for average, value in zip(self.averages, kept["averages"], strict=True):
            average.copy_(value)
        curve = json.loads(kept["curve"])
        self.curve.points[:] = curve["points"]
        self.curve.started = time.process_time() - curve["cpu_seconds"]
        return int(kept["step"])
