"""F2: SIGTERM to cache, pretrain or distill in any of its modes: the process ends with 75, and the same command goes on."""

import os
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rglcd.errors import TryAgain
from tests.faults.compare import assert_equal_artifacts
from tests.faults.rounds import Trial
from tests.faults.tiny_runs import Command, Watch, write_line
from tests.faults.watched_process import file_operations
from tests.tiny_line import tiny_config

_RUN = ("distillation.arms=[rg]", "distillation.match_compute=false", "distillation.num_steps=8", "distillation.checkpoint_every=2")
_LORA = "distillation.student={kind: lora, rank: 2, alpha: 4, targets: [to_q, conv1]}"
_MODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "cache": ("cache", ("caching.batch_size=2",)),
    "pretrain": ("pretrain", ("pretraining.num_steps=8",)),
    "latent reward": ("distill", ()),
    "pixel reward": ("distill", ("reward={kind: pixel, weight: 1.0, chunk_size: 2}",)),
    "no reward": ("distill", ("reward={kind: none}",)),
    "own prediction": ("distill", ("reward={kind: pixel, weight: 1.0, chunk_size: 1, prediction: {kind: own, every: 2}}",)),
    "LoRA": ("distill", ("reward={kind: none}", _LORA)),
    "micro-batches": ("distill", ("distillation.micro_batch=2", "distillation.activations=recomputed")),
    "roll-back": ("distill", ("distillation.guard={kind: roll_back, window: 2}",)),
}
_MOMENTS = ("a file operation", "a checkpoint's writing", "the clock")
_EACH = 3
_TRIES = 5


@dataclass
class Modes:
    """The tiny line, and an unbroken run of each mode that was wanted."""

    root: Path
    operations: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def command(self, mode: str, folder: Path) -> Command:
        stage, overrides = _MODES[mode]
        return Command(stage, tiny_config(*_RUN, *overrides), self.root / "line", folder)

    def unbroken(self, mode: str) -> Command:
        command = self.command(mode, self.root / mode.replace(" ", "-"))
        if mode not in self.operations:
            self.operations[mode] = command.run_unbroken()
        return command


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> Modes:
    root = tmp_path_factory.mktemp("modes")
    write_line(root / "line", tiny_config())
    return Modes(root)


@pytest.mark.fault(
    "F2",
    fault="SIGTERM at a random file operation, while a checkpoint is written, or after a random time, to cache, pretrain and distill "
    f"(tiny networks; {', '.join(list(_MODES)[2:])})",
    must="the process ends with 75; the same command again: every file byte-identical to an unbroken run's, no stray file",
    unit="stops",
    num_rounds=len(_MODES) * len(_MOMENTS) * _EACH,
    sample=(4, len(_MODES) + 2),
)
def test_a_run_that_is_asked_to_stop_ends_with_75_and_goes_on(trial: Trial, modes: Modes, tmp_path: Path) -> None:
    mode = list(_MODES)[trial.number % len(_MODES)]
    moment = _MOMENTS[trial.number // len(_MODES) % len(_MOMENTS)]
    unbroken, rng = modes.unbroken(mode), trial.rng()
    within = "checkpoints" if moment == "a checkpoint's writing" and mode != "cache" else ""
    wanted = [operation for operation in modes.operations[mode] if within in operation]
    for attempt in range(_TRIES):
        command = modes.command(mode, tmp_path / str(attempt))
        if moment == "the clock":
            share = rng.uniform(0.1, 0.6)
            how, watch = f"after {share:.2f} of a run's time", _by_clock(share * _seconds_of(unbroken))
        else:
            at = rng.randint(1, len(wanted))
            how, watch = f"before operation {at} of {len(wanted)} ({wanted[at - 1]})", _at_operation(command.folder, at, within)
        code = command.run(watch=watch)
        if moment != "the clock" or code != 0:  # by the clock, it may have been faster this time
            break
    assert code == TryAgain.exit_code, f"{mode}, stopped {how}: ended with {code}: {command.log()}"
    code = command.run()
    assert code == 0, f"{mode}, stopped {how}: the same command ended with {code}: {command.log()}"
    num_files = assert_equal_artifacts(command.output, unbroken.output)
    trial.record(f"{mode}: stopped {how} with 75; then {num_files} files as in an unbroken run, no others")


def _at_operation(folder: Path, at: int, within: str) -> Watch:
    return lambda: file_operations(folder, kill_at=at, sent=signal.SIGTERM, within=within)


def _by_clock(seconds: float) -> Watch:
    def watch() -> tuple[str, ...]:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
        return ()

    return watch


def _seconds_of(command: Command) -> float:
    """How long the unbroken run took: from its parameters' file to its log's last line."""
    return (command.folder / "log.txt").stat().st_mtime - (command.folder / "params.yaml").stat().st_mtime
