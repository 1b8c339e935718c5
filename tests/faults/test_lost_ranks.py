"""F12: one of four ranks is killed, or frozen, somewhere in distill; the others give it up, and the same command goes on."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from torch import Tensor

from rglcd.config import dump
from rglcd.stages.table import inputs_of, stage_named
from tests.faults.micro_pipeline import MicroPipeline
from tests.faults.rounds import Trial

_RANKS = 4
_COLLECTIVE_TIMEOUT = 15  # seconds
_GONE_WITHIN = 60.0
_DONE_WITHIN = 900.0
_MOST_OFF = 1e-5  # what one and two ranks may differ by; after its restart DDP groups gradients anew, and sums in another order
_SIGNALS = (signal.SIGKILL, signal.SIGSTOP)


@dataclass
class FourRanks:
    """Distillation of the micro preset in four processes, after one such run that nobody disturbed."""

    micro: MicroPipeline
    folder: Path
    num_events: int = 0

    def start(self, root: Path) -> subprocess.Popen[bytes]:
        """The parent of four new ranks, whose student is ``root/student``."""
        root.mkdir(exist_ok=True)
        self._progress.unlink(missing_ok=True)
        stage = stage_named("distill")
        places = {name: self.micro.root / name for name in inputs_of(stage, self.micro.config)} | {"student": root / "student"}
        command = [sys.executable, "-m", "rglcd.launch.process_group", "--standalone", "--nproc-per-node", str(_RANKS)]
        command += ["-m", "rglcd", "run", stage.name, "--params", str(self.folder / "params.yaml")]
        command += [word for name, place in places.items() for word in ("--artifact", f"{name}={place}")]
        variables = {
            "PYTHONPATH": os.pathsep.join(("src", ".")),
            "OMP_NUM_THREADS": "1",
            "RGLCD_COLLECTIVE_TIMEOUT": str(_COLLECTIVE_TIMEOUT),
        }
        variables |= {"RGLCD_PROGRESS": str(self._progress)}
        return subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def events(self) -> int:
        """How many events of progress the newest ranks have reported."""
        return self._progress.read_bytes().count(b"\n") if self._progress.is_file() else 0

    @property
    def student(self) -> Path:
        return self.folder / "unbroken" / "student"

    @property
    def _progress(self) -> Path:
        return self.folder / "progress.jsonl"


@pytest.fixture(scope="module")
def four_ranks(micro: MicroPipeline, tmp_path_factory: pytest.TempPathFactory) -> FourRanks:
    micro.upto("pretrain")
    ranks = FourRanks(micro, tmp_path_factory.mktemp("ranks"))
    (ranks.folder / "params.yaml").write_text(dump(micro.config), encoding="utf-8")
    parent = ranks.start(ranks.folder / "unbroken")
    exit_code = parent.wait(_DONE_WITHIN)
    assert exit_code == 0, f"four ranks fail without any fault: exit code {exit_code}"
    ranks.num_events = ranks.events()
    return ranks


@pytest.mark.slow
@pytest.mark.fault(
    "F12",
    fault="SIGKILL, or SIGSTOP, to one of four ranks at a random point of distill (micro preset)",
    must=f"all ranks gone within {_GONE_WITHIN:.0f} s; the same command again: the weights of four unbroken ranks, to {_MOST_OFF:.0e}",
    unit="lost ranks",
    num_rounds=40,
    sample=(1,),
)
def test_ranks_that_lose_one_end_and_go_on_when_started_again(trial: Trial, four_ranks: FourRanks, tmp_path: Path) -> None:
    sent, rng, num_events = _SIGNALS[trial.number % 2], trial.rng(), four_ranks.num_events
    at, rank = rng.randint(1, num_events * 4 // 5), rng.randrange(_RANKS)
    parent = four_ranks.start(tmp_path)
    _wait(lambda: four_ranks.events() >= at or parent.poll() is not None, _DONE_WITHIN)
    ranks = {int(process.environ()["RANK"]): process for process in psutil.Process(parent.pid).children()}
    ranks[rank].send_signal(sent)
    started = time.monotonic()
    how = f"{sent.name} to rank {rank} at event {at} of {num_events}"
    gone = _wait(lambda: not any(process.is_running() for process in ranks.values()), _GONE_WITHIN)
    seconds = time.monotonic() - started
    if not gone:
        for process in (psutil.Process(parent.pid), *ranks.values()):
            process.kill()
    assert gone, f"{how}: ranks are there after {_GONE_WITHIN:.0f} s"
    assert parent.wait(_DONE_WITHIN) != 0, f"{how}: the run ended as if nothing had been"
    exit_code = four_ranks.start(tmp_path).wait(_DONE_WITHIN)
    assert exit_code == 0, f"{how}: the same command ended with {exit_code}"
    off = _largest_difference(tmp_path / "student", four_ranks.student)
    assert off <= _MOST_OFF, f"{how}: weights differ by {off:.1e} of their norm"
    trial.record(f"{how}: all gone after {seconds:.1f} s; then weights within {off:.1e} of their norm from four unbroken ranks'")


def _largest_difference(student: Path, unbroken: Path) -> float:
    """How far the weights are from the unbroken ones, as a share of their norm: of the file in which it is most."""
    names = sorted(path.relative_to(unbroken) for path in unbroken.rglob("*.safetensors"))
    assert names, "no weights are there"
    assert names == sorted(path.relative_to(student) for path in student.rglob("*.safetensors")), "other weights are there"
    shares = []
    for name in names:
        made, expected = load_file(student / name), load_file(unbroken / name)
        differences = [made[key].double() - expected[key].double() for key in expected]
        shares.append(math.hypot(*map(_norm, differences)) / math.hypot(*map(_norm, expected.values())))
    return max(shares)


def _norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())


def _wait(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
