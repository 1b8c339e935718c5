"""Every process ends with one line and an exit code, whatever went wrong in it."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rglcd.errors import UNEXPECTED, InputError, TrainingDiverged, TryAgain
from rglcd.launch.boundary import process_boundary
from rglcd.launch.failure import JobError, read_failure
from rglcd.launch.failure_table import Then
from rglcd.launch.job_reason import ended_by_cluster, failure_of, reason_of
from rglcd.launch.volcano_job import POLICIES

RGLCD = (sys.executable, "-m", "rglcd")
BROKEN = """
from rglcd.launch.boundary import process_boundary
with process_boundary():
    {}["missing"]
"""


@pytest.mark.parametrize(("error", "code"), [(InputError, 2), (TrainingDiverged, 3), (TryAgain, 75)])
def test_known_error_is_one_line_and_its_exit_code(monkeypatch, capsys, tmp_path: Path, error: type, code: int) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit) as ended, process_boundary():
        raise error("one line\nonly")
    assert ended.value.code == code
    assert capsys.readouterr().err == "rglcd: one line only\n"
    assert json.loads((tmp_path / "error.json").read_text())["message"]["errorCode"] == code


def test_exit_code_of_a_job_is_kept() -> None:
    with pytest.raises(SystemExit) as ended, process_boundary():
        raise JobError("killed", exit_code=137)
    assert ended.value.code == 137


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_this_user_may_not_use_is_said_with_its_owner(capsys, monkeypatch, tmp_path: Path, number: int) -> None:
    """A fresh volume is root's, and Kubeflow mounts it for user 10001: 35 lines of traceback before, tried three times."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("RGLCD_POD_NAME", raising=False)
    tmp_path.chmod(0o755)
    path = tmp_path / "shards" / ".lock"
    with pytest.raises(SystemExit) as ended, process_boundary():
        raise OSError(number, os.strerror(number), str(path))
    assert ended.value.code == InputError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    owned = f"({tmp_path} is user {os.getuid()}'s, mode 0755)"
    assert (
        line == f"rglcd: {path}: {os.strerror(number).lower()} for user {os.getuid()} {owned}; give it to this user, or name another folder"
    )


def test_in_a_pod_a_folder_of_root_s_names_the_job_that_gives_it_away(capsys, monkeypatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(SystemExit), process_boundary():
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), "/proc/shards/.lock")
    (line,) = capsys.readouterr().err.splitlines()
    assert "(/proc is user 0's, mode 0555); if it is a fresh claim's, the Job of manifests/fresh-claim gives it to this user" in line


def test_a_denied_connection_is_no_file() -> None:
    with pytest.raises(SystemExit) as ended, process_boundary():
        raise PermissionError(errno.EACCES, "Permission denied")
    assert ended.value.code == UNEXPECTED


# --- unexpected errors ---------------------------------------------------------------------------


def run(*words: str, at: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    temporary = at / "temporary"
    temporary.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "KUBERNETES_SERVICE_HOST"}
    environment |= {"TMPDIR": str(temporary), **variables}
    return subprocess.run(words, cwd=at, env=environment, capture_output=True, text=True, check=False)


def traceback_in(line: str) -> Path:
    found = re.search(r"its traceback is in (\S+)$", line)
    assert found is not None, line
    return Path(found[1])


def test_unexpected_error_is_one_line_with_code_70_that_names_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").mkdir()  # where the command writes a file
    ran = run(*RGLCD, "config", "use", "toy", at=tmp_path)
    assert (ran.returncode, ran.stdout) == (70, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("rglcd: unexpected error, please report it: IsADirectoryError: ")
    path = traceback_in(line)
    assert path.parent == tmp_path / "temporary"
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert path.read_text().startswith("Traceback (most recent call last):\n")
    assert "IsADirectoryError" in path.read_text().splitlines()[-1]


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    "raised",
    [
        'RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")',
        'RuntimeError("CUDA out of memory. Tried")',
    ],
)
def test_a_lack_of_memory_is_no_bug_to_report_and_says_where_to_look(tmp_path: Path, raised: str) -> None:
    ran = run(sys.executable, "-c", BROKEN.replace('{}["missing"]', f"raise {raised}"), at=tmp_path)
    assert ran.returncode == 70
    (line,) = ran.stderr.splitlines()
    assert line.startswith("rglcd: out of memory: RuntimeError: CUDA ")
    assert "; work on less at once: `rglcd plan` says what a GPU holds, its --help what to lower; its traceback is in /" in line
    assert "please report" not in line


def test_unexpected_error_of_many_lines_is_still_one_line(tmp_path: Path) -> None:
    broken = BROKEN.replace('{}["missing"]', 'raise RuntimeError("first\\nsecond\\n" + "x" * 10_000)')
    (line,) = run(sys.executable, "-c", broken, at=tmp_path).stderr.splitlines()
    assert "RuntimeError: first second xxx" in line
    assert len(line) < 700
    assert "x" * 10_000 in traceback_in(line).read_text()


def test_traceback_goes_to_the_log_where_no_file_can_be_written(tmp_path: Path) -> None:
    broken = BROKEN.replace("with process", "import tempfile; tempfile.tempdir = '/nowhere'\nwith process")
    ran = run(sys.executable, "-c", broken, at=tmp_path)
    assert ran.returncode == 70
    *traceback, line = ran.stderr.splitlines()
    assert traceback[-1] == "KeyError: 'missing'"
    assert line.endswith("no file could be written (No such file or directory), so its traceback is above")


@pytest.mark.parametrize("variable", ["KUBERNETES_SERVICE_HOST", "RGLCD_POD_NAME"])
def test_in_a_pod_the_traceback_is_in_the_log_too(tmp_path: Path, variable: str) -> None:
    ran = run(sys.executable, "-c", BROKEN, at=tmp_path, **{variable: "x"})
    *traceback, line = ran.stderr.splitlines()
    assert ran.returncode == 70
    assert traceback_in(line).read_text().splitlines() == traceback


def test_error_file_holds_the_line_and_code_70(tmp_path: Path) -> None:
    ran = run(sys.executable, "-c", BROKEN, at=tmp_path, TORCHELASTIC_ERROR_FILE=str(tmp_path / "error.json"))
    failure = read_failure((tmp_path / "error.json").read_text())
    assert failure is not None
    assert (failure.exit_code, f"rglcd: {failure.message}\n") == (70, ran.stderr)


def test_rank_outside_a_pod_leaves_its_line_to_the_launcher(tmp_path: Path) -> None:
    ran = run(sys.executable, "-c", BROKEN, at=tmp_path, RANK="1", TORCHELASTIC_ERROR_FILE=str(tmp_path / "error.json"))
    assert (ran.returncode, ran.stderr) == (70, "")


def test_launcher_counts_code_70_as_a_crash_that_may_be_tried_again() -> None:
    ended = {"exitCode": 70, "finishedAt": "2026-01-01T00:00:00Z"}
    pod = {"metadata": {"name": "pod-0"}, "status": {"phase": "Failed", "containerStatuses": [{"state": {"terminated": ended}}]}}
    assert not ended_by_cluster(pod)
    assert reason_of(pod).then is Then.COUNTED
    assert 70 not in [policy.get("exitCode") for policy in POLICIES]
    assert failure_of(reason_of(pod)).exit_code == 70


# --- interruptions -------------------------------------------------------------------------------


def test_keyboard_interrupt_is_one_line_and_code_130(tmp_path: Path) -> None:
    waits = "print('ready', flush=True); time.sleep(60)"
    body = f"import time\nfrom rglcd.launch.boundary import process_boundary\nwith process_boundary():\n    {waits}"
    with subprocess.Popen([sys.executable, "-c", body], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, len(err.splitlines())) == (130, 1)


@pytest.mark.parametrize("words", ["config show toy", "--help", "config show --help"])
def test_output_whose_reader_is_gone_ends_quietly(tmp_path: Path, words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONUNBUFFERED": ""}  # else argparse sees the error itself, and passes over it
    with os.fdopen(writer, "w") as stdout:
        ran = subprocess.run([*RGLCD, *words.split()], cwd=tmp_path, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_broken_pipe_of_something_else_is_unexpected(tmp_path: Path) -> None:
    ran = run(sys.executable, "-c", BROKEN.replace('{}["missing"]', "raise BrokenPipeError('a child')"), at=tmp_path)
    assert ran.returncode == 70
    assert "BrokenPipeError: a child" in ran.stderr
