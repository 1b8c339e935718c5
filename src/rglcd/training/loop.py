"""The step loop: train, log, checkpoint, stop when asked, go on where it stopped.

What is trained is behind :class:`Trainable`; the loop knows neither students nor rewards.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol, assert_never

from torch import Tensor

from rglcd import progress
from rglcd.errors import TrainingDiverged, TrainingHalted, TryAgain
from rglcd.recipe import Guard, RollBackGuard, StopGuard
from rglcd.signals import noting_stops
from rglcd.training.checkpoint import Checkpoint, Checkpointer
from rglcd.training.distributed import World
from rglcd.training.guard import Fault, Watch

CURVE_POINTS = 100
"""How many rows of the training curve a run keeps."""

_SILENT_SECONDS = 60.0
"""The longest that nothing is said of a run whose steps go on: rows of its curve may lie an hour apart, and who watches it
(manifests/components/monitoring) takes a run that is not heard of for one that stands still."""

_ASK_EVERY = 4
"""Of several ranks, which ask one another whether to stop: how many steps a request may wait. They then go on without one another."""

_STOP = StopGuard()
_ADVICE = "Lower the learning rate or the reward's weight"


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


class Monitor(Protocol):
    """Something that looks at what is trained every few steps, and changes nothing of it. The first rank's alone is asked."""

    def is_due(self, done: int) -> bool:
        """Whether to look after ``done`` steps."""
        ...

    def look(self, done: int) -> None:
        """Look at what ``done`` steps made."""
        ...

    def resume(self, done: int) -> None:
        """Training goes on from ``done`` steps: what was seen of later ones goes, and a look that is due at this one is made up for."""
        ...

    @property
    def objection(self) -> str | None:
        """Why the run should end, if it should."""
        ...


class NoMonitor:
    """Looks at nothing."""

    objection = None

    def is_due(self, done: int) -> bool:
        return False

    def look(self, done: int) -> None:
        raise AssertionError("never due")

    def resume(self, done: int) -> None:
        pass


_NO_MONITOR = NoMonitor()


def _no_doubt(curve: Sequence[Mapping[str, Any]]) -> None:
    return None


@dataclass(frozen=True)
class Run:
    """How long, how often saved, the name that progress is reported under, and what a step that goes wrong does.

    ``doubt`` reads the curve after each row, and says what is doubtful about it, if anything is; that is said once, and nothing stops.
    """

    task: str
    num_steps: int
    images_per_step: int
    checkpoint_every: int
    guard: Guard = _STOP
    doubt: Callable[[Sequence[Mapping[str, Any]]], str | None] = _no_doubt

    @property
    def log_every(self) -> int:
        """How many steps lie between two rows of the curve."""
        return max(1, self.num_steps // CURVE_POINTS)


def train(
    trainable: Trainable, run: Run, *, checkpointer: Checkpointer, world: World, monitor: Monitor = _NO_MONITOR
) -> list[dict[str, Any]]:
    """Train to ``run.num_steps``, from the latest checkpoint if there is one; returns the curve, a row each few steps.

    Raises :class:`TryAgain` after SIGTERM or SIGINT, which several ranks notice within four steps, the state being saved;
    :class:`TrainingHalted` as soon after an objection of ``monitor``, and before any step where it has one already; and
    :class:`TrainingDiverged` when a figure stops being finite and ``run.guard`` knows no way on; no such state is ever saved.
    """
    watch = Watch(run.guard)
    step, curve = _resume(trainable, run, watch, checkpointer=checkpointer, world=world)
    if world.is_main:
        monitor.resume(step)
    _require_no_objection(monitor, run, step, world=world)
    doubted, said_at = False, monotonic()
    with noting_stops() as stop:
        while step < run.num_steps:
            if step not in watch.passed_over:
                watch.see(step, trainable.step(step))
            done = step + 1
            saves = done % run.checkpoint_every == 0 or done == run.num_steps
            asks = world.size == 1 or saves or done % _ASK_EVERY == 0
            stopping = asks and world.any(bool(stop) or monitor.objection is not None)
            row: dict[str, Any] = {}
            if done % run.log_every == 0 or saves or stopping:
                figures, fault = watch.look(world)
                if fault is not None:
                    step, curve = _go_back(trainable, run, watch, fault, checkpointer=checkpointer, world=world)
                    if world.is_main:
                        monitor.resume(step)
                    continue
                row = _row(figures, done=done, run=run, watch=watch)
                curve += [row] if figures is not None and done % run.log_every == 0 else []
                _report(run, row)
                said_at = monotonic()
                doubted = doubted or _doubted(run, curve, done, world=world)
            elif monotonic() - said_at >= _SILENT_SECONDS:
                _report(run, {"step": done})
                said_at = monotonic()
            if (saves or stopping) and world.is_main:
                _save(trainable, run, watch, done, curve, checkpointer=checkpointer)
                _report(run, row | {"saved_step": done})
            if stopping:
                world.wait()
                _require_no_objection(monitor, run, done, world=world)
                raise TryAgain(f"{run.task}: stopped after {done} of {run.num_steps} steps, state saved; run the same command to go on")
            step = done
            if world.is_main and monitor.is_due(done):
                monitor.look(done)
        if world.any(bool(stop) or monitor.objection is not None):  # while the last checkpoint was written, or at the last look
            _require_no_objection(monitor, run, step, world=world)
            raise TryAgain(f"{run.task}: stopped after the last step, state saved; run the same command to go on")
    world.wait()
    return curve


def _doubted(run: Run, curve: Sequence[Mapping[str, Any]], done: int, *, world: World) -> bool:
    doubt = run.doubt(curve) if world.is_main else None
    if doubt is not None:
        print(f"rglcd: {run.task}, after {done} of {run.num_steps} steps: {doubt}", file=sys.stderr)
    return doubt is not None


def _require_no_objection(monitor: Monitor, run: Run, done: int, *, world: World) -> None:
    """Raise :class:`TrainingHalted`, on all ranks, where the first has an objection; what ``done`` steps made is saved."""
    if not world.any(monitor.objection is not None):
        return
    why = monitor.objection or "the first rank says why"
    raise TrainingHalted(f"{run.task}: stopped after {done} of {run.num_steps} steps, state saved: {why}")


def curve_text(curve: list[dict[str, Any]]) -> str:
    """A curve as JSON lines; keys sorted, because a resumed run's rows come back from its checkpoint in that order."""
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in curve)


def _resume(trainable: Trainable, run: Run, watch: Watch, *, checkpointer: Checkpointer, world: World) -> tuple[int, list[dict[str, Any]]]:
    checkpoint = checkpointer.latest()
    if checkpoint is not None:
        return _restore(trainable, watch, checkpoint)
    if isinstance(run.guard, RollBackGuard):
        world.wait()  # until all have seen that there is none
        if world.is_main:
            _save(trainable, run, watch, 0, [], checkpointer=checkpointer)
    return 0, []


def _restore(trainable: Trainable, watch: Watch, checkpoint: Checkpoint) -> tuple[int, list[dict[str, Any]]]:
    trainable.restore(checkpoint.parts)
    watch.restore(checkpoint.state)
    return checkpoint.step, list(checkpoint.state["curve"])


def _save(trainable: Trainable, run: Run, watch: Watch, done: int, curve: list[dict[str, Any]], *, checkpointer: Checkpointer) -> None:
    needed = (_last_regular(run, done),) if isinstance(run.guard, RollBackGuard) else ()
    checkpointer.save(done, trainable.parts(), {"curve": curve, **watch.state()}, needed=needed)


def _last_regular(run: Run, step: int) -> int:
    """The last multiple of ``checkpoint_every``: a checkpoint that there is whether or not the run was stopped since."""
    return step // run.checkpoint_every * run.checkpoint_every


def _go_back(
    trainable: Trainable, run: Run, watch: Watch, fault: Fault, *, checkpointer: Checkpointer, world: World
) -> tuple[int, list[dict[str, Any]]]:
    """To the newest checkpoint from before what is now passed over."""
    said = f"{run.task}: {fault.reason} at step {fault.step + 1}"
    match run.guard:
        case StopGuard():
            raise TrainingDiverged(f"{said}; the last checkpoint is kept. {_ADVICE}")
        case RollBackGuard(skip=skip, most=most):
            first = max(fault.step - skip + 1, _last_regular(run, fault.step))
        case _:
            assert_never(run.guard)
    checkpoint = checkpointer.latest(at_most=first)
    if watch.num_roll_backs == most or checkpoint is None:
        why = "no checkpoint from before is whole" if checkpoint is None else f"{most} roll-backs (distillation.guard.most) were not enough"
        raise TrainingDiverged(f"{said}; {why}; the last checkpoint is kept. {_ADVICE}")
    watch.passed_over |= set(range(first, fault.step + 1))
    watch.num_roll_backs += 1
    place = _restore(trainable, watch, checkpoint)
    world.wait()  # until all have read it
    if world.is_main:
        checkpointer.drop_after(checkpoint.step)
        print(
            f"rglcd: {said}; going back to step {checkpoint.step} and on without the batches of steps {first + 1} to {fault.step + 1} "
            f"(roll-back {watch.num_roll_backs} of {most})",
            file=sys.stderr,
        )
    return place


def _row(figures: Mapping[str, float] | None, *, done: int, run: Run, watch: Watch) -> dict[str, Any]:
    """A row of the curve; without figures where the step was passed over."""
    num_passed = sum(step < done for step in watch.passed_over)
    passed = {"passed_over": num_passed} if num_passed else {}
    return {"step": done, "images": (done - num_passed) * run.images_per_step, **(figures or {}), **passed}


def _report(run: Run, row: Mapping[str, Any]) -> None:
    figures = {name: value for name, value in row.items() if name not in ("step", "images")}
    progress.report(run.task, done=row["step"], total=run.num_steps, unit="steps", **figures)
