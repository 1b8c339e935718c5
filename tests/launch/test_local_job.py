"""What happens to a job's process happens to the one that waits for it: exit codes, messages, signals."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torchx import specs

from rglcd.errors import InputError, TrainingDiverged, TryAgain
from rglcd.launch.failure import JobError
from rglcd.launch.local_job import run_local_job


def app(*args: str) -> specs.AppDef:
    role = specs.Role(name="test", image=str(Path.cwd()), entrypoint=sys.executable, args=list(args))
    return specs.AppDef(name="rglcd-test", roles=[role])


def test_job_that_succeeds_returns_and_its_log_is_shown(capfd) -> None:
    run_local_job(app("-c", "print('said by the job')"))
    assert "said by the job" in capfd.readouterr().err


@pytest.mark.parametrize(("code", "error"), [(2, InputError), (3, TrainingDiverged), (75, TryAgain)])
def test_known_exit_code_of_a_job_is_raised_as_its_exception(code: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_local_job(app("-c", f"raise SystemExit({code})"))


@pytest.mark.parametrize(("body", "code"), [("raise SystemExit(9)", 9), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_other_exit_codes_of_a_job_are_kept(body: str, code: int) -> None:
    with pytest.raises(JobError) as caught:
        run_local_job(app("-c", body))
    assert caught.value.exit_code == code


REFUSES = """
from rglcd.errors import InputError
from rglcd.launch.boundary import process_boundary
with process_boundary():
    raise InputError("row 7: no caption")
"""


def test_message_of_a_failed_job_is_in_the_exception_and_not_in_the_log(capfd) -> None:
    with pytest.raises(InputError, match=r"^row 7: no caption$"):
        run_local_job(app("-c", REFUSES))
    assert "row 7" not in capfd.readouterr().err


def test_signal_handlers_are_restored_after_a_job() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run_local_job(app("-c", ""))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


RANK = """
import os, sys, time
from pathlib import Path
from rglcd.errors import TrainingDiverged
from rglcd.launch.boundary import process_boundary
Path(sys.argv[1], os.environ["RANK"]).touch()
with process_boundary():
    if os.environ["RANK"] == "1":
        while not Path(sys.argv[1], "0").exists():
            time.sleep(0.05)
        raise TrainingDiverged("step 12: the loss is nan")
    time.sleep(30)
"""


def test_code_and_message_of_a_rank_survive_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    ranks = ("-m", "rglcd.launch.process_group", "--standalone", "--nproc-per-node", "2", str(script), str(tmp_path))
    with pytest.raises(TrainingDiverged, match=r"^step 12: the loss is nan$"):
        run_local_job(app(*ranks))
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()


def test_unexpected_error_of_a_rank_is_its_line_and_code_70(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)  # as if this were no pod
    script = tmp_path / "rank.py"
    script.write_text(RANK.replace('raise TrainingDiverged("step 12: the loss is nan")', '{}["missing"]'))
    ranks = ("-m", "rglcd.launch.process_group", "--standalone", "--nproc-per-node", "2", str(script), str(tmp_path))
    with pytest.raises(JobError, match=r"^unexpected error, please report it: KeyError: 'missing'; its traceback is in \S+$") as ended:
        run_local_job(app(*ranks))
    assert ended.value.exit_code == 70
    assert "Traceback" not in capfd.readouterr().err


SUBMITTER = """
import sys
from torchx import specs
from rglcd.launch.boundary import process_boundary
from rglcd.launch.local_job import run_local_job
role = specs.Role(name="test", image=sys.argv[1], entrypoint=sys.executable, args=["-c", sys.argv[2]])
with process_boundary():
    run_local_job(specs.AppDef(name="rglcd-test", roles=[role]))
"""

SAVES_ON_SIGTERM = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_launcher_lets_the_job_save_its_state(tmp_path: Path, sent: signal.Signals) -> None:
    words = [sys.executable, "-c", SUBMITTER, str(tmp_path), SAVES_ON_SIGTERM]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as submitter:
        assert submitter.stderr is not None
        line = submitter.stderr.readline()
        while line and "ready" not in line:
            line = submitter.stderr.readline()
        started = time.monotonic()
        submitter.send_signal(sent)
        assert submitter.wait(timeout=20) == 75
        assert time.monotonic() - started < 8  # it got the signal, and was not killed after the time it is given
