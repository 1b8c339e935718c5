"""The step loop: train, log, checkpoint, stop when asked, go on where it stopped.

What is trained is behind :class:`Trainable`; the loop knows neither students nor rewards.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from torch import Tensor

from rglcd import progress
from rglcd.errors import TrainingDiverged, TryAgain
from rglcd.signals import handling_stops
from rglcd.training.checkpoint import Checkpointer
from rglcd.training.distributed import World

CURVE_POINTS = 100
"""How many rows of the training curve a run keeps."""


class Trainable(Protocol):
    """Something with a step and a state."""

    def step(self, step: int) -> Mapping[str, Tensor]:
        """Train once; ``step`` counts from 0. Figures are scalar tensors, left on their device: reading one waits for it."""
        ...

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Everything that the next step depends on, by name."""
        ...

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Become what :meth:`parts` described."""
        ...


@dataclass(frozen=True)
class Run:
    """How long, how often saved, and the name that progress is reported under."""

    task: str
    num_steps: int
    images_per_step: int
    checkpoint_every: int

    @property
    def log_every(self) -> int:
        """How many steps lie between two rows of the curve."""
        return max(1, self.num_steps // CURVE_POINTS)


def train(trainable: Trainable, run: Run, *, checkpointer: Checkpointer, world: World) -> list[dict[str, Any]]:
    """Train to ``run.num_steps``, from the latest checkpoint if there is one; returns the curve, a row each few steps.

    Raises :class:`TryAgain` after SIGTERM or SIGINT, the state being saved, and :class:`TrainingDiverged` when a figure
    stops being finite; no such state is ever saved.
    """
    start, curve = _resume(trainable, checkpointer)
    with _stop_requests() as stop:
        for step in range(start, run.num_steps):
            figures = trainable.step(step)
            done = step + 1
            saves = done % run.checkpoint_every == 0 or done == run.num_steps
            stopping = world.any(bool(stop))
            if done % run.log_every == 0 or saves or stopping:
                row = _row(figures, done=done, run=run, world=world)
                curve += [row] if done % run.log_every == 0 else []
                _report(run, row)
            if (saves or stopping) and world.is_main:
                checkpointer.save(done, trainable.parts(), {"curve": curve})
                _report(run, row | {"saved_step": done})
            if stopping:
                world.wait()
                raise TryAgain(f"{run.task}: stopped after {done} of {run.num_steps} steps, state saved; run the same command to go on")
    world.wait()
    return curve


def curve_text(curve: list[dict[str, Any]]) -> str:
    """A curve as JSON lines; keys sorted, because a resumed run's rows come back from its checkpoint in that order."""
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in curve)


def _resume(trainable: Trainable, checkpointer: Checkpointer) -> tuple[int, list[dict[str, Any]]]:
    checkpoint = checkpointer.latest()
    if checkpoint is None:
        return 0, []
    trainable.restore(checkpoint.parts)
    return checkpoint.step, list(checkpoint.state["curve"])


def _row(figures: Mapping[str, Tensor], *, done: int, run: Run, world: World) -> dict[str, Any]:
    row = {name: float(world.mean(figure)) for name, figure in figures.items()}
    for name, value in row.items():
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"{run.task}: {name} is {value} at step {done}; the last checkpoint is kept. Lower the learning rate or the reward's weight"
            )
    return {"step": done, "images": done * run.images_per_step, **row}


def _report(run: Run, row: Mapping[str, Any]) -> None:
    figures = {name: value for name, value in row.items() if name not in ("step", "images")}
    progress.report(run.task, done=row["step"], total=run.num_steps, unit="steps", **figures)


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or SIGINT comes; the handlers in force before are put back."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    with handling_stops(note):
        yield received
