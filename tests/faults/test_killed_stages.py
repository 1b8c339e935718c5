"""F1: SIGKILL in every stage of the micro preset, at a random point; then the same command again."""

import shutil
from pathlib import Path

import pytest

from rglcd.config import Config
from rglcd.stages.table import stage_named
from tests.faults.compare import assert_equal_artifacts
from tests.faults.micro_pipeline import TIMEOUT, MicroPipeline
from tests.faults.rounds import Trial
from tests.faults.watched_process import file_operations, run_forked
from tests.tiny_line import run

_PLACES = ("shard", "cache", "pretrain", "distill", "evaluate", "report")
"""Where kills fall. ``report``: in evaluate, when everything is drawn and the report is being written."""
_KILLS_EACH = 20
_TRIES = 5


@pytest.mark.slow
@pytest.mark.fault(
    "F1",
    fault="SIGKILL at 20 random points each of shard, cache, pretrain, distill, evaluate and the writing of the report (micro preset)",
    must="the same command again: every file byte-identical to an unbroken run's, no stray file",
    unit="kills",
    num_rounds=_KILLS_EACH * len(_PLACES),
    sample=range(len(_PLACES)),
)
def test_killed_stage_run_again_makes_the_files_of_an_unbroken_run(trial: Trial, micro: MicroPipeline, tmp_path: Path) -> None:
    place = _PLACES[trial.number % len(_PLACES)]
    stage = "evaluate" if place == "report" else place
    unbroken, rng, config = micro.upto(stage), trial.rng(), micro.config
    (output,) = stage_named(stage).outputs
    micro.link_inputs(tmp_path, stage)
    if place != "report" and trial.number // len(_PLACES) % 2:
        how = _kill_by_clock(tmp_path, config, stage, share=rng.uniform(0.02, 0.98), seconds=unbroken.seconds)
    else:
        operations = unbroken.operations
        last_drawn = max((at for at, operation in enumerate(operations) if "rename" in operation and "/draws/" in operation), default=0)
        at = rng.randint(last_drawn + 2 if place == "report" else 1, len(operations))
        ended = run_forked(lambda: _run_until(tmp_path, config, stage, at), timeout=TIMEOUT)
        assert ended.was_killed, f"{place}: not killed at file operation {at}, but {ended.exit_code}, {ended.error!r}"
        how = f"before file operation {at} of {len(operations)} ({operations[at - 1]})"
    again = run_forked(lambda: run(tmp_path, config, stage).manifest.digest, timeout=TIMEOUT)
    assert again.error is None, f"{place}, killed {how}: the same command ended with {again.error!r}"
    assert again.exit_code == 0, f"{place}, killed {how}: the same command ended with exit code {again.exit_code}"
    num_files = assert_equal_artifacts(tmp_path / output, micro.root / output)
    trial.record(f"{place}: killed {how}; then {num_files} files as in an unbroken run, no others")


def _run_until(root: Path, config: Config, stage: str, at: int) -> None:
    file_operations(root, kill_at=at)
    run(root, config, stage)


def _kill_by_clock(root: Path, config: Config, stage: str, *, share: float, seconds: float) -> str:
    """Kill after a share of the seconds that the stage takes; where it was faster this time, that is what it takes."""
    (output,) = stage_named(stage).outputs
    for _ in range(_TRIES):
        ended = run_forked(lambda: run(root, config, stage).seconds, timeout=share * seconds)
        if ended.was_killed:
            return f"after {share * seconds:.2f} s"
        assert ended.error is None, f"{stage} failed before it was killed: {ended.error!r}"
        shutil.rmtree(root / output)
        seconds = ended.seconds
    raise AssertionError(f"{stage} was never killed, in {_TRIES} attempts")
