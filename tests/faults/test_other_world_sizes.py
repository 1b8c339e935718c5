"""F3: a run whose every attempt has another number of ranks learns what one process learns at a stretch."""

import math
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from rglcd.config import Config
from rglcd.errors import TryAgain
from rglcd.training.checkpoint import Checkpointer
from rglcd.training.distributed import join_world
from rglcd.training.loop import Run, train
from tests.faults.rounds import Trial
from tests.faults.tiny_runs import Command, exit_codes, world_variables, write_line
from tests.tiny_line import tiny_config
from tests.training.conftest import materials_of
from tests.training.double_precision import DoubleDistiller, double_distiller

_STEPS = 8
_RUN = ("distillation.arms=[rg]", "distillation.match_compute=false", f"distillation.num_steps={_STEPS}", "distillation.checkpoint_every=3")
_MODES: dict[str, tuple[str, ...]] = {
    "latent reward": (),
    "pixel reward": ("reward={kind: pixel, weight: 1.0, chunk_size: 1}",),
    "no reward": ("reward={kind: none}",),
}
_ORDERS = ((1, 2, 1), (2, 1, 2))
_PRECISIONS = {"float32": 1e-5, "float64": 1e-10}
_EACH = 3


@dataclass
class Lines:
    """The tiny line, and the weights of one process that nobody stopped, of each mode and precision that was wanted."""

    root: Path
    weights: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)

    def unbroken(self, mode: str, precision: str) -> dict[str, Tensor]:
        if (mode, precision) not in self.weights:
            folder = self.root / f"{mode} {precision}".replace(" ", "-")
            codes = attempt(self, mode, precision, folder, num_ranks=1, stop_at_event=None)
            assert codes == {0}, f"{mode} in {precision} fails without any fault: {codes}"
            self.weights[mode, precision] = weights_of(folder)
        return self.weights[mode, precision]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    root = tmp_path_factory.mktemp("worlds")
    write_line(root / "line", tiny_config())
    return Lines(root)


@pytest.mark.fault(
    "F3",
    fault="distill by one, two and one ranks in turn, or two, one and two (tiny networks, each reward): the first two stopped at random",
    must="each attempt goes on where the one before stopped; the weights of one unbroken process, to 1e-05 of their norm in float32 and "
    "1e-10 in float64",
    unit="runs",
    num_rounds=len(_MODES) * len(_ORDERS) * len(_PRECISIONS) * _EACH,
    sample=(1,),
)
def test_another_number_of_ranks_goes_on_to_the_same_weights(trial: Trial, lines: Lines, tmp_path: Path) -> None:
    precision = list(_PRECISIONS)[trial.number % 2]
    order = _ORDERS[trial.number // 2 % 2]
    mode = list(_MODES)[trial.number // 4 % len(_MODES)]
    expected, rng = lines.unbroken(mode, precision), trial.rng()
    # Each attempt reports a step, and what it saves, as an event: these stop within the steps that are left.
    stops = (rng.randint(1, 4), rng.randint(1, 3), None)
    for num_ranks, stop in zip(order, stops, strict=True):
        codes = attempt(lines, mode, precision, tmp_path, num_ranks=num_ranks, stop_at_event=stop)
        wanted = {0} if stop is None else {TryAgain.exit_code}
        assert codes == wanted, f"{mode}, {precision}: {num_ranks} ranks asked to stop at event {stop} ended with {codes}"
    off = difference(weights_of(tmp_path), expected)
    how = f"{mode} in {precision} by {order[0]}, {order[1]} and {order[2]} ranks, stopped at their events {stops[0]} and {stops[1]}"
    assert off <= _PRECISIONS[precision], f"{how}: weights differ by {off:.1e} of their norm"
    trial.record(f"{how}: weights within {off:.1e} of their norm from one process's")


def attempt(lines: Lines, mode: str, precision: str, folder: Path, *, num_ranks: int, stop_at_event: int | None) -> set[int | None]:
    """The exit codes of the ranks."""
    rate = "distillation.learning_rate=1e-5" if precision == "float32" else "distillation.learning_rate=1e-3"
    config = tiny_config(*_RUN, *_MODES[mode], rate)
    if precision == "float32":
        return Command("distill", config, lines.root / "line", folder).run_ranks(num_ranks, stop_at_event=stop_at_event)
    folder.mkdir(exist_ok=True)
    worlds = world_variables(num_ranks, progress=folder / "progress.jsonl")
    return set(exit_codes([_double_rank(lines.root / "line", config, folder, world, stop_at_event) for world in worlds]))


def _double_rank(line: Path, config: Config, folder: Path, world: Mapping[str, str], stop_at_step: int | None) -> ForkProcess:
    """A rank that trains in float64, which no configuration asks for, and counts its own steps for events."""

    class Stopped(DoubleDistiller):
        num_steps = 0

        def step(self, step: int) -> dict[str, Tensor]:
            self.num_steps += 1
            if self.num_steps == stop_at_step and self.world.is_main:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step(step)

    def act() -> None:
        os.environ.update(world)
        with join_world() as joined:
            distiller = double_distiller(Stopped, materials_of(line, config), config, world=joined)
            run = Run("double", _STEPS, config.distillation.batch_size, config.distillation.checkpoint_every)
            try:
                train(distiller, run, checkpointer=Checkpointer(folder / "checkpoints"), world=joined)
            except TryAgain as stopped:
                raise SystemExit(stopped.exit_code) from None
            if joined.is_main:
                parts = distiller.parts()
                tensors = {f"{part}/{name}": tensor for part in ("student", "average") for name, tensor in parts[part].items()}
                save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / "weights.safetensors")

    process = get_context("fork").Process(target=act)
    process.start()
    return process


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All weights that a run wrote, by file and name."""
    files = (
        [folder / "weights.safetensors"]
        if (folder / "weights.safetensors").is_file()
        else sorted((folder / "student").rglob("*.safetensors"))
    )
    weights = {f"{path.relative_to(folder)} {name}": tensor for path in files for name, tensor in load_file(path).items()}
    assert weights, f"{folder} holds no weights"
    return weights


def difference(made: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """As a share of the norm of all weights."""
    assert made.keys() == expected.keys()
    norms = [(float((made[name].double() - expected[name].double()).norm()), float(expected[name].double().norm())) for name in expected]
    return math.hypot(*(off for off, _ in norms)) / math.hypot(*(norm for _, norm in norms))
