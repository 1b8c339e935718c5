"""F1: SIGKILL in every stage of the micro line, at a moment that chance has chosen; then the same command again."""

import importlib
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.apart import apart, touches_of
from benchmarks.faults.likeness import require_equal
from benchmarks.faults.row import Row, Suite, Trial, require
from rglcd.config import Config, load_preset
from rglcd.stages.table import SOURCE, inputs_of, stage_named, stages_of
from rglcd.toy.corpus import write_corpus
from tests.tiny_line import run

_PLACES = ("shard", "cache", "pretrain", "distill", "evaluate", "report")
"""Where kills fall. ``report``: in evaluate, when everything is drawn and the report is being written."""
_KILLS_EACH = 20
_TRIES = 5
_PATIENCE = 900.0  # seconds


@dataclass(frozen=True)
class Unbroken:
    """What a run that nobody disturbed took: seconds, and what it did to the file system, in order."""

    seconds: float
    touches: tuple[str, ...]


class MicroLine:
    """The micro line under ``root``, unbroken, each stage made when it is first wanted."""

    def __init__(self, root: Path) -> None:
        self.root, self.config = root, load_preset("micro")
        self._stages: dict[str, Unbroken] = {}
        write_corpus(root / "data", num_images=64, num_reference=16)
        for stage in stages_of(self.config):
            importlib.import_module(stage.entry.partition(":")[0])  # once, so that no process of a round spends its time on it

    def upto(self, stage: str) -> Unbroken:
        """``stage``, and every one before it."""
        for each in stages_of(self.config):
            if each.name not in self._stages:
                self._stages[each.name] = _unbroken(self.root, self.config, each.name)
            if each.name == stage:
                break
        return self._stages[stage]


def _unbroken(root: Path, config: Config, stage: str) -> Unbroken:
    def work() -> list[str]:
        touched = touches_of(root)
        run(root, config, stage)
        return touched

    ended = apart(work, within=_PATIENCE)
    require(ended.error is None and ended.value is not None, f"{stage} fails without any fault: {ended.error!r}, {ended.exit_code}")
    return Unbroken(ended.seconds, tuple(ended.value))


@contextmanager
def _kills(scratch: Path, seed: int) -> Iterator[Trial]:
    line = MicroLine(scratch / "unbroken")

    def trial(number: int) -> str:
        place = _PLACES[number % len(_PLACES)]
        stage = "evaluate" if place == "report" else place
        unbroken, rng = line.upto(stage), random.Random(f"{seed}/{number}")
        (output,) = stage_named(stage).outputs
        root = _workspace(scratch / "killed", line, stage)
        if place != "report" and number // len(_PLACES) % 2:
            how = _kill_by_clock(root, line.config, stage, share=rng.uniform(0.02, 0.98), seconds=unbroken.seconds)
        else:
            last_drawn = max((at for at, touch in enumerate(unbroken.touches) if "rename" in touch and "/draws/" in touch), default=0)
            at = rng.randint(last_drawn + 2 if place == "report" else 1, len(unbroken.touches))
            ended = apart(lambda: _killed_at(root, line.config, stage, at), within=_PATIENCE)
            require(ended.was_killed, f"{place}: not killed at touch {at}, but {ended.exit_code}, {ended.error!r}")
            how = f"before touch {at} of {len(unbroken.touches)} of the file system ({unbroken.touches[at - 1]})"
        again = apart(lambda: run(root, line.config, stage).manifest.digest, within=_PATIENCE)
        require(again.error is None and again.exit_code == 0, f"{place}, killed {how}: the same command ended with {again.error!r}")
        num_files = require_equal(root / output, line.root / output)
        shutil.rmtree(root)
        return f"{place}: killed {how}; then {num_files} files as in an unbroken run, no others"

    yield trial


def _workspace(root: Path, line: MicroLine, stage: str) -> Path:
    """A folder with what ``stage`` reads."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name in inputs_of(stage_named(stage), line.config):
        folder = "data" if name == SOURCE else name
        (root / folder).symlink_to(line.root / folder)
    return root


def _killed_at(root: Path, config: Config, stage: str, at: int) -> None:
    touches_of(root, kill_at=at)
    run(root, config, stage)


def _kill_by_clock(root: Path, config: Config, stage: str, *, share: float, seconds: float) -> str:
    """Kill after a share of the seconds that the stage takes; where it was faster this time, that is what it takes."""
    (output,) = stage_named(stage).outputs
    for _ in range(_TRIES):
        ended = apart(lambda: run(root, config, stage).seconds, within=share * seconds)
        if ended.was_killed:
            return f"after {share * seconds:.2f} s"
        require(ended.error is None, f"{stage} failed before it was killed: {ended.error!r}")
        shutil.rmtree(root / output)
        seconds = ended.seconds
    raise AssertionError(f"{stage} was never killed, in {_TRIES} attempts")


KILLS = Row(
    name="F1",
    fault="SIGKILL at 20 random points each of shard, cache, pretrain, distill, evaluate and the writing of the report (micro preset)",
    must="the same command again: every file byte-identical to an unbroken run's, no stray file",
    unit="kills",
    num_rounds=_KILLS_EACH * len(_PLACES),
    sample=range(len(_PLACES)),
    open=_kills,
    suite=Suite.SLOW,
)
