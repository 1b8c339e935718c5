"""F12: one of four ranks is killed, or frozen, somewhere in the distillation; the others give it up, and the same command goes on."""

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.faults.kills import MicroLine
from benchmarks.faults.row import Row, Suite, Trial, require
from rglcd.config import dump
from rglcd.stages.table import inputs_of, stage_named

_RANKS = 4
_PATIENCE_SECONDS = 15
_GONE_WITHIN = 60.0
_DONE_WITHIN = 900.0
_MOST_OFF = 1e-5  # what one and two ranks may differ by; after its restart DDP groups gradients anew, and sums in another order
_SIGNALS = (signal.SIGKILL, signal.SIGSTOP)


@contextmanager
def _ranks(scratch: Path, seed: int) -> Iterator[Trial]:
    line = MicroLine(scratch / "line")
    line.upto("pretrain")
    (scratch / "params.yaml").write_text(dump(line.config), encoding="utf-8")
    gang = _start(scratch, line, scratch / "unbroken")
    require(gang.wait(_DONE_WITHIN) == 0, f"four ranks fail without any fault: exit code {gang.returncode}")
    num_events = _events(scratch)

    def trial(number: int) -> str:
        sent, rng, root = _SIGNALS[number % 2], random.Random(f"{seed}/{number}"), scratch / "broken"
        shutil.rmtree(root, ignore_errors=True)
        at, rank = rng.randint(1, num_events * 4 // 5), rng.randrange(_RANKS)
        gang = _start(scratch, line, root)
        _wait(lambda: _events(scratch) >= at or gang.poll() is not None, _DONE_WITHIN)
        ranks = {int(process.environ()["RANK"]): process for process in psutil.Process(gang.pid).children()}
        ranks[rank].send_signal(sent)
        started = time.monotonic()
        how = f"{sent.name} to rank {rank} at event {at} of {num_events}"
        gone = _wait(lambda: not any(process.is_running() for process in ranks.values()), _GONE_WITHIN)
        seconds = time.monotonic() - started
        if not gone:
            for process in (psutil.Process(gang.pid), *ranks.values()):
                process.kill()
        require(gone, f"{how}: ranks are there after {_GONE_WITHIN:.0f} s")
        require(gang.wait(_DONE_WITHIN) != 0, f"{how}: the gang ended as if nothing had been")
        again = _start(scratch, line, root)
        require(again.wait(_DONE_WITHIN) == 0, f"{how}: the same command ended with {again.returncode}")
        off = _off(root / "student", scratch / "unbroken" / "student")
        require(off <= _MOST_OFF, f"{how}: weights differ by {off:.1e} of their norm")
        return f"{how}: all gone after {seconds:.1f} s; then weights within {off:.1e} of their norm from four unbroken ranks'"

    yield trial


def _off(student: Path, unbroken: Path) -> float:
    """How far the weights are from the unbroken ones, as a share of their norm: of the file in which it is most."""
    names = sorted(path.relative_to(unbroken) for path in unbroken.rglob("*.safetensors"))
    require(
        bool(names) and names == sorted(path.relative_to(student) for path in student.rglob("*.safetensors")), "other weights are there"
    )
    shares = []
    for name in names:
        made, expected = load_file(student / name), load_file(unbroken / name)
        differences = [made[key].double() - expected[key].double() for key in expected]
        shares.append(math.hypot(*map(_norm, differences)) / math.hypot(*map(_norm, expected.values())))
    return max(shares)


def _norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())


def _start(scratch: Path, line: MicroLine, root: Path) -> subprocess.Popen[bytes]:
    root.mkdir(exist_ok=True)
    (scratch / "progress.jsonl").unlink(missing_ok=True)
    stage = stage_named("distill")
    places = {name: line.root / name for name in inputs_of(stage, line.config)} | {"student": root / "student"}
    command = [sys.executable, "-m", "rglcd.launch.gang", "--standalone", "--nproc-per-node", str(_RANKS)]
    command += ["-m", "rglcd", "run", stage.name, "--params", str(scratch / "params.yaml")]
    command += [word for name, place in places.items() for word in ("--artifact", f"{name}={place}")]
    told = {"PYTHONPATH": os.pathsep.join(("src", ".")), "OMP_NUM_THREADS": "1", "RGLCD_PATIENCE": str(_PATIENCE_SECONDS)}
    told |= {"RGLCD_PROGRESS": str(scratch / "progress.jsonl")}
    return subprocess.Popen(command, env={**os.environ, **told}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _events(scratch: Path) -> int:
    """How much progress the ranks of the moment have reported."""
    path = scratch / "progress.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _wait(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


RANKS = Row(
    name="F12",
    fault="SIGKILL, or SIGSTOP, to one of four ranks at a random point of distill (micro preset)",
    must=f"all ranks gone within {_GONE_WITHIN:.0f} s; the same command again: the weights of four unbroken ranks, to {_MOST_OFF:.0e}",
    unit="lost ranks",
    num_rounds=40,
    sample=(1,),
    open=_ranks,
    suite=Suite.SLOW,
)
