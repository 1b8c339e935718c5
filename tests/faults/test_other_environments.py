"""F20: another clock, zone, locale, umask, home and hash seed change nothing."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rglcd.config import dump
from rglcd.stages.table import stages_of
from tests.faults.compare import assert_equal_artifacts
from tests.faults.micro_pipeline import MicroPipeline
from tests.faults.rounds import Trial

_HOMES = {"no HOME": None, "HOME=/proc": "/proc", "HOME=/nonexistent": "/nonexistent"}
_ZONES = ("UTC", "Asia/Kathmandu", "America/St_Johns", "Pacific/Kiritimati", ":nowhere")
_LOCALES = ("C", "POSIX", "tr_TR.UTF-8", "C.UTF-8")
_UMASKS = (0o000, 0o022, 0o027, 0o077)
_PLAIN_TEXT = ({}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
"""With the second, Python takes the locale at its word: in C, text is ASCII."""
_SECONDS = 1800

_CLOCK = '''
"""The wall clock of this process jumps at every look: years ahead, back before 1980, and what it was."""
import itertools, time
_jumps = itertools.cycle([0, 10 * 365 * 86400, -3600, -60 * 365 * 86400, 86400 * 30])
_time, _time_ns = time.time, time.time_ns
time.time = lambda: abs(_time() + next(_jumps))
time.time_ns = lambda: abs(_time_ns() + next(_jumps) * 10**9)
'''


@dataclass(frozen=True)
class Surroundings:
    """What the rounds share: a parameter file, a ``sitecustomize`` whose clock jumps, and locales, Turkish perhaps among them."""

    params: Path
    clock: Path
    locales: Path
    has_turkish: bool


@pytest.fixture(scope="module")
def surroundings(micro: MicroPipeline, tmp_path_factory: pytest.TempPathFactory) -> Surroundings:
    micro.upto(stages_of(micro.config)[-1].name)
    folder = tmp_path_factory.mktemp("surroundings")
    params, clock, locales = folder / "params.yaml", folder / "clock", folder / "locales"
    params.write_text(dump(micro.config), encoding="utf-8")
    clock.mkdir()
    (clock / "sitecustomize.py").write_text(_CLOCK, encoding="utf-8")
    return Surroundings(params, clock, locales, _install_turkish(locales))


@pytest.mark.slow
@pytest.mark.fault(
    "F20",
    fault="the micro preset with another zone, locale (C, Turkish), umask and hash seed, without a home or with one that cannot be "
    "written, and a wall clock that jumps",
    must="the files of all six stages byte-identical",
    unit="surroundings",
    num_rounds=20,
    sample=range(1),
)
def test_environment_does_not_change_any_file(trial: Trial, micro: MicroPipeline, surroundings: Surroundings, tmp_path: Path) -> None:
    rng = trial.rng()
    home, zone, locale = rng.choice(list(_HOMES)), rng.choice(_ZONES), rng.choice(_LOCALES)
    umask, jumps, plain = rng.choice(_UMASKS), bool(rng.randrange(2)), rng.choice(_PLAIN_TEXT)
    hash_seed = str(rng.randrange(1 << 32))
    paths = [*([str(surroundings.clock)] if jumps else []), "src", "."]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": hash_seed,
    }
    environment |= {"TZ": zone, "LC_ALL": locale, "LOCPATH": str(surroundings.locales)} | plain
    environment |= {} if _HOMES[home] is None else {"HOME": str(_HOMES[home])}
    outputs = [stage.outputs[0] for stage in stages_of(micro.config)]
    places = {"source": micro.root / "data"} | {name: tmp_path / name for name in outputs}
    command = [sys.executable, "-m", "rglcd", "run", "all", "--params", str(surroundings.params)]
    command += [word for name, place in places.items() for word in ("--artifact", f"{name}={place}")]
    ran = subprocess.run(command, env=environment, umask=umask, capture_output=True, text=True, timeout=_SECONDS, errors="replace")
    turkish = "" if surroundings.has_turkish or not locale.startswith("tr") else " (not installed here)"
    said = f"TZ={zone}, LC_ALL={locale}{turkish}, umask {umask:03o}, {home}, hash seed {hash_seed}"
    said += ", text as the locale has it" if plain else ""
    said += ", a clock that jumps" if jumps else ""
    assert ran.returncode == 0, f"{said}: exit code {ran.returncode}: {ran.stderr[-300:]}"
    num_files = sum(assert_equal_artifacts(tmp_path / name, micro.root / name) for name in outputs)
    trial.record(f"{said}: {num_files} files of all six stages as unbroken")


def _install_turkish(folder: Path) -> bool:
    """Turkish, whose capital of i is another letter, for processes that look in ``folder``; False where it cannot be had."""
    folder.mkdir()
    if shutil.which("localedef") is None:
        return False
    made = subprocess.run(["localedef", "-i", "tr_TR", "-f", "UTF-8", str(folder / "tr_TR.UTF-8")], capture_output=True)
    return made.returncode == 0
