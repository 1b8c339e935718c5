"""The loop saves what it says it saved, stops when asked, and goes on as if it had never stopped."""

import math
import os
import signal
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from torch import Tensor

from rglcd.errors import TrainingDiverged, TrainingHalted, TryAgain
from rglcd.progress import Event, reporting_to
from rglcd.recipe import RollBackGuard
from rglcd.training.checkpoint import Checkpointer
from rglcd.training.distributed import World
from rglcd.training.guard import Watch
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


def test_a_doubt_about_the_curve_is_said_once_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doubtful = replace(run(), doubt=lambda curve: "it grows" if curve[-1]["loss"] > 100 else None)
    curve = train(Sum(), doubtful, checkpointer=Checkpointer(tmp_path / "a"), world=ALONE)
    assert curve == train(Sum(), run(), checkpointer=Checkpointer(tmp_path / "b"), world=ALONE)
    at = next(row["step"] for row in curve if row["loss"] > 100)
    assert capsys.readouterr().err == f"rglcd: sum, after {at} of 20 steps: it grows\n"


def test_a_run_of_slow_steps_is_heard_of_each_minute_and_has_the_same_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of its curve lie an hour apart; who watches would take it for one that stands still."""
    long = run(num_steps=1000, checkpoint_every=1000)
    curve = train(Sum(), long, checkpointer=Checkpointer(tmp_path / "a"), world=ALONE)
    time = count(step=25.0)
    monkeypatch.setattr("rglcd.training.loop.monotonic", lambda: next(time))
    heard: list[Event] = []
    with reporting_to(heard.append):
        assert train(Sum(), long, checkpointer=Checkpointer(tmp_path / "b"), world=ALONE) == curve
    steps = [event.done for event in heard]
    assert max(later - earlier for earlier, later in pairwise(steps)) <= 3
    assert {event.done for event in heard if "loss" in event.values} == {row["step"] for row in curve}


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


class Walk:
    """A step adds its number to the state, noisily if asked to: ``bad`` steps report a gradient norm of their own, and poison the state."""

    def __init__(self, bad: Mapping[int, float] = MappingProxyType({}), *, stops_at: int | None = None) -> None:
        self.state, self.trained = torch.zeros(2, dtype=torch.float64), list[int]()
        self._bad, self._stops_at = bad, stops_at

    def step(self, step: int) -> Mapping[str, Tensor]:
        self.trained.append(step)
        norm = self._bad.get(step, 1.0 + 0.01 * (step % 7))
        self.state = self.state * 1.5 + torch.tensor([step, norm], dtype=torch.float64)
        if step == self._stops_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": self.state[0], "grad_norm": torch.tensor(norm)}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        return {"walk": {"state": self.state}}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.state = parts["walk"]["state"].clone()


def guarded(guard: RollBackGuard, *, num_steps: int = 40, checkpoint_every: int = 10) -> Run:
    return Run("walk", num_steps, images_per_step=4, checkpoint_every=checkpoint_every, guard=guard)


class TestRollBack:
    NAN, INF = float("nan"), float("inf")

    @pytest.mark.parametrize(("value", "at"), [(NAN, 0), (INF, 10), (1e3, 23), (1e3, 2), (NAN, 39)])
    def test_a_run_that_goes_back_equals_one_that_never_met_the_batch(self, tmp_path: Path, value: float, at: int) -> None:
        bad = {} if value == 1e3 and at < 5 else {at: value}  # before there is a median, nothing is a spike
        walk = Walk(bad)
        curve = train(walk, guarded(RollBackGuard(window=5)), checkpointer=Checkpointer(tmp_path), world=ALONE)
        other = Walk()
        for step in range(40):
            if step not in bad:
                other.step(step)
        assert torch.equal(walk.state, other.state)
        last = 40 if at < 39 or not bad else 39  # a step that is left out has no row
        assert curve[-1]["step"] == last
        assert curve[-1]["images"] == 4 * (40 - len(bad))
        assert all(math.isfinite(value) for row in curve for value in row.values())

    @pytest.mark.parametrize(("stops_at", "skip"), [(4, 4), (13, 1), (17, 4), (22, 100), (27, 100)])
    def test_a_run_that_is_stopped_and_goes_on_leaves_out_the_same_batches(self, tmp_path: Path, stops_at: int, skip: int) -> None:
        bad = {7: self.NAN, 18: 1e3, 26: self.INF}
        run = guarded(RollBackGuard(window=5, skip=skip))
        unbroken = Walk(bad)
        curve = train(unbroken, run, checkpointer=Checkpointer(tmp_path / "a"), world=ALONE)
        assert (curve[-1]["passed_over"]) == {1: 3, 4: 12, 100: 8 + 9 + 7}[skip]
        checkpoints = Checkpointer(tmp_path / "b")
        broken = Walk(bad, stops_at=stops_at)
        with suppress(TryAgain):
            train(broken, run, checkpointer=checkpoints, world=ALONE)
        resumed = Walk(bad)
        assert train(resumed, run, checkpointer=checkpoints, world=ALONE) == curve
        assert torch.equal(resumed.state, unbroken.state)
        assert stops_at in broken.trained or stops_at in set(range(40)) - set(unbroken.trained)

    def test_roll_backs_that_are_not_enough_end_the_run_with_its_reason(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        bad = dict.fromkeys((12, 13, 14), self.NAN)
        for _ in range(2):  # the same command ends the same way
            with pytest.raises(TrainingDiverged, match=r"walk: grad_norm is nan at step 15; 2 roll-backs .* were not enough") as ended:
                train(Walk(bad), guarded(RollBackGuard(most=2)), checkpointer=Checkpointer(tmp_path), world=ALONE)
            assert ended.value.exit_code == 3
        assert "grad_norm is nan at step 13; going back to step 10 and on without the batches of steps 13 to 13 (roll-back 1 of 2)" in (
            capsys.readouterr().err
        )
        latest = Checkpointer(tmp_path).latest()
        assert latest is not None
        assert latest.parts["walk"]["state"].isfinite().all()

    def test_a_norm_that_grows_slowly_is_no_spike(self, tmp_path: Path) -> None:
        growing = {step: 1.3**step for step in range(40)}
        walk = Walk(growing)
        train(walk, guarded(RollBackGuard(window=5, spike=3.0)), checkpointer=Checkpointer(tmp_path), world=ALONE)
        assert walk.trained == list(range(40))

    def test_a_stop_is_what_happens_unless_asked_otherwise(self, tmp_path: Path) -> None:
        walk = Walk({20: 1e6})
        train(walk, Run("walk", 40, 4, 10), checkpointer=Checkpointer(tmp_path), world=ALONE)
        assert walk.trained == list(range(40))
        latest = Checkpointer(tmp_path).latest()
        assert latest is not None
        assert set(latest.state) == {"curve"}


def test_a_figure_that_some_steps_lack_is_no_fault_and_is_given_where_it_is() -> None:
    watch = Watch(RollBackGuard())
    for step, figures in enumerate(({"loss": 1.0}, {"loss": 2.0, "expert_reward": 0.5}, {"loss": 3.0})):
        watch.see(step, {name: torch.tensor(value) for name, value in figures.items()})
    assert watch.look(ALONE) == ({"loss": 3.0}, None)
    watch.see(3, {"loss": torch.tensor(1.0), "expert_reward": torch.tensor(0.25)})
    watch.see(4, {"loss": torch.tensor(2.0), "expert_reward": torch.tensor(math.nan)})
    figures, fault = watch.look(ALONE)
    assert fault is not None
    assert (fault.step, fault.reason) == (4, "expert_reward is nan")


class Asked(World):
    """One rank of two whose other never wants to stop; it counts how often they ask one another."""

    num_questions = 0

    def any(self, flag: bool) -> bool:
        Asked.num_questions += 1
        return flag

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def wait(self) -> None:
        pass


def test_ranks_ask_one_another_every_fourth_step_and_before_a_checkpoint(tmp_path: Path) -> None:
    """A request is heard at the next of these."""
    world = Asked(0, 2, torch.device("cpu"))
    train(Sum(), run(num_steps=20, checkpoint_every=10), checkpointer=Checkpointer(tmp_path / "whole"), world=world)
    assert Asked.num_questions == len({4, 8, 10, 12, 16, 20}) + 2  # once before the first step, once behind the last checkpoint

    stopped = Sum(at={5: signal.SIGTERM})
    with pytest.raises(TryAgain, match="stopped after 8 of 20 steps"):
        train(stopped, run(num_steps=20, checkpoint_every=10), checkpointer=Checkpointer(tmp_path / "stopped"), world=world)


class Onlooker:
    """Looks every third step, and objects after that of ``objects_at``."""

    def __init__(self, seen: list[int], *, objects_at: int | None = None) -> None:
        self.seen, self._objects_at = seen, objects_at

    def is_due(self, done: int) -> bool:
        return done % 3 == 0

    def look(self, done: int) -> None:
        self.seen.append(done)

    def resume(self, done: int) -> None:
        self.seen[:] = [step for step in self.seen if step <= done]

    @property
    def objection(self) -> str | None:
        return "too good" if self._objects_at in self.seen else None


def test_an_objection_ends_the_run_with_its_state_saved_and_again_before_any_step(tmp_path: Path) -> None:
    seen, checkpointer = list[int](), Checkpointer(tmp_path)
    with pytest.raises(TrainingHalted, match="sum: stopped after 10 of 20 steps, state saved: too good") as ended:
        train(Sum(), run(), checkpointer=checkpointer, world=ALONE, monitor=Onlooker(seen, objects_at=9))
    assert ended.value.exit_code == 3, "trying again would find the same"
    again = Sum()
    with pytest.raises(TrainingHalted, match="after 10 of 20"):
        train(again, run(), checkpointer=checkpointer, world=ALONE, monitor=Onlooker(seen, objects_at=9))
    unbroken, gone_on = Sum(), Sum()
    curve = train(unbroken, run(), checkpointer=Checkpointer(tmp_path / "unbroken"), world=ALONE)
    assert train(gone_on, run(), checkpointer=checkpointer, world=ALONE, monitor=Onlooker(seen)) == curve
    assert torch.equal(gone_on.state, unbroken.state)
    assert seen == [3, 6, 9, 12, 15, 18]


def test_an_objection_at_the_last_step_keeps_the_run_from_its_end(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(TrainingHalted, match="after 18 of 18"):
            train(Sum(), run(18), checkpointer=Checkpointer(tmp_path), world=ALONE, monitor=Onlooker([18], objects_at=18))


def test_of_two_ranks_the_first_alone_looks_and_both_end_together(tmp_path: Path) -> None:
    for rank, seen in ((0, [3]), (1, [])):
        looks = list[int]()
        with pytest.raises(TrainingHalted) if rank == 0 else nullcontext():
            train(
                Sum(),
                run(num_steps=20, checkpoint_every=10),
                checkpointer=Checkpointer(tmp_path / str(rank)),
                world=Asked(rank, 2, torch.device("cpu")),
                monitor=Onlooker(looks, objects_at=3),
            )
        assert looks == seen, "an objection is heard at the next question, after 4 steps"


def test_looks_at_a_course_that_was_left_are_made_anew(tmp_path: Path) -> None:
    seen = list[int]()
    train(Walk({26: math.nan}), guarded(RollBackGuard(window=5)), checkpointer=Checkpointer(tmp_path), world=ALONE, monitor=Onlooker(seen))
    assert seen == list(range(3, 40, 3))


def test_the_handlers_in_force_before_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    train(Sum(), run(), checkpointer=Checkpointer(tmp_path), world=ALONE)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_curve_is_bounded_however_long_the_run(tmp_path: Path) -> None:
    curve = train(Sum(), run(num_steps=1050, checkpoint_every=500), checkpointer=Checkpointer(tmp_path), world=ALONE)
    assert len(curve) == 105
    assert curve[-1]["images"] == 1050 * 4
