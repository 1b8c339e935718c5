"""After a kill or an interruption the same command continues, and ends with the digests of an unbroken run."""

import os
import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest

from tests.end_to_end.conftest import Checkout

pytestmark = pytest.mark.slow


def test_pipeline_killed_repeatedly_ends_with_the_same_digests(checkout: Checkout, unbroken: Checkout) -> None:
    pause, kills = 5.0, 0
    while True:
        process = checkout.start("rglcd", "run", "all")
        time.sleep(pause)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Longer each time: however slow the machine, some attempt gets past its imports and the next stage.
        pause, kills = 1.35 * pause, kills + 1
    assert process.returncode == 0, process.communicate()[0]
    assert kills >= 2
    assert checkout.digests() == unbroken.digests()
    unfinished = (".staging", ".partial")
    left = [path for path in (checkout.root / "artifacts").rglob("*") if path.name.endswith(unfinished) or ".checkpoints" in path.name]
    assert left == []


def _wait_for_a_task(process: subprocess.Popen[str]) -> None:
    """Until Kubeflow's runner has started one: how long imports take depends on what else the machine does."""
    with suppress(psutil.NoSuchProcess):
        while not any("kfp.dsl.executor_main" in child.cmdline() for child in psutil.Process(process.pid).children(recursive=True)):
            if process.poll() is not None:
                return
            time.sleep(0.1)


def _session(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getsid(pid)
    return None


def test_interrupted_kubeflow_run_continues_to_the_same_digests(checkout: Checkout, unbroken: Checkout) -> None:
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        process = checkout.start("python", "-m", "pipelines", "run")
        _wait_for_a_task(process)
        time.sleep(6)
        if process.poll() is not None:
            break
        if stop == signal.SIGINT:
            os.killpg(process.pid, stop)  # as a terminal sends it
        else:
            process.send_signal(stop)
        said, _ = process.communicate(timeout=180)
        assert process.returncode == 75, said
        assert [other for other in psutil.process_iter() if _session(other.pid) == process.pid] == []
    done = checkout.run("python", "-m", "pipelines", "run")
    assert done.returncode == 0, done.stderr
    assert checkout.digests() == unbroken.digests()
