"""The loop saves what it says it saved, stops when asked, and goes on as if it had never stopped."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rglcd.errors import TrainingDiverged, TryAgain
from rglcd.training.checkpoint import Checkpointer
from rglcd.training.distributed import World
from rglcd.training.loop import Run, train

ALONE = World(0, 1, torch.device("cpu"))


class Sum:
    """Adds up the steps it is given: its state says exactly which steps were trained, and in what order."""

    def __init__(self, *, at: dict[int, object] | None = None) -> None:
        self.state = torch.zeros(1, dtype=torch.float64)
        self._at = at or {}

    def step(self, step: int) -> Mapping[str, Tensor]:
        self.state = self.state * 1.5 + step
        event = self._at.get(step)
        if isinstance(event, signal.Signals):
            os.kill(os.getpid(), event)
        return {"loss": torch.tensor(event) if isinstance(event, float) else self.state.squeeze()}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        return {"sum": {"state": self.state}}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.state = parts["sum"]["state"]


def run(num_steps: int = 20, checkpoint_every: int = 5) -> Run:
    return Run("sum", num_steps, images_per_step=4, checkpoint_every=checkpoint_every)


def test_a_run_stopped_by_a_signal_and_run_again_equals_one_unbroken(tmp_path: Path) -> None:
    unbroken = Sum()
    curve = train(unbroken, run(), checkpointer=Checkpointer(tmp_path / "a"), world=ALONE)
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = tmp_path / number.name
        with pytest.raises(TryAgain, match="after 8 of 20 steps"):
            train(Sum(at={7: number}), run(), checkpointer=Checkpointer(folder), world=ALONE)
        resumed = Sum()
        assert train(resumed, run(), checkpointer=Checkpointer(folder), world=ALONE) == curve
        assert torch.equal(resumed.state, unbroken.state)


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    train(Sum(), run(), checkpointer=Checkpointer(tmp_path), world=ALONE)
    again = Sum(at={step: float("nan") for step in range(20)})
    assert len(train(again, run(), checkpointer=Checkpointer(tmp_path), world=ALONE)) == 20


def test_what_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="loss is nan at step 13"):
        train(Sum(at={12: float("nan")}), run(), checkpointer=Checkpointer(tmp_path), world=ALONE)
    latest = Checkpointer(tmp_path).latest()
    assert latest is not None
    assert latest.step == 10


def test_the_handlers_in_force_before_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    train(Sum(), run(), checkpointer=Checkpointer(tmp_path), world=ALONE)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_curve_is_bounded_however_long_the_run(tmp_path: Path) -> None:
    curve = train(Sum(), run(num_steps=1050, checkpoint_every=500), checkpointer=Checkpointer(tmp_path), world=ALONE)
    assert len(curve) == 105
    assert curve[-1]["images"] == 1050 * 4
